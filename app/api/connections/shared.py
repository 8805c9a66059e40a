"""What the connections of one process share: their number, the bytes that they hold, and one timer for all of them."""

import asyncio
import math
from typing import Protocol

import structlog

from app.config import Settings
from app.telemetry import CONNECTIONS

NEVER = math.inf
_SWEEP_SECONDS = 1.0
log = structlog.get_logger(__name__)


class Connection(Protocol):
    """`deadline`: when the client must have sent something, on the clock of the connections; `read_deadline`: when it must have read
    something. `held`: the bytes of a request that is still arriving.
    """

    deadline: float
    read_deadline: float
    held: int

    @property
    def is_idle(self) -> bool: ...
    @property
    def is_in_head(self) -> bool: ...
    @property
    def is_reading(self) -> bool: ...
    def expire(self) -> None: ...
    def close_idle(self) -> None: ...
    def refuse_overload(self) -> None: ...


class Connections:
    """One sweep a second looks at all connections, so that a request costs no timer of its own.

    `clock` is in seconds and moves with the sweep only, and never by much: while a process was stopped or busy, its clients did
    not waste its time. A deadline is therefore met up to two sweeps late. `held`: the bytes of all requests that are arriving or
    wait for their answers.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.idle_seconds = settings.idle_timeout_seconds
        self.clock = 0.0
        self.held = 0
        self._open: set[Connection] = set()
        self._refused = 0
        self._swept_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        times = (
            *(settings.head_timeout_seconds, settings.body_timeout_seconds),
            *(settings.idle_timeout_seconds, settings.unread_timeout_seconds),
        )
        self._period = min(_SWEEP_SECONDS, *(each / 4 for each in times))

    def enter(self, connection: Connection) -> bool:
        """Adds a connection. False: there are too many, and all of them are in use."""
        if len(self._open) >= self.settings.max_connections and not self._make_room():
            self._refused += 1
            return False
        self._open.add(connection)
        if self._timer is None:
            self._swept_at = asyncio.get_running_loop().time()
            self._rest()
        return True

    def leave(self, connection: Connection) -> None:
        self._open.discard(connection)

    def relieve(self) -> None:
        """Refuses the largest requests that are still arriving, until the bytes held are within their bound."""
        while self.held > self.settings.max_held_bytes:
            largest = max((each for each in self._open if each.is_reading), key=lambda each: each.held, default=None)
            if largest is None or largest.held == 0:
                return
            self._refused += 1
            largest.refuse_overload()

    def _make_room(self) -> bool:
        """Closes the connection that is idle for the longest time: its client can open another one at no loss. If none is idle,
        ends the one whose head has been arriving for the longest time: an honest head comes at once.
        """
        idle = min((each for each in self._open if each.is_idle), key=_deadline, default=None)
        slow = (
            min((each for each in self._open if each.is_in_head), key=_deadline, default=None) if idle is None else None
        )
        if idle is not None:
            idle.close_idle()
        elif slow is not None:
            self._refused += 1
            slow.refuse_overload()
        self._open -= {idle, slow}
        return idle is not None or slow is not None

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        self.clock += min(now - self._swept_at, 2 * self._period)
        self._swept_at = now
        late = [each for each in self._open if each.deadline < self.clock or each.read_deadline < self.clock]
        for connection in late:
            connection.expire()
        CONNECTIONS.set(len(self._open))
        if self._refused:
            log.warning("connections.refused", refused=self._refused, open=len(self._open), held_bytes=self.held)
            self._refused = 0
        self._rest()

    def _rest(self) -> None:
        self._timer = None
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._sweep)


def _deadline(connection: Connection) -> float:
    return connection.deadline
