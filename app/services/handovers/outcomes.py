"""Requests that wait until the hooks of their claim's guest have run."""

import asyncio
from uuid import UUID

from app.background import PartHealth
from app.concurrency import first_of
from app.domain.handovers import HANDOVER_OVER, HandoverRequest
from app.domain.states import ClaimState
from app.services.claims.lifecycle import no_such_claim
from app.services.claims.queue import StoredClaim, UntilDisconnected
from app.services.claims.service import ClaimAnswer
from app.services.handovers.waiting import Waiting
from app.store.claims import handovers
from app.store.claims import rows as claims
from app.store.database import Database

_SWEEP_SECONDS = 1.0


class HandoverOutcomes:
    """Of one process. Requests are woken while `run` runs, by notices and by a look once a second."""

    def __init__(self, db: Database) -> None:
        self.health = PartHealth("handovers")
        self.waiting = Waiting()
        self._db = db

    async def follow(
        self, answer: ClaimAnswer, handover: HandoverRequest, until_disconnected: UntilDisconnected
    ) -> StoredClaim:
        """The claim with how its hand-over stands: at once, or once that is over, within the seconds that the request waits."""
        given = answer if isinstance(answer, StoredClaim) else None
        claim_id = answer.claim.id
        looked_at = self.waiting.now
        ends_at = looked_at + handover.wait_seconds
        found = await self._read(claim_id, given)
        waits = handover.wait_seconds > 0
        while waits and _goes_on(found):
            waiting = asyncio.ensure_future(
                self.waiting.wait(claim_id, ends_at - self.waiting.now, looked_at=looked_at)
            )
            try:
                done = await first_of(waiting, until_disconnected())
            finally:
                waiting.cancel()
            waits = waiting in done and waiting.result()
            looked_at = self.waiting.now
            found = await self._read(claim_id, given)
        return found

    async def read(self, answer: ClaimAnswer) -> StoredClaim:
        """The claim with how its hand-over stands now."""
        return await self._read(answer.claim.id, answer if isinstance(answer, StoredClaim) else None)

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with self.health.attempt():
                if waited_for := self.waiting.all():
                    async with self._db.once() as tx:
                        self.waiting.wake_each(await handovers.over(tx, waited_for))
            self.waiting.forget()
            await first_of(stop.wait(), timeout=_SWEEP_SECONDS)
        self.waiting.close()

    async def _read(self, claim_id: UUID, given: StoredClaim | None) -> StoredClaim:
        async with self._db.once() as tx:
            claim = await claims.get(tx, claim_id)
        if claim is None:
            raise no_such_claim(claim_id)
        replayed = given.replayed if given is not None else False
        estimate = given.estimate if given is not None and claim.state is ClaimState.PENDING else None
        return StoredClaim(claim, replayed, estimate)


def _goes_on(found: StoredClaim) -> bool:
    handover = found.claim.handover
    return found.claim.state is ClaimState.BOUND and handover is not None and handover.state not in HANDOVER_OVER
