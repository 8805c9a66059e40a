"""The users' pools that serve a shape, as they were read a moment ago."""

import time

from app.services.single_flight import SingleFlight
from app.store.database import Database
from app.store.pools import on_demand
from app.store.pools.on_demand import ServingPool

_CACHE_SECONDS = 2.0
_CACHE_SIZE = 1000


class ServingPools:
    """Cached for two seconds in one process: a burst of claims of one shape reads once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[str, tuple[float, list[ServingPool]]] = {}
        self._reading: SingleFlight[str, list[ServingPool]] = SingleFlight(self._read)

    def recall(self, shape: str) -> list[ServingPool] | None:
        """What the cache has of the shape; None: nothing, or nothing that is fresh."""
        known = self._known.get(shape)
        return known[1] if known is not None and known[0] > time.monotonic() else None

    async def get(self, shape: str) -> list[ServingPool]:
        """Raises DatabaseUnavailable."""
        known = self.recall(shape)
        return await self._reading.get(shape) if known is None else known

    def forget(self) -> None:
        """Pools may have changed."""
        self._known.clear()

    async def _read(self, shape: str) -> list[ServingPool]:
        good_until = time.monotonic() + _CACHE_SECONDS
        async with self._db.begin() as tx:
            found = await on_demand.serving(tx, shape)
        if len(self._known) >= _CACHE_SIZE:
            self._known.clear()
        self._known[shape] = (good_until, found)
        return found
