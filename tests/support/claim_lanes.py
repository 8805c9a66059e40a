"""A lane of a batcher's tests: it notes each statement, and ends it when and as the test says."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.domain.claims import KnownClaim, NewClaim, Outcome
from app.ids import new_id
from app.services.claims.batcher import ClaimBatcher
from tests.support.patience import PATIENCE
from tests.support.rows import request as new_claim

Answer = Callable[[Sequence[NewClaim], bool], list[Outcome]]


def answer_all(requests: Sequence[NewClaim], from_start: bool) -> list[Outcome]:  # noqa: FBT001 - as a lane is asked
    """To each request an outcome that names its own claim."""
    return [KnownClaim(request.id) for request in requests]


@dataclass(eq=False)
class Statement:
    """One statement of the lane: in flight until `end`."""

    pool_id: UUID
    requests: list[NewClaim]
    from_start: bool
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, error: Exception | None = None) -> None:
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    @property
    def bodies(self) -> list[str]:
        """What marks the requests in these tests."""
        return [new.request.request_hash for new in self.requests]


class ScriptedLane:
    """Stands in for a WarmClaimStore. `answer` gives the outcomes of a statement; what it raises the statement raises."""

    def __init__(self, answer: Answer = answer_all) -> None:
        self.answer = answer
        self.statements: list[Statement] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._news = asyncio.Event()

    async def claim(
        self, pool_id: UUID, requests: Sequence[NewClaim], *, from_start: bool = False, **_: Any
    ) -> list[Outcome]:
        statement = Statement(pool_id, list(requests), from_start)
        self.statements.append(statement)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._news.set()
        try:
            await statement.ended
            return self.answer(requests, from_start)
        finally:
            self.in_flight -= 1

    async def statement(self, number: int) -> Statement:
        """The statement with this number, counted from 0, as soon as it was sent."""
        async with asyncio.timeout(PATIENCE):
            while len(self.statements) <= number:
                self._news.clear()
                await self._news.wait()
        return self.statements[number]

    async def end_all(self, asked: Sequence["asyncio.Task[Outcome]"]) -> list[Outcome | BaseException]:
        """Ends statement after statement until all of `asked` have their answers, and none is in flight for those that left."""
        everything = asyncio.gather(*asked, return_exceptions=True)
        async with asyncio.timeout(PATIENCE):
            while not everything.done() or self.in_flight:
                for statement in self.statements:
                    if not statement.ended.done():
                        statement.end()
                await asyncio.sleep(0)
        return await everything


class Desk:
    """A batcher on a scripted lane, and whom it told of claims."""

    def __init__(self, answer: Answer = answer_all) -> None:
        self.lane = ScriptedLane(answer)
        self.pool_id = new_id()
        self.told: list[UUID] = []
        self.abandoned: list[UUID] = []
        # A lane by its one method that a batcher calls.
        self.batcher = ClaimBatcher(self.lane, self.pool_id, self.told.append, self.abandoned.append)  # type: ignore[arg-type]

    def ask(self, body: str, key: str | None = None, **how: bool) -> "asyncio.Task[Outcome]":
        claim = new_claim(key, body=body)
        return asyncio.create_task(self.batcher.claim(claim, **how), name=body)

    async def arrive(self, *bodies: str) -> list["asyncio.Task[Outcome]"]:
        """Requests that have all arrived when this returns, in this order."""
        asked = [self.ask(body) for body in bodies]
        await asyncio.sleep(0)
        return asked

    async def hold(self) -> Statement:
        """A statement in flight: what arrives from now on gathers behind it."""
        number = len(self.lane.statements)
        self.ask("holds")
        return await self.lane.statement(number)
