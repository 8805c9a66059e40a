"""Reads what VMs have written to their serial consoles, and what they write now."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Final
from uuid import UUID

import structlog

from app.compute.capabilities import Capability
from app.compute.gateway import Gateway
from app.concurrency import first_of
from app.config import Settings
from app.errors import DatabaseUnavailable, EmberpoolError, NoConsoleLog, TooManyStreams
from app.services.vms.service import no_such_vm
from app.store.database import Database
from app.store.rows import VmRow
from app.store.vms import rows as vm_rows
from app.telemetry import CONSOLE_STREAMS, CONSOLE_STREAMS_REFUSED

_LOOK_SECONDS: Final = 5.0
"""How often a silent console is asked whether its VM is still there: that of a VM whose node died says nothing any more."""
_RETRY_AFTER_SECONDS: Final = 5
log = structlog.get_logger(__name__)


class Consoles:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._most = settings.max_console_streams
        self._idle_seconds = settings.console_idle_seconds
        self._streams = 0

    async def tail(self, vm_id: UUID, *, lines: int, size: int) -> bytes:
        """The last lines, of which the last `size` bytes. Raises what `follow` raises, and errors of the cluster."""
        with self._admitted():
            vm = await self._find(vm_id)
            async with self._gateway.console.open(**vm, lines=lines, follow=False) as pieces:
                return await _last(pieces, size)

    @asynccontextmanager
    async def follow(self, vm_id: UUID, *, lines: int, stop: asyncio.Event) -> AsyncIterator[AsyncIterator[bytes]]:
        """The last lines and what comes after them, until the VM ends or says nothing for long, or until `stop`.

        Why it ends before the VM does is its last line. Raises VmNotFound, NoConsoleLog, TooManyStreams, and errors of the cluster.
        """
        with self._admitted():
            vm = await self._find(vm_id)
            async with (
                self._gateway.console.open(**vm, lines=lines, follow=True) as pieces,
                aclosing(self._live(vm_id, pieces, stop)) as live,
            ):
                yield live

    async def _live(self, vm_id: UUID, pieces: AsyncIterator[bytes], stop: asyncio.Event) -> AsyncGenerator[bytes]:
        reading, heard = _next(pieces), time.monotonic()
        try:
            while not stop.is_set():
                if reading in await first_of(reading, stop.wait(), timeout=min(_LOOK_SECONDS, self._idle_seconds)):
                    if not (piece := reading.result()):
                        return
                    reading, heard = _next(pieces), time.monotonic()
                    yield piece
                elif time.monotonic() - heard >= self._idle_seconds:
                    yield _note(f"nothing new for {self._idle_seconds:g} s; ask again to go on")
                    return
                elif await self._has_ended(vm_id):
                    return
        except EmberpoolError as error:
            log.info("console.broken", vm_id=str(vm_id), reason=error.detail)
            yield _note(f"the log broke off: {error.detail}")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _find(self, vm_id: UUID) -> dict[str, str]:
        """The name and the instance of a VM that has one."""
        if (why := await self._gateway.unavailable(Capability.CONSOLE_LOGS)) is not None:
            raise NoConsoleLog(f"the cluster keeps no console logs: {why}")
        vm = await self._read(vm_id)
        if vm is None:
            raise no_such_vm(vm_id)
        if vm.ended_at is not None:
            raise NoConsoleLog(f"VM {vm.name} is {vm.state}, and its console log went with it")
        if vm.vmi_uid is None:
            raise NoConsoleLog(f"VM {vm.name} is {vm.state} and has not started yet; try again when it boots")
        return {"vm": vm.name, "instance": vm.vmi_uid}

    async def _read(self, vm_id: UUID) -> VmRow | None:
        async with self._db.begin() as tx:
            return await vm_rows.get(tx, vm_id)

    async def _has_ended(self, vm_id: UUID) -> bool:
        """What is not known, because the database is away, counts as no."""
        with suppress(DatabaseUnavailable):
            vm = await self._read(vm_id)
            return vm is None or vm.ended_at is not None
        return False

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._streams >= self._most:
            CONSOLE_STREAMS_REFUSED.inc()
            raise TooManyStreams(
                f"this process reads {self._streams} console logs, which is as many as it may; try again",
                retry_after=_RETRY_AFTER_SECONDS,
            )
        self._streams += 1
        CONSOLE_STREAMS.inc()
        try:
            yield
        finally:
            self._streams -= 1
            CONSOLE_STREAMS.dec()


def _next(pieces: AsyncIterator[bytes]) -> "asyncio.Future[bytes]":
    """The next piece; empty at the end."""
    return asyncio.ensure_future(anext(pieces, b""))


async def _last(pieces: AsyncIterator[bytes], size: int) -> bytes:
    """The last `size` bytes, without the beginning of the line in which they begin."""
    kept = bytearray()
    is_cut = False
    async for piece in pieces:
        kept += piece
        if len(kept) > size:
            is_cut = True
            del kept[:-size]
    begin = kept.find(b"\n") + 1 if is_cut else 0
    return bytes(kept[begin:])


def _note(why: str) -> bytes:
    return f"\n[emberpool: {why}]\n".encode()
