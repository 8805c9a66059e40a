"""Reads what an API server streams: the events of a watch, and lists that come as one.

Events are given in batches, as they came over the wire: one at a time they would cost more than reading their JSON.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import orjson

from app.compute.kubevirt.errors import translate, translating
from app.compute.kubevirt.kinds import Manifest
from app.errors import ClusterError, ClusterUnavailable, EmberpoolError

LAST_INITIAL = "k8s.io/initial-events-end"
"""The annotation of the bookmark that ends a list that is streamed (KEP-3157, Kubernetes 1.32)."""
_BATCH = 100
_CHUNK = (
    2**18
)  # bytes that are read and split at a time: what is read waits as JSON, which takes a fraction of its objects
_LONGEST_EVENT = 16 * 2**20  # bytes; etcd takes no object above 1.5 MiB


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list. `version`: the resourceVersion of the list as a whole, empty as long as it is not known."""

    items: list[Manifest]
    version: str


async def read_events(
    read: Callable[[int], Awaitable[bytes]], doing: str, *, silence: float
) -> AsyncGenerator[list[Manifest], None]:
    """The events of a watch, until its end. `read` gives at most so many of the next bytes, none at the end, and raises
    TimeoutError in silence.

    Raises WatchExpired for a 410, ClusterUnavailable if the watch breaks or is silent, ClusterError for what is no event.
    """
    rest = b""
    while chunk := await _read(read, doing, silence):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_EVENT:
            raise ClusterError(f"The cluster sent an event of more than {_LONGEST_EVENT} bytes; could not {doing}.")
        for start in range(0, len(lines), _BATCH):
            async for events in _parse(lines[start : start + _BATCH], doing):
                yield events
    async for events in _parse([rest], doing):
        yield events


async def pages_of(batches: AsyncIterator[list[Manifest]]) -> AsyncGenerator[Page, None]:
    """The list that a watch begins with, up to the bookmark that ends it. What is deleted meanwhile is not in it."""
    async for batch in batches:
        items = [event["object"] for event in batch if event["type"] in {"ADDED", "MODIFIED"}]
        ends = [event["object"]["metadata"] for event in batch if _ends_list(event)]
        yield Page(items, str(ends[0].get("resourceVersion") or "") if ends else "")
        if ends:
            return
    raise ClusterUnavailable("The cluster ended a list before its last object.", retry_after=1)


def _ends_list(event: Manifest) -> bool:
    metadata = event["object"].get("metadata") or {}
    return event["type"] == "BOOKMARK" and (metadata.get("annotations") or {}).get(LAST_INITIAL) == "true"


async def _read(read: Callable[[int], Awaitable[bytes]], doing: str, silence: float) -> bytes:
    with translating(doing):
        try:
            return await read(_CHUNK)
        except TimeoutError as error:
            raise ClusterUnavailable(f"The cluster was silent for {silence:g} s; could not {doing}.") from error


async def _parse(lines: list[bytes], doing: str) -> AsyncGenerator[list[Manifest], None]:
    """One batch, if there is anything in the lines. What came before an error is given first."""
    events: list[Manifest] = []
    failed: EmberpoolError | None = None
    for line in lines:
        try:
            if line.strip():
                events.append(_read_event(line, doing))
        except EmberpoolError as error:
            failed = error
            break
    if events:
        yield events
    if failed is not None:
        raise failed


def _read_event(line: bytes, doing: str) -> Manifest:
    with translating(doing):
        event = orjson.loads(line)
    if not isinstance(event, dict):
        raise ClusterError(
            f"The cluster's answer is not a JSON object; could not {doing}. Is there a proxy in between, or another server at "
            "its address?"
        )
    item = event.get("object")
    if not isinstance(event.get("type"), str) or not isinstance(item, dict):
        raise ClusterError(f"The cluster sent something that is not a watch event; could not {doing}.")
    if event["type"] == "ERROR":
        raise translate(int(item.get("code") or 500), item, None, doing)
    return event
