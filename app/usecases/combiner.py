"""Claims that arrive while a statement is in flight go together in the next one: one commit for all of them.

One combiner a pool and process. Each request keeps its own claim, key and answer: a request whose client left before its
statement takes no VM, a key that comes twice waits for the statement after, and where a statement fails for a reason of
its content its requests are asked again one by one, so that only the guilty one hears of it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from app.errors import EmberpoolError
from app.store.claim_lane import ClaimLane, ClaimRequest, Outcome

_BATCH = 64


@dataclass(slots=True)
class _Ask:
    request: ClaimRequest
    from_start: bool
    answer: "asyncio.Future[Outcome]"


class Combiner:
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
        """The outcome for one request, after a look from the hint and, before "none" is believed, one from the true start
        (`from_start`: that one alone). Cancelled before its statement it takes nothing; after it, the claim stands.
        """
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asks.append(_Ask(request, from_start, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=f"combiner-{self._pool_id}")
        return await answer

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
            if ask.answer.done():
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
            await self._ask(batch)
        except EmberpoolError as error:
            _refuse(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, no request may hang for it
            if len(batch) == 1:
                _refuse(batch, error)
                return
            for ask in batch:
                if not ask.answer.done():  # its client may have left while the others were asked
                    await self._serve([ask])

    async def _ask(self, batch: list[_Ask]) -> None:
        from_start = any(ask.from_start for ask in batch)
        outcomes = await self._lane.claim(self._pool_id, [ask.request for ask in batch], from_start=from_start)
        again: list[_Ask] = []
        for ask, outcome in zip(batch, outcomes, strict=True):
            if ask.answer.done():
                continue
            if outcome is None and not ask.from_start:
                ask.from_start = True
                again.append(ask)
            else:
                ask.answer.set_result(outcome)
        self._asks.extendleft(reversed(again))  # before those that came after them
        if any(outcomes):
            self._on_claimed(self._pool_id)


def _refuse(batch: list[_Ask], error: Exception) -> None:
    for ask in batch:
        if not ask.answer.done():
            ask.answer.set_exception(error)
