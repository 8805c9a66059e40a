"""`pods/NAME/log`: the logs of containers, in the way of a kubelet. Only launchers say anything: the consoles of their guests."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from aiohttp import web

from app.devcluster.apiserver.listing import is_true
from app.devcluster.apiserver.status import Json, bad_option, bad_request
from app.devcluster.kubevirt.console_log import ConsoleLogs

_CONSOLE = "guest-console-log"
_STATUSES = {"containers": "containerStatuses", "initContainers": "initContainerStatuses"}


async def serve(request: web.Request, pod: Json, consoles: ConsoleLogs, closing: asyncio.Event) -> web.StreamResponse:
    """Raises ApiError for a container that is not there or does not run yet, and for a wrong query."""
    container = _container(pod, request.query.get("container", ""))
    lines, follow = _lines(request.query.get("tailLines")), is_true(request.query.get("follow", ""))
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    response.enable_chunked_encoding()
    if container == _CONSOLE and pod["spec"].get("nodeName"):
        owner = pod["metadata"]["ownerReferences"][0]
        key = (pod["metadata"]["namespace"], owner["name"])
        async with aclosing(consoles.read(key, owner["uid"], lines=lines, follow=follow)) as pieces:
            await _send(request, response, pieces, closing)
    if not response.prepared:
        await response.prepare(request)
    with suppress(ConnectionError):
        await response.write_eof()
    return response


async def _send(
    request: web.Request, response: web.StreamResponse, pieces: AsyncGenerator[bytes], closing: asyncio.Event
) -> None:
    """Until the end of the log or of the server. The head goes out with the first piece, as from a kubelet."""
    ending = asyncio.ensure_future(closing.wait())
    reading = asyncio.ensure_future(anext(pieces, b""))
    try:
        while await _is_next(reading, ending) and (piece := reading.result()):
            reading = asyncio.ensure_future(anext(pieces, b""))
            if not response.prepared:
                await response.prepare(request)
            await response.write(piece)
    finally:
        ending.cancel()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _is_next(reading: "asyncio.Future[bytes]", ending: "asyncio.Future[Any]") -> bool:
    waited: set[asyncio.Future[Any]] = {reading, ending}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    return not ending.done()


def _container(pod: Json, name: str) -> str:
    """Its name. Raises ApiError 400 where the pod has none of it, or it has not started (Kubernetes v1.36's kubelet)."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod["status"]
    found = {each["name"]: kind for kind in _STATUSES for each in spec.get(kind) or ()}
    if not name:
        names = " ".join(each["name"] for each in spec["containers"])
        raise bad_request(f"a container name must be specified for pod {metadata['name']}, choose one of: [{names}]")
    if name not in found:
        raise bad_request(f"container {name} is not valid for pod {metadata['name']}")
    for each in status.get(_STATUSES[found[name]]) or ():
        waiting = (each.get("state") or {}).get("waiting")
        if each["name"] == name and waiting:
            raise bad_request(
                f'container "{name}" in pod "{metadata["name"]}" is waiting to start: {waiting.get("reason", "")}'
            )
    return name


def _lines(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        told = f"Invalid value: {text}: must be greater than or equal to 0"
        raise bad_option("PodLogOptions", "tailLines", "FieldValueInvalid", told)
    return int(text)
