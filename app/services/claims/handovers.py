"""Claims that hand data over to the guest of their VM.

They are not combined with others: the claim and what it hands over are one transaction, which also wakes the guest. All that is
asked of a plain claim is whether it is one of these.
"""

from collections.abc import Sequence
from uuid import UUID

from app.domain.claims import ClaimRequest, KnownClaim, NewClaim, Outcome, WarmClaim
from app.errors import InvalidRequest
from app.services.handovers.sealing import Sealer
from app.store.claims import handovers
from app.store.claims import preference as claim_preference
from app.store.claims import rows as claims
from app.store.claims.preference import KeyTaken
from app.store.database import Database, Tx

_REMEMBERED = 1000


def refuse_without_channel(request: ClaimRequest, *, has_channel: bool) -> None:
    """Raises InvalidRequest."""
    if request.handover is not None and not has_channel:
        raise InvalidRequest.of_field(
            "handover",
            f"the VMs of pool {request.pool!r} have no channel, so that nothing can be handed over to them; set "
            "guest: {channel: true} for the pool, which then makes its VMs anew",
        )


class HandoverClaims:
    """Of one process. It remembers where each pool's queue of ready VMs began when it last looked, as `Preferences` does."""

    def __init__(self, db: Database, sealer: Sealer) -> None:
        self._db = db
        self._sealer = sealer
        self._begins: dict[UUID, int] = {}

    def require(self, request: ClaimRequest) -> None:
        """Raises InvalidRequest where data could not be kept."""
        if request.handover is not None and request.handover.data is not None:
            self._sealer.require()

    async def write(self, tx: Tx, claim: NewClaim) -> None:
        """What the claim hands over, if it does, in the transaction that writes the claim."""
        handover = claim.request.handover
        if handover is not None:
            data = handover.data
            await handovers.insert(tx, claim.id, self._sealer.seal(data, claim.id) if data is not None else None)

    async def claim(self, pool_id: UUID, claim: NewClaim) -> Outcome:
        """A warm VM whose guest has a channel, with what it gets; None where there is none of those looked at. Raises
        DatabaseUnavailable.
        """
        (outcome,) = await self.claim_all(pool_id, [claim], least=1) or [None]
        return outcome

    async def claim_all(self, pool_id: UUID, new: Sequence[NewClaim], *, least: int) -> list[Outcome]:
        """So many warm VMs in one transaction, as far as they are ready: nothing where there are fewer than `least`. Where a key is
        known already, the claims that have one are the answer.
        """
        async with self._db.begin() as tx:
            if known := await _known(tx, new):
                return known
            taken = await self._take(tx, pool_id, new)
            made = [each for each in taken if isinstance(each, WarmClaim)]
            if len(made) >= max(1, least) and not any(isinstance(each, KeyTaken) for each in taken):
                for each in made:
                    await self.write(tx, each.claim)
                await handovers.follow_bound(tx, [each.claim.id for each in made])
                return [*made]
            await tx.rollback()
        # Another claim with the key has been committed: this one waited for that.
        async with self._db.begin() as tx:
            return await _known(tx, new)

    async def _take(self, tx: Tx, pool_id: UUID, new: Sequence[NewClaim]) -> list[WarmClaim | KeyTaken | None]:
        seqs = await claim_preference.heard(tx, pool_id, from_seq=self._begins.get(pool_id, 0))
        if len(seqs) < len(new) and self._begins.pop(pool_id, None) is not None:
            seqs = await claim_preference.heard(tx, pool_id, from_seq=0)
        if seqs:
            if len(self._begins) >= _REMEMBERED:
                self._begins.clear()
            self._begins[pool_id] = min(seqs)
        return [await claim_preference.take(tx, pool_id, each, seqs) for each in new] if seqs else []


async def _known(tx: Tx, new: Sequence[NewClaim]) -> list[Outcome]:
    found = [await claims.by_key(tx, each.request.key) for each in new if each.request.key is not None]
    return [KnownClaim(each) for each in found if each is not None]
