"""Compares the cluster's snapshots with the rows: removes those that no row wants, and fails takes whose object has gone."""

from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.ownership import Orphan
from app.domain.snapshots import TAKE_ENDED, SnapshotStatus, TakeState
from app.errors import ClusterError, ClusterUnavailable
from app.ids import new_id
from app.reconcilers.installation.orphans import Orphanage
from app.reconcilers.vms.outcomes import give_up_stranded
from app.store import installation, leases
from app.store.database import Database
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import work as snapshot_work
from app.telemetry import ORPHANS

LEASE = "snapshot-sweep"
_STRANDED_AT_ONCE = 200
_DAY = 86_400.0
log = structlog.get_logger(__name__)


class SnapshotSweeper:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._cluster = gateway.snapshots
        self._settings = settings
        self._orphanage = Orphanage("VirtualMachineSnapshot", settings)

    async def step(self) -> bool:
        """One comparison, unless a replica made one within the interval. Never asks to be run again at once."""
        settings = self._settings
        async with self._db.begin() as tx:
            # Never released: it ends with the interval, and whoever comes first then acquires it.
            if not await leases.acquire(tx, LEASE, holder="sweep", token=new_id(), seconds=settings.relist_seconds):
                return False
            await snapshot_rows.prune(tx, seconds=settings.history_days * _DAY)
            ready = await snapshot_work.ready_objects(tx)
        # What was ready before the list must be in it. What is in the list had its row before: that is looked up after it.
        try:
            found = await self._cluster.all()
        except ClusterUnavailable:
            raise
        except ClusterError as error:
            # The right to list them is missing, or the cluster has no such kind. A snapshot that is asked for will say so.
            log.warning("snapshot.sweep_refused", error=error.detail)
            return False
        await self._fail_missing(ready, {status.take_id: status for status in found})
        await self._give_up_stranded()
        await self._remove_orphans(found)
        return False

    async def _fail_missing(self, ready: dict[UUID, UUID], found: dict[str | None, SnapshotStatus]) -> None:
        """Takes that were ready, and whose object the cluster has lost."""
        for take_id, snapshot_id in ready.items():
            status = found.get(str(take_id))
            if status is not None and not status.deleting and not status.failed:
                await self._note_stale(take_id, snapshot_id, status)
                continue
            async with self._db.begin() as tx:
                take = await snapshot_rows.get_take(tx, take_id)
                if take is None or take.state is not TakeState.READY:
                    continue
                reason = "its VirtualMachineSnapshot was deleted in the cluster"
                if await snapshot_rows.move_take(tx, take, TakeState.FAILING, reason=reason):
                    await snapshot_rows.make_due(tx, snapshot_id)
                    log.warning("snapshot.lost", take=str(take_id))

    async def _note_stale(self, take_id: UUID, snapshot_id: UUID, status: SnapshotStatus) -> None:
        if status.memory is None or status.memory.stale_reason is None:
            return
        async with self._db.begin() as tx:
            if await snapshot_rows.mark_stale(tx, take_id, status.memory.stale_reason):
                await snapshot_rows.make_due(tx, snapshot_id)
                log.warning("snapshot.stale", take=str(take_id), reason=status.memory.stale_reason)

    async def _give_up_stranded(self) -> None:
        async with self._db.begin() as tx:
            stranded = await snapshot_work.stranded(tx, limit=_STRANDED_AT_ONCE)
        for vm_id, snapshot in stranded.items():
            reason = f"snapshot {snapshot!r} was deleted in the cluster before this VM had its disks"
            await give_up_stranded(self._db, [vm_id], reason=reason, settings=self._settings)

    async def _remove_orphans(self, found: tuple[SnapshotStatus, ...]) -> None:
        by_take = {take_id: status for status in found if (take_id := _take_id(status)) is not None}
        async with self._db.begin() as tx:
            known = await snapshot_work.states_of(tx, list(by_take))
            orphans = [
                Orphan(status.name, status.uid, status.installation, has_row=take_id in known, precious=True)
                for take_id, status in by_take.items()
                if not status.deleting and known.get(take_id, TakeState.FAILED) in TAKE_ENDED
            ]
            identity = await installation.read_identity(tx)
            removable = await self._orphanage.sort(tx, identity, orphans, listed=len(found))
        removed = {each.uid for each in removable}
        for take_id, status in by_take.items():
            if status.uid not in removed:
                continue
            ORPHANS.inc()
            log.warning("snapshot.orphan_removed", name=status.name, uid=status.uid)
            await self._cluster.remove(name=status.name, uid=status.uid, take_id=str(take_id))


def _take_id(status: SnapshotStatus) -> UUID | None:
    """None: somebody changed the label, and the object belongs to nobody that we know."""
    try:
        return UUID(status.take_id or "")
    except ValueError:
        return None
