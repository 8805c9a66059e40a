"""The leading worker keeps the installation's Lease, and looks whose the VMs in the cluster are before it does so for the first time.

    looks --theirs, or newer than the database--> waits for an operator --decided--> looks
      `---ours--> keeps the Lease --somebody else wrote it--> looks

The database and the Lease count the renewals together, the database first. So the database is never behind the Lease, unless it
was restored from a backup or copied. Why it is so: docs/adr/0008-installation.md.
"""

import time
from datetime import UTC, datetime

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.ownership import LeaseRecord, Trouble, Word, instance_trouble, lease_trouble, survey_trouble
from app.errors import ClusterConflict, ClusterError, ClusterUnavailable
from app.ids import new_id
from app.lifecycle.adoption import Situation, adopt, describe, disown
from app.store import installation, leases, watch_state
from app.store.database import Database, Tx
from app.store.installation import InstallationRow
from app.telemetry import INSTALLATION_WAITS

LEASE = "installation"
_LOOK_AGAIN_SECONDS = 5.0
"""While an operator has not decided. Each look lists all VMs."""
log = structlog.get_logger(__name__)


class InstallationKeeper:
    """`replica` names this process to people who look at the Lease."""

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, *, replica: str) -> None:
        self._db = db
        self._cluster = gateway.ownership
        self._settings = settings
        self._replica = replica
        self._token = new_id()
        self._renewed: int | None = None
        """The renewal that this process made last, after it had looked. None: it has not looked."""
        self._renewed_at = 0.0
        self._written = False
        """Whether the Lease shows that renewal."""
        self._look_again_at = 0.0
        self._described: object = None

    async def step(self) -> bool:
        """Looks, or keeps the Lease, if this replica leads. Raises ClusterUnavailable while it cannot look."""
        async with self._db.begin() as tx:
            if not await self._lead(tx):
                self._renewed = None
                return False
            row = await installation.read(tx)
        self._cluster.identify(row.identity.id)
        INSTALLATION_WAITS.set(row.waits is not None)
        try:
            await self._act(row)
        except (ClusterUnavailable, ClusterError) as error:  # without the right to Leases nothing can be known either
            await self._tell_why_not_listed(error.detail)
            raise ClusterUnavailable(error.detail, retry_after=error.retry_after) from error
        return False

    async def _tell_why_not_listed(self, reason: str) -> None:
        """Nothing lists the VMs before this has succeeded once, so that nobody else can tell why they were never listed."""
        async with self._db.begin() as tx:
            watch = await watch_state.get(tx, watch_state.VMS)
            if watch is None or watch.list_age_seconds is None:
                await watch_state.write_broken(tx, watch_state.VMS, holder=self._replica, reason=reason)

    async def _act(self, row: InstallationRow) -> None:
        if row.waits is not None or not self._goes_on(row):
            if row.waits is None or row.decision is not None or time.monotonic() >= self._look_again_at:
                await self._look(row)
            return
        if row.decision is not None:
            await self._carry_out(row, await self._survey(row))
            return
        if row.held != self._described:
            await self._describe_held(row)
        if not self._written or self._is_due:
            await self._renew(row)

    async def release(self) -> None:
        """Lets another replica lead at once."""
        async with self._db.begin() as tx:
            await leases.release(tx, LEASE, token=self._token)

    async def _lead(self, tx: Tx) -> bool:
        seconds = self._settings.watch_lease_seconds
        return await leases.acquire(tx, LEASE, holder=self._replica, token=self._token, seconds=seconds)

    def _goes_on(self, row: InstallationRow) -> bool:
        """Whether the database is the one that this process wrote the last renewal to, in the state that it was in then or later."""
        return (row.progress.sequence, row.progress.writer) == (self._renewed, str(self._token))

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._renewed_at >= self._settings.installation_renew_seconds

    async def _look(self, row: InstallationRow) -> None:
        situation = await self._survey(row, looking=True)
        if situation.trouble is None:
            await self._begin(situation.lease)
        elif row.decision is not None:
            await self._carry_out(row, situation)
        else:
            await self._wait(situation, situation.trouble)

    async def _survey(self, row: InstallationRow, *, looking: bool = False) -> Situation:
        """`looking`: whether there may be trouble. Otherwise only what is held is to be decided."""
        lease = await self._cluster.read_lease()
        found = await self._cluster.survey()
        async with self._db.begin() as tx:
            known = await installation.know(tx, found)
        trouble = None
        if looking:
            here = (self._settings.namespace, self._settings.instance)
            trouble = (
                instance_trouble((row.namespace, row.instance), here)
                or lease_trouble(row.identity, row.progress, lease, datetime.now(UTC))
                or survey_trouble(row.identity, found, known)
            )
        return Situation(row, found, known, trouble, lease)

    async def _wait(self, situation: Situation, trouble: Trouble) -> None:
        self._renewed, self._look_again_at = None, time.monotonic() + _LOOK_AGAIN_SECONDS
        async with self._db.begin() as tx:
            new = await installation.wait(tx, trouble.reason, describe(situation))
        if new:
            log.error(
                "installation.waits", reason=trouble.reason, advice="emberpool adopt --dry-run, or disown --dry-run"
            )

    async def _carry_out(self, row: InstallationRow, situation: Situation) -> None:
        refused = situation.refusal if row.decision is Word.ADOPT else None
        async with self._db.begin() as tx:
            if not await leases.holds(tx, LEASE, token=self._token):
                return
            if refused is not None:
                await installation.refuse(tx, f"Refused to adopt: {refused}")
                log.warning("installation.refused", reason=refused)
                return
            outcome = await (adopt if row.decision is Word.ADOPT else disown)(tx, situation)
        self._renewed = None
        log.warning("installation.decided", outcome=outcome)

    async def _begin(self, lease: LeaseRecord | None) -> None:
        """The objects are ours. The Lease first: of two services that look at the same moment, one finds it written by the other."""
        sequence = await self._advance(confirmed=False)
        await self._write_lease(lease, sequence)
        async with self._db.begin() as tx:
            confirmed = await installation.confirm(tx, sequence=sequence, writer=self._token)
        if confirmed:
            log.info("installation.kept", sequence=sequence)
            self._renewed, self._renewed_at, self._written = sequence, time.monotonic(), True

    async def _renew(self, row: InstallationRow) -> None:
        """The database first, so that it is never behind the Lease. If the cluster does not answer, the database goes on alone."""
        if self._is_due:
            self._renewed, self._renewed_at = await self._advance(confirmed=True), time.monotonic()
        self._written = False
        lease = await self._cluster.read_lease()
        trouble = lease_trouble(row.identity, row.progress, lease, datetime.now(UTC))
        if trouble is not None:
            self._renewed = None
            async with self._db.begin() as tx:
                await installation.wait(tx, trouble.reason, {})
            log.error("installation.waits", reason=trouble.reason)
            return
        await self._write_lease(lease, self._renewed or 0)
        self._written = True

    async def _advance(self, *, confirmed: bool) -> int:
        where = {"namespace": self._settings.namespace, "instance": self._settings.instance}
        async with self._db.begin() as tx:
            return await installation.advance(tx, writer=self._token, confirmed=confirmed, **where)

    async def _write_lease(self, before: LeaseRecord | None, sequence: int) -> None:
        try:
            await self._cluster.write_lease(before, sequence=sequence, writer=str(self._token), replica=self._replica)
        except ClusterConflict as error:
            raise ClusterUnavailable(f"{error.detail} It is read again.", retry_after=1) from error

    async def _describe_held(self, row: InstallationRow) -> None:
        situation = await self._survey(row) if row.held else None
        async with self._db.begin() as tx:
            await installation.find(tx, describe(situation) if situation is not None else {})
        self._described = row.held
