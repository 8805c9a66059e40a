"""The console log of a VM as text: what it has written to its serial console, or that and what it writes now."""

from collections.abc import AsyncIterator
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.api.dependencies import Services, Svc
from app.api.problems import CLUSTER_ERRORS, responses
from app.errors import InvalidRequest, NoConsoleLog, TooManyStreams, VmNotFound

router = APIRouter(prefix="/v1/vms", tags=["vms"])
_MOST_LINES: Final = 10_000
_MOST_BYTES: Final = 1024 * 1024
_EXAMPLE: Final = "[    0.000000] Linux version 6.12.0\n[    4.117332] cloud-init: modules-final done\nweb login: \n"
# A browser shows what comes as it comes, and takes it for nothing but text, whatever the guest writes.
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@router.get(
    "/{vm_id}/console",
    operation_id="getVmConsole",
    summary="Read a VM's console log, or follow it",
    response_class=PlainTextResponse,
    response_description="The last lines; with `follow`, what comes after them too, until the VM ends",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _EXAMPLE}}},
        **responses(VmNotFound, NoConsoleLog, TooManyStreams, *CLUSTER_ERRORS),
    },
)
async def get_vm_console(
    vm_id: Annotated[UUID, Path(description="Id of the VM.")],
    svc: Svc,
    *,
    lines: Annotated[int, Query(ge=1, le=_MOST_LINES, description="How many of the last lines.")] = 1000,
    size: Annotated[
        int | None,
        Query(alias="bytes", ge=1, le=_MOST_BYTES, description="At most this many of their bytes. Not with `follow`."),
    ] = None,
    follow: Annotated[
        bool, Query(description="Send what the VM writes from now on too, as it comes (`curl -N`).")
    ] = False,
) -> Response:
    """What the VM has written to its first serial console since it booted, as the cluster keeps it: kernel messages, cloud-init, logins.

    A log that is followed ends with the VM, and after `EMBERPOOL_CONSOLE_IDLE_SECONDS` without a new line. If it ends before the VM,
    its last line says why, in brackets that begin with `emberpool:`.
    """
    if not follow:
        text = await svc.consoles.tail(vm_id, lines=lines, size=size or _MOST_BYTES)
        return PlainTextResponse(text, headers=_HEADERS)
    if size is not None:
        raise InvalidRequest.of_field("bytes", "a log that is followed begins with `lines`; leave bytes out")
    return _Live(svc, vm_id, lines)


class _Live(StreamingResponse):
    """Is opened when it is sent, and closed however that ends. The protocol of the connection drops a client that does not read."""

    def __init__(self, svc: Services, vm_id: UUID, lines: int) -> None:
        super().__init__(_nothing(), media_type="text/plain", headers=_HEADERS)
        self._svc = svc
        self._vm_id = vm_id
        self._lines = lines

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._svc.consoles.follow(self._vm_id, lines=self._lines, stop=self._svc.stopping) as pieces:
            self.body_iterator = pieces
            await super().__call__(scope, receive, send)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
