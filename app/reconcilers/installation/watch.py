"""Opens and closes the gate of one process, of whatever role, by what the installation's row and its Lease say.

The row alone says nothing at the start: in a database that was restored from a backup it says what was true then. So a process
first reads the Lease, or waits for the leading worker's word.
"""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from app.compute.gateway import Gateway
from app.domain.ownership import FRESH_SECONDS, lease_trouble
from app.errors import ClusterError, ClusterUnavailable
from app.gate import Gate
from app.store import installation
from app.store.database import Database
from app.store.installation import InstallationRow

_NO_WORKER = "no worker has looked at the VMs in the cluster yet; check that one is running"
_FIRST_LOOK_SECONDS = 2.0
log = structlog.get_logger(__name__)


class InstallationWatch:
    """Until `begin` or the first step has read the row, the `gate` is closed."""

    def __init__(self, db: Database, gateway: Gateway) -> None:
        self.gate = Gate()
        self._db = db
        self._gateway = gateway
        self._first: InstallationRow | None = None
        """What the row said when this process began to doubt it. None: it has not read it."""
        self._last: InstallationRow | None = None
        self._trusts = False

    async def begin(self) -> None:
        """The first look, before anything is served. A cluster that does not answer does not hold up the start. Raises DatabaseUnavailable."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_SECONDS):
                await self.step()

    async def step(self) -> bool:
        """Every few seconds, and when the row was written. Never asks to be run again at once."""
        row = await self._read()
        if row.waits is not None:
            self._doubt(row)
            reason = f"{row.waits}. An operator has to decide: emberpool adopt --dry-run and emberpool disown --dry-run tell what each would do"
            self.gate.set(claims=reason, work=reason)
            return False
        if not self._trusts:
            await self._try_to_trust(row)
        return False

    async def _read(self) -> InstallationRow:
        async with self._db.once() as tx:
            row = await installation.read(tx)
        self._gateway.ownership.identify(row.identity.id)
        last, self._last = self._last, row
        if last is None or last.identity.id != row.identity.id or row.progress.sequence < last.progress.sequence:
            self._doubt(row)
        return row

    def _doubt(self, row: InstallationRow) -> None:
        """The row may be of another state of the database than what this process knows."""
        self._first, self._trusts = row, False

    async def _try_to_trust(self, row: InstallationRow) -> None:
        if self._first is not None and row.confirmed_at != self._first.confirmed_at:
            self._trust()
        elif row.confirmed_at is None:
            self.gate.set(claims=None, work=_NO_WORKER)
        else:
            await self._ask_lease(row)

    async def _ask_lease(self, row: InstallationRow) -> None:
        try:
            lease = await self._gateway.ownership.read_lease()
        except (ClusterUnavailable, ClusterError) as error:
            if row.confirmed_age is not None and row.confirmed_age < FRESH_SECONDS:
                self._trust()
                return
            reason = f"the cluster cannot be asked ({error.detail.rstrip('.')}), and no worker has found them to be this database's lately"
            self.gate.set(claims=reason, work=reason)
            return
        now = datetime.now(UTC)
        trouble = lease_trouble(row.identity, row.progress, lease, now)
        if trouble is None and lease is not None and lease.holder == row.identity.id and lease.is_alive(now):
            self._trust()
            return
        reason = trouble.reason if trouble is not None else _NO_WORKER
        self.gate.set(claims=reason, work=reason)

    def _trust(self) -> None:
        self._trusts = True
        self.gate.set(claims=None, work=None)
