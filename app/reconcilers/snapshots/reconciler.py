"""Takes snapshots, keeps those of pools fresh, and removes what is over: each snapshot by one worker at a time, under a lease.

Beside that it compares, once in an interval and in one replica, what the cluster has with what the rows know: a snapshot of
ours that no row wants is removed, and a take whose object has gone serves no longer.
"""

import random
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.failures import retry_delay
from app.domain.snapshots import TAKE_ENDED, Sight, TakeState
from app.errors import ClusterError, ClusterUnavailable, Conflict
from app.ids import new_id
from app.reconcilers.runtime.loop import at_once
from app.reconcilers.snapshots.take_steps import LeaseLost, Taking
from app.reconcilers.vms.outcomes import FateRules
from app.reconcilers.vms.stranded import give_up_stranded
from app.store import leases
from app.store.database import Database
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import work as snapshot_work
from app.store.snapshots.work import SnapshotWork
from app.telemetry import CLUSTER_CALLS, ORPHANS

SWEEP = "snapshot-sweep"
_STEPS_AT_ONCE = 20
_STRANDED_AT_ONCE = 200
_RETRY_CAP_SECONDS = 60.0
_DAY = 86_400.0
log = structlog.get_logger(__name__)


class Snapshots:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._cluster = gateway.snapshots
        self._settings = settings
        self._rules = FateRules.of(settings)
        self.token = new_id()
        self._taking = Taking(db, gateway, settings, token=self.token)

    async def step(self) -> bool:
        """Goes on with one batch of snapshots, as far as each can now; True where there may be more."""
        limit = self._settings.provision_concurrency
        async with self._db.begin() as tx:
            taken = await snapshot_work.take_due(
                tx, token=self.token, limit=limit, seconds=self._settings.work_lease_seconds
            )
        await at_once(self._advance, taken)
        return len(taken) == limit

    async def sweep(self) -> bool:
        """Compares the cluster with the rows, where no replica has done so for an interval. Never asks to be run again at once."""
        async with self._db.begin() as tx:
            # Never given back: it ends with the interval, and whoever comes first takes the next one.
            if not await leases.take(tx, SWEEP, holder="sweep", token=new_id(), seconds=self._settings.relist_seconds):
                return False
            await snapshot_rows.prune(tx, seconds=self._settings.history_days * _DAY)
            serving = await snapshot_work.ready_objects(tx)
        # Read before the list, so that what is ready now must be in it; what is in it is asked for after it, so that its row
        # must be there by then.
        try:
            seen = await self._cluster.all()
        except ClusterUnavailable:
            raise
        except ClusterError as error:
            # No right to, or no such kind there: a snapshot that is asked for will say so.
            log.warning("snapshot.not_compared", error=error.detail)
            return False
        await self._miss(serving, {sight.take_id: sight for sight in seen})
        await self._give_up_stranded()
        await self._remove_orphans(seen)
        return False

    async def hand_back(self) -> None:
        """What this worker still holds is free for another at once."""
        async with self._db.begin() as tx:
            await snapshot_work.hand_back(tx, token=self.token)

    async def _advance(self, item: SnapshotWork) -> None:
        rest: float | None = None
        well = True
        try:
            for _ in range(_STEPS_AT_ONCE):
                rest = await self._taking.step(item)
                if rest is not None:
                    break
        except LeaseLost:
            log.info("snapshot.lease_lost", snapshot=item.name)
            return
        except ClusterUnavailable as error:
            CLUSTER_CALLS.labels(call="snapshot", outcome="unavailable").inc()
            well, rest = False, await self._put_off(item, f"the cluster is away: {error.detail}")
        except (ClusterError, Conflict) as error:
            CLUSTER_CALLS.labels(call="snapshot", outcome=error.code).inc()
            well, rest = False, await self._put_off(item, error.detail)
        async with self._db.begin() as tx:
            await snapshot_work.rest(tx, item.id, token=self.token, seconds=rest or 0.0, well=well)

    async def _put_off(self, item: SnapshotWork, why: str) -> float:
        """Seconds until it is tried again."""
        seconds = retry_delay(
            item.attempts,
            base_seconds=self._settings.backoff_base_seconds,
            cap_seconds=min(_RETRY_CAP_SECONDS, self._settings.backoff_cap_seconds),
            roll=random.random(),  # noqa: S311 - jitter, not a secret
        )
        log.info("snapshot.put_off", snapshot=item.name, why=why, seconds=round(seconds, 1))
        try:
            await self._taking.note(item, why)
        except LeaseLost:
            log.info("snapshot.lease_lost", snapshot=item.name)
        return seconds

    async def _miss(self, serving: dict[UUID, UUID], seen: dict[str | None, Sight]) -> None:
        """Takes that were ready, and of which the cluster has nothing any more, serve no longer."""
        for take_id, snapshot_id in serving.items():
            sight = seen.get(str(take_id))
            if sight is not None and not sight.deleting and not sight.failed:
                continue
            async with self._db.begin() as tx:
                take = await snapshot_rows.get_take(tx, take_id)
                if take is None or take.state is not TakeState.READY:
                    continue
                reason = "its VirtualMachineSnapshot was deleted in the cluster"
                if await snapshot_rows.move_take(tx, take, TakeState.FAILING, reason=reason):
                    await snapshot_rows.make_due(tx, snapshot_id)
                    log.warning("snapshot.lost", take=str(take_id))

    async def _give_up_stranded(self) -> None:
        """VMs that wait for disks which nothing is left to make from: whoever waits for them is to look for another path."""
        async with self._db.begin() as tx:
            stranded = await snapshot_work.stranded(tx, limit=_STRANDED_AT_ONCE)
        for vm_id, snapshot in stranded.items():
            reason = f"snapshot {snapshot!r} was deleted in the cluster before this VM had its disks"
            await give_up_stranded(self._db, [vm_id], reason=reason, rules=self._rules)

    async def _remove_orphans(self, seen: tuple[Sight, ...]) -> None:
        by_take = {take_id: sight for sight in seen if (take_id := _take_id(sight)) is not None}
        async with self._db.begin() as tx:
            known = await snapshot_work.states_of(tx, list(by_take))
        for take_id, sight in by_take.items():
            state = known.get(take_id)
            if sight.deleting or (state is not None and state not in TAKE_ENDED):
                continue
            ORPHANS.inc()
            log.warning("snapshot.orphan_removed", name=sight.name, uid=sight.uid)
            await self._cluster.remove(name=sight.name, uid=sight.uid, take_id=str(take_id))


def _take_id(sight: Sight) -> UUID | None:
    """None: the label was tampered with, and the object is nobody's that we know."""
    try:
        return UUID(sight.take_id or "")
    except ValueError:
        return None
