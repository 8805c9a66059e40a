"""Claims whose clients have gone before they were answered, and that no idempotency key can find: they are ended, so that their
VMs do not stand idle until the lease expires.

The VM is destroyed like that of any released claim, although nobody was ever told of it: a VM that goes back into the queue
would need a way from `claimed` to `ready`, and whoever reads the rows relies on there being none.
"""

import time
from uuid import UUID

import structlog

from app.lifecycle.claims import release
from app.store.claims import rows as claims
from app.store.database import Database

_AT_ONCE = 50
_KEPT_SECONDS = 600.0
"""How long a claim is looked for that is not there: its commit may still wait for a synchronous standby."""
log = structlog.get_logger(__name__)


class AbandonedClaims:
    """Of one process. Those of a process that dies are ended by their leases."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._since: dict[UUID, float] = {}

    def add(self, claim_id: UUID) -> None:
        self._since[claim_id] = time.monotonic()

    async def end_some(self) -> None:
        """Ends those that are there. Raises DatabaseUnavailable."""
        for claim_id in list(self._since)[:_AT_ONCE]:
            async with self._db.begin() as tx:
                found = await claims.get(tx, claim_id)
                if found is not None:
                    await release(tx, claim_id, reason="its client had disconnected before it was answered")
            since = self._since.pop(claim_id)
            if found is not None:
                log.info("claim.abandoned", claim=str(claim_id))
            elif time.monotonic() - since < _KEPT_SECONDS:
                self._since[claim_id] = since  # behind the others
