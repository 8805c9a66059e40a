"""The planner's loop: every pool that is due, one short transaction each, those below their floor first.

Two replicas never plan one pool at the same moment: the pool's row in `pool_plan` is locked while it is planned, which
takes milliseconds and calls nobody.
"""

from uuid import UUID

from app.lifecycle.placement import Placing
from app.reconcilers.pools.plan_pool import plan_next_pool
from app.store.database import Database

_AT_ONCE = 200


class Backfill:
    def __init__(self, db: Database, *, every_seconds: float, placing: Placing | None = None) -> None:
        """Without `placing` VMs are made whether there is room for them or not."""
        self._db = db
        self._every_seconds = every_seconds
        self._placing = placing

    async def step(self) -> bool:
        """Plans every pool that is due, each once."""
        planned: list[UUID] = []
        for _ in range(_AT_ONCE):
            pool_id = await plan_next_pool(
                self._db, every_seconds=self._every_seconds, skip=tuple(planned), placing=self._placing
            )
            if pool_id is None:
                break
            planned.append(pool_id)
        return len(planned) == _AT_ONCE
