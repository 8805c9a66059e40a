"""Claims that arrive while a statement is in flight go together in the next one: one commit for all of them.

One batcher a pool and process. Each request keeps its own claim, key and answer: a request whose client left before its
statement takes no VM, a key that comes twice waits for the statement after, and where a statement fails for a reason of
its content its requests are asked again one by one, so that only the guilty one hears of it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol
from uuid import UUID

from typing_extensions import override

from app.errors import EmberpoolError
from app.store.claims.warm import ClaimLane, ClaimRequest, Outcome

_BATCH = 64
_AT_ONCE = 4


class Asker(Protocol):
    """Who asks for a claim, and waits for its outcome without a task of its own."""

    def has_left(self) -> bool:
        """Whether nobody waits any more: what is not sent yet is not sent then."""

    def hear(self, request: ClaimRequest, outcome: Outcome | Exception) -> None:
        """Called once, unless it has left; must not raise."""


class _Ask(NamedTuple):
    request: ClaimRequest
    asker: Asker
    from_start: bool


class ClaimBatcher:
    """The claims of one pool in one process. `on_claimed` is told of each statement that had an answer."""

    def __init__(self, lane: ClaimLane, pool_id: UUID, on_claimed: Callable[[UUID], None]) -> None:
        self._lane = lane
        self._pool_id = pool_id
        self._on_claimed = on_claimed
        self._asks: deque[_Ask] = deque()
        self._running: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return self._running is None

    async def claim(self, request: ClaimRequest, *, from_start: bool = False) -> Outcome:
        """As `ask`. Cancelled before its statement it takes nothing; after it, the claim stands."""
        waits = _Waits()
        self.ask(request, waits, from_start=from_start)
        return await waits.answer

    def ask(self, request: ClaimRequest, asker: Asker, *, from_start: bool = False) -> None:
        """The asker will hear the outcome for one request, after a look from the hint and, before "none" is believed, one
        from the true start (`from_start`: that one alone).
        """
        self._asks.append(_Ask(request, asker, from_start))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=f"batcher-{self._pool_id}")

    async def _run(self) -> None:
        try:
            while batch := self._next_batch():
                await self._serve(batch)
        finally:
            self._running = None

    def _next_batch(self) -> list[_Ask]:
        batch: list[_Ask] = []
        keys: set[str] = set()
        later: list[_Ask] = []
        while self._asks and len(batch) < _BATCH:
            ask = self._asks.popleft()
            if ask.asker.has_left():
                continue
            key = ask.request.key
            if key is not None and key in keys:
                later.append(ask)
                continue
            if key is not None:
                keys.add(key)
            batch.append(ask)
        self._asks.extendleft(reversed(later))
        return batch

    async def _serve(self, batch: list[_Ask]) -> None:
        try:
            await self._send(batch)
        except EmberpoolError as error:
            _tell((ask, error) for ask in batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, no request may hang for it
            if len(batch) == 1:
                _tell([(batch[0], error)])
                return
            for ask in batch:
                if not ask.asker.has_left():  # its client may have left while the others were asked
                    await self._serve([ask])

    async def _send(self, batch: list[_Ask]) -> None:
        from_start = any(ask.from_start for ask in batch)
        outcomes = await self._lane.claim(self._pool_id, [ask.request for ask in batch], from_start=from_start)
        told: list[tuple[_Ask, Outcome]] = []
        again: list[_Ask] = []
        for ask, outcome in zip(batch, outcomes, strict=True):
            if outcome is None and not ask.from_start:
                again.append(ask._replace(from_start=True))
            else:
                told.append((ask, outcome))
        self._asks.extendleft(reversed(again))  # before those that came after them
        if any(outcomes):
            self._on_claimed(self._pool_id)
        if self._asks:
            # The next statement first: Postgres works on it while these answers are written.
            asyncio.get_running_loop().call_soon(_tell_by_and_by, told)
        else:
            _tell_by_and_by(told)


def _tell_by_and_by(told: list[tuple[_Ask, Outcome]]) -> None:
    """A few in each turn of the loop: what is written goes out at a turn's end, and then Postgres' next answer is looked for."""
    _tell(told[:_AT_ONCE])
    if rest := told[_AT_ONCE:]:
        asyncio.get_running_loop().call_soon(_tell_by_and_by, rest)


def _tell(told: Iterable[tuple[_Ask, Outcome | Exception]]) -> None:
    for ask, outcome in told:
        if not ask.asker.has_left():
            ask.asker.hear(ask.request, outcome)


class _Waits(Asker):
    """A coroutine that waits, in a future's form."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @override
    def has_left(self) -> bool:
        return self.answer.done()

    @override
    def hear(self, request: ClaimRequest, outcome: Outcome | Exception) -> None:
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)
