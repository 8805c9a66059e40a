"""Claims that prefer one warm VM to another: by zone, by node, spread or packed.

A preference makes a claim look at the head of the queue of ready VMs before it takes one; it never makes the claim wait or
fail.
"""

from uuid import UUID

from app.domain.claims import KnownClaim, NewClaim, Outcome
from app.domain.placement import Prefer, prefer_among
from app.store.claims import preference as claim_preference
from app.store.claims import rows as claims
from app.store.database import Database

_REMEMBERED = 1000


class Preferences:
    """One process's claims with a preference. It remembers where each pool's queue of ready VMs began when it last looked, so
    that the dead index entries before that are not walked again.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._begins: dict[UUID, int] = {}

    async def claim(self, pool_id: UUID, claim: NewClaim, prefer: Prefer) -> Outcome:
        """A warm VM as preferred; None where none of those looked at is: any will do then. Raises DatabaseUnavailable."""
        key = claim.request.key
        async with self._db.begin() as tx:
            if key is not None and (known := await claims.by_key(tx, key)) is not None:
                return KnownClaim(known)
            places = await claim_preference.head(tx, pool_id, from_seq=self._begins.get(pool_id, 0))
            if not places and self._begins.pop(pool_id, None) is not None:
                places = await claim_preference.head(tx, pool_id, from_seq=0)
            if not places:
                return None
            if len(self._begins) >= _REMEMBERED:
                self._begins.clear()
            self._begins[pool_id] = places[0].seq
            claimed = await claim_preference.latest_by_node(tx, pool_id) if prefer.spread or prefer.pack else {}
            preferred = prefer_among(places, prefer, claimed)
            taken = await claim_preference.take(tx, pool_id, claim, preferred) if preferred else None
        if not isinstance(taken, claim_preference.KeyTaken):
            return taken
        # The other claim's transaction has committed: this one waited for that.
        async with self._db.begin() as tx:
            winner = await claims.by_key(tx, key) if key is not None else None
        return KnownClaim(winner) if winner is not None else None
