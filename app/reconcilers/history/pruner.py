"""Deletes history that is older than it is kept, as fast as it grows: small batches follow one another while there is anything to
delete, at a pace that leaves the database to the claims.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from app.config import Settings
from app.store import history
from app.store.database import Database
from app.store.history import Pruned
from app.store.pools import put_off
from app.store.pools import rows as pool_rows
from app.store.snapshots.rows import TAKES_KEPT

_BATCH = 1000
_DAY = 86_400.0
_Prune = Callable[..., Awaitable[Pruned]]
_KINDS: dict[str, _Prune] = {
    "events": history.prune_events,
    "claims": history.prune_claims,
    "vms": history.prune_vms,
}
log = structlog.get_logger(__name__)


class HistoryPruner:
    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._seconds = settings.history_days * _DAY
        self._rate = settings.history_rows_per_second
        self._positions: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    async def step(self) -> bool:
        """Deletes one batch of each kind. True if there may be more; once there is not, what has no rows left is deleted too."""
        more = False
        for kind, prune in _KINDS.items():
            more |= await self._prune(kind, prune)
        if more:
            return True
        self._positions.clear()
        await self._prune_rest()
        if any(self._counts.values()):
            log.info("history.pruned", **self._counts)
        self._counts.clear()
        return False

    async def _prune(self, kind: str, prune: _Prune) -> bool:
        began = time.monotonic()
        async with self._db.begin() as tx:
            if not await history.begin(tx):
                return False
            done = await prune(tx, seconds=self._seconds, limit=_BATCH, position=self._positions.get(kind))
        self._positions[kind] = done.position
        self._counts[kind] = self._counts.get(kind, 0) + done.count
        await asyncio.sleep(max(0.0, done.count / self._rate - (time.monotonic() - began)))
        return done.count == _BATCH

    async def _prune_rest(self) -> None:
        async with self._db.begin() as tx:
            await put_off.prune(tx)
            if await history.begin(tx):
                self._counts["takes"] = await history.prune_takes(tx, seconds=self._seconds, kept=TAKES_KEPT)
                self._counts["pools"] = await pool_rows.prune(tx, seconds=self._seconds)
