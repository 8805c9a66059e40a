"""Claims that would rather have one warm VM than another: by zone, by node, spread or packed.

A wish makes a claim look at the head of the queue before it takes from there; it never makes it wait, or go without.
"""

from uuid import UUID

from app.domain.placement import Prefer, prefer_among
from app.store.claims import preference as claim_preference
from app.store.claims import rows as claims
from app.store.claims.warm import Bound, ClaimRequest, Known
from app.store.database import Database

_REMEMBERED = 1000


class Preferences:
    """One process's claims with a wish. It remembers where each pool's queue began when it last looked: what an old snapshot
    keeps of the claims before that is not walked again.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._begins: dict[UUID, int] = {}

    async def claim(self, pool_id: UUID, request: ClaimRequest, prefer: Prefer) -> Bound | Known | None:
        """A warm VM that is as wished; None where none of those looked at is: any will do then. Raises DatabaseUnavailable."""
        async with self._db.begin() as tx:
            if request.key is not None and (known := await claims.by_key(tx, request.key)) is not None:
                return Known(known)
            places = await claim_preference.head(tx, pool_id, from_seq=self._begins.get(pool_id, 0))
            if not places and self._begins.pop(pool_id, None) is not None:
                places = await claim_preference.head(tx, pool_id, from_seq=0)
            if not places:
                return None
            if len(self._begins) >= _REMEMBERED:
                self._begins.clear()
            self._begins[pool_id] = places[0].seq
            claimed = await claim_preference.latest_by_node(tx, pool_id) if prefer.spread or prefer.pack else {}
            wished = prefer_among(places, prefer, claimed)
            taken = await claim_preference.take(tx, pool_id, request, wished) if wished else None
        if not isinstance(taken, claim_preference.KeyTaken):
            return taken
        # The other claim's transaction has committed: that is what this one waited for.
        async with self._db.begin() as tx:
            winner = await claims.by_key(tx, request.key) if request.key is not None else None
        return Known(winner) if winner is not None else None
