"""Moves claims on whose path came to nothing, and lets hidden pools go that nobody needs any more."""

import time

from app.compute.gateway import Gateway
from app.config import Settings
from app.lifecycle.on_demand_pools import retire_idle_pools
from app.reconcilers.claims.failover_step import Rerouting
from app.store.database import Database

_RETIRE_EVERY_SECONDS = 60.0


class Reroute:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._rerouting = Rerouting(db, gateway, settings)
        self._retired_at = time.monotonic()

    async def step(self) -> bool:
        """One look at everything; True where there may be more."""
        more = await self._rerouting.step()
        if time.monotonic() - self._retired_at >= _RETIRE_EVERY_SECONDS:
            self._retired_at = time.monotonic()
            more |= await retire_idle_pools(self._db)
        return more
