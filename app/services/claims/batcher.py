"""Combines claims: those that arrive while a statement is in flight go together in the next one, with one commit for all.

There is one batcher for each pool and process. Each claim keeps its own id, key and answer. A request whose client
disconnects before its statement is sent takes no VM; one that disconnects before its answer has abandoned its claim, which is
then ended unless a key can find it. A key that arrives twice waits for the statement after. Where a statement fails because
of its content, its claims are sent again one by one, so that only the faulty one gets the error.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol
from uuid import UUID

from typing_extensions import override

from app.domain.claims import NewClaim, Outcome, WarmClaim
from app.errors import EmberpoolError, OutcomeUnknown
from app.store.claims.warm import WarmClaimStore

_BATCH = 64
_ANSWERS_AT_ONCE = 4


class Recipient(Protocol):
    """Receives the outcome of a claim by a call, so that no task has to wait for it."""

    def is_disconnected(self) -> bool:
        """Whether nobody waits any more: a claim that was not sent yet is then dropped."""

    def receive(self, claim: NewClaim, outcome: Outcome | Exception) -> None:
        """Called once, unless disconnected; must not raise."""


class _Entry(NamedTuple):
    claim: NewClaim
    recipient: Recipient
    from_start: bool


class ClaimBatcher:
    """The claims of one pool in one process.

    `on_claimed` is called after each statement that claimed anything, `on_abandoned` with each claim without a key that was, or
    may have been, made for a client that has disconnected since.
    """

    def __init__(
        self,
        store: WarmClaimStore,
        pool_id: UUID,
        on_claimed: Callable[[UUID], None],
        on_abandoned: Callable[[UUID], None],
    ) -> None:
        self._store = store
        self._pool_id = pool_id
        self._on_claimed = on_claimed
        self._on_abandoned = on_abandoned
        self._entries: deque[_Entry] = deque()
        self._running: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return self._running is None

    async def claim(self, claim: NewClaim, *, from_start: bool = False) -> Outcome:
        """As `submit`, and waits. Cancelled before its statement is sent it takes nothing; after that the claim is abandoned."""
        waiting = _Waiting()
        self.submit(claim, waiting, from_start=from_start)
        return await waiting.answer

    def submit(self, claim: NewClaim, recipient: Recipient, *, from_start: bool = False) -> None:
        """The recipient gets the outcome: of a look from the hint and, before "none" is believed, of one from the true
        start of the queue (`from_start`: of that one alone).
        """
        self._entries.append(_Entry(claim, recipient, from_start))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=f"batcher-{self._pool_id}")

    async def _run(self) -> None:
        try:
            while batch := self._next_batch():
                await self._serve(batch)
        finally:
            self._running = None

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        keys: set[str] = set()
        later: list[_Entry] = []
        while self._entries and len(batch) < _BATCH:
            entry = self._entries.popleft()
            if entry.recipient.is_disconnected():
                continue
            key = entry.claim.request.key
            if key is not None and key in keys:
                later.append(entry)
                continue
            if key is not None:
                keys.add(key)
            batch.append(entry)
        self._entries.extendleft(reversed(later))
        return batch

    async def _serve(self, batch: list[_Entry]) -> None:
        try:
            await self._send(batch)
        except OutcomeUnknown:
            self._answer((entry, _unknown(entry)) for entry in batch)
        except EmberpoolError as error:
            self._answer((entry, error) for entry in batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, every request must be answered
            if len(batch) == 1:
                self._answer([(batch[0], error)])
                return
            for entry in batch:
                if not entry.recipient.is_disconnected():  # it may have disconnected while the others were served
                    await self._serve([entry])

    async def _send(self, batch: list[_Entry]) -> None:
        from_start = any(entry.from_start for entry in batch)
        outcomes = await self._store.claim(self._pool_id, [entry.claim for entry in batch], from_start=from_start)
        answers: list[tuple[_Entry, Outcome]] = []
        again: list[_Entry] = []
        for entry, outcome in zip(batch, outcomes, strict=True):
            if outcome is None and not entry.from_start:
                again.append(entry._replace(from_start=True))
            else:
                answers.append((entry, outcome))
        self._entries.extendleft(reversed(again))  # before those that came after them
        if any(outcomes):
            self._on_claimed(self._pool_id)
        if self._entries:
            # The next statement first: Postgres works on it while these answers are written.
            asyncio.get_running_loop().call_soon(self._answer_in_turns, answers)
        else:
            self._answer_in_turns(answers)

    def _answer_in_turns(self, answers: list[tuple[_Entry, Outcome]]) -> None:
        """A few in each turn of the loop: sockets are flushed at the end of a turn, and then Postgres' next answer is read."""
        self._answer(answers[:_ANSWERS_AT_ONCE])
        if rest := answers[_ANSWERS_AT_ONCE:]:
            asyncio.get_running_loop().call_soon(self._answer_in_turns, rest)

    def _answer(self, answers: Iterable[tuple[_Entry, Outcome | Exception]]) -> None:
        for entry, outcome in answers:
            if not entry.recipient.is_disconnected():
                entry.recipient.receive(entry.claim, outcome)
            elif entry.claim.request.key is None and isinstance(outcome, WarmClaim | OutcomeUnknown):
                self._on_abandoned(entry.claim.id)


def _unknown(entry: _Entry) -> OutcomeUnknown:
    return OutcomeUnknown.of_claim(entry.claim.id, keyed=entry.claim.request.key is not None)


class _Waiting(Recipient):
    """A coroutine that waits for a future."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @override
    def is_disconnected(self) -> bool:
        return self.answer.done()

    @override
    def receive(self, claim: NewClaim, outcome: Outcome | Exception) -> None:
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)
