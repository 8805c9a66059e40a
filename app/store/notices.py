"""NOTIFY and LISTEN: notices that wake other processes at once. A lost notice costs a polling interval, never correctness."""

import asyncio
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy import text

from app.concurrency import first_of
from app.store.database import Tx, driver_dsn
from app.store.postgres_errors import translate

_CHANNEL = "emberpool"
_RECONNECT_SECONDS = 1.0
_PING_SECONDS = 10.0
_SETTLED_AT_ONCE = 200  # 36 characters each: below the 8,000 bytes that a notice may have
log = structlog.get_logger(__name__)


class Topic(StrEnum):
    PLAN = "plan"
    """Pools are due for planning."""
    POOL = "pool"
    """A pool was written or deleted; the payload is its id."""
    CREATE = "create"
    REMOVE = "remove"
    SETTLED = "settled"
    """Claims left `pending`; the payload is their ids, separated by commas."""
    SNAPSHOT = "snapshot"
    """A snapshot was created, refreshed or deleted."""
    PRELOAD = "preload"
    """A preload was written or deleted."""
    CLAIMED = "claimed"
    """Warm VMs of a pool were claimed; the payload is the pool's id."""
    GUEST = "guest"
    """Guests have something to fetch, or to hear; the payload is the ids of their VMs, separated by commas."""
    HANDED_OVER = "handed-over"
    """Hand-overs are over; the payload is the ids of their claims, likewise."""
    INSTALLATION = "installation"
    """The installation waits for an operator, an operator has decided, or it works again."""


async def notify(tx: Tx, topic: Topic, payload: object = "") -> None:
    """Sent when `tx` commits. Never call it in the transaction of a warm claim: commits with notices wait for each other."""
    await tx.execute(
        text("SELECT pg_notify(:channel, :payload)"), {"channel": _CHANNEL, "payload": f"{topic}:{payload}"}
    )


async def notify_settled(tx: Tx, claim_ids: Iterable[UUID]) -> None:
    """Notices for claims that are pending no longer: one for as many ids as a payload may hold."""
    names = [str(claim_id) for claim_id in claim_ids]
    for start in range(0, len(names), _SETTLED_AT_ONCE):
        await notify(tx, Topic.SETTLED, ",".join(names[start : start + _SETTLED_AT_ONCE]))


class Listener:
    """Calls back for each notice, over one connection. After a reconnect it calls back once for every topic, with an empty
    payload, because notices that were sent meanwhile are lost.
    """

    def __init__(self, url: str) -> None:
        self._dsn = driver_dsn(url)
        self._calls: dict[Topic, list[Callable[[str], None]]] = {topic: [] for topic in Topic}

    def on(self, topic: Topic, call: Callable[[str], None]) -> None:
        self._calls[topic].append(call)

    async def run(self, stop: asyncio.Event) -> None:
        """Listens until `stop`, and reconnects whenever the connection is lost. Raises only what is a bug."""
        while not stop.is_set():
            try:
                await self._listen(stop)
            except Exception as error:
                ours = translate(error)
                if ours is None:
                    raise
                log.debug("listener.waits", error=ours.detail)
                await first_of(stop.wait(), timeout=_RECONNECT_SECONDS)

    async def _listen(self, stop: asyncio.Event) -> None:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(self._dsn, timeout=5, command_timeout=5)
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(_CHANNEL, self._dispatch)
            for topic in Topic:
                self._call(topic, "")
            while not (stop.is_set() or lost.is_set()):
                await first_of(stop.wait(), lost.wait(), timeout=_PING_SECONDS)
                if not (stop.is_set() or lost.is_set()):
                    await connection.execute("SELECT 1")  # a dead peer shows only when something is sent
        finally:
            connection.terminate()

    def _dispatch(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        topic, _, rest = str(payload).partition(":")
        if topic in Topic.__members__.values():
            self._call(Topic(topic), rest)

    def _call(self, topic: Topic, payload: str) -> None:
        for call in self._calls[topic]:
            call(payload)
