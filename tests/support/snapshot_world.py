"""A snapshot's world, moved by hand: its worker, and all that makes and removes the VMs that it needs."""

from dataclasses import dataclass, field

from app.domain.snapshot_specs import SnapshotSpec
from app.reconcilers.pools.planner import PoolPlanner
from app.reconcilers.snapshots.reconciler import SnapshotReconciler
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.remover import VmRemover
from app.reconcilers.vms.status_writer import StatusWriter
from app.services.pools.service import put_pool
from app.services.snapshots.service import create_snapshot
from app.store.database import Database
from app.store.snapshots import rows as snapshot_rows
from tests.support.listing import write_list
from tests.support.rows import execute, fetch, scalar, spec

TEMPLATE = {"spec": {"domain": {}, "volumes": [{"name": "root", "dataVolume": {"name": "root"}}]}}
DISKLESS = {"spec": {"domain": {}, "volumes": []}}
_MOST_TURNS = 40


class Died(BaseException):
    """The process is killed."""


@dataclass
class World:
    db: Database
    gateway: object
    settings: object
    boots: bool = True
    slow: str = "-"
    """VMs whose names begin so do not come up."""
    worker: SnapshotReconciler = field(init=False)

    def __post_init__(self):
        self.worker = SnapshotReconciler(self.db, self.gateway, self.settings)

    async def make_pool(self, name="web", *, size=0, template=TEMPLATE, **given):
        return (await put_pool(self.db, self.gateway, name, spec(size=size, template=template, **given))).pool

    async def ask(self, name="ready", **given):
        wanted = SnapshotSpec(**{"name": name, "source": {"pool": "web"}, **given})
        return (await create_snapshot(self.db, self.gateway, wanted)).snapshot

    async def look(self):
        """One look of the worker at every snapshot, whenever the next would be due."""
        await execute(self.db, "UPDATE snapshot SET due_at = now(), lease_token = NULL, lease_expires_at = NULL")
        while await self.worker.step():
            pass

    async def turn(self):
        """One look, and one of everybody around."""
        await self.look()
        await self.surround()

    async def surround(self):
        """Everything but the snapshots' worker, once: VMs are planned, made, booted, seen and removed."""
        await execute(self.db, "UPDATE pool_plan SET due_at = now()")
        await execute(self.db, "UPDATE vm SET due_at = now() WHERE ended_at IS NULL")
        await PoolPlanner(self.db, every_seconds=1).step()
        await VmCreator(self.db, self.gateway, self.settings).step()
        if self.boots:
            for name, vm in list(self.gateway.vms.items()):
                if vm.phase is None and name not in self.gateway.snapshots.halted and not name.startswith(self.slow):
                    self.gateway.boot(name)
        await write_list(StatusWriter(self.db, self.gateway, self.settings), self.gateway.listed())
        await VmRemover(self.db, self.gateway, self.settings).step()

    async def until(self, state, *, number=1, name="ready"):
        """Turns until the take is in `state`; its row."""
        for _ in range(_MOST_TURNS):
            take = await self.take(number=number, name=name)
            if take is not None and take["state"] == state:
                return take
            await self.turn()
        raise AssertionError(f"not {state}, but {take and (take['state'], take['reason'])}")

    async def settle(self):
        """Turns until nothing is left to be done for VMs and claims."""
        for _ in range(_MOST_TURNS):
            if not await scalar(self.db, "SELECT count(*) FROM vm WHERE ended_at IS NULL AND state <> 'ready'"):
                return
            await self.turn()
        raise AssertionError(await fetch(self.db, "SELECT name, state, reason FROM vm WHERE ended_at IS NULL"))

    async def take(self, *, number=1, name="ready"):
        query = """SELECT t.* FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
                   WHERE s.name = :name AND t.number = :number"""
        rows = await fetch(self.db, query, name=name, number=number)
        return rows[0] if rows else None

    async def states(self, name="ready"):
        async with self.db.begin() as tx:
            row = await snapshot_rows.get(tx, name)
            takes = (await snapshot_rows.takes_of(tx, [row.id]))[row.id]
        return [str(take.state) for take in takes]

    async def claims(self):
        """State by state, of the claims that snapshots made."""
        rows = await fetch(self.db, "SELECT state FROM claim WHERE idem_key LIKE 'snapshot/%' ORDER BY id")
        return [row["state"] for row in rows]

    async def nothing_is_left(self):
        """No VM, no open claim, no object but those of takes that serve."""
        await self.settle()
        assert not self.gateway.vms
        assert not await scalar(self.db, "SELECT count(*) FROM claim WHERE state IN ('pending', 'bound')")
        serving = await scalar(self.db, "SELECT count(*) FROM snapshot_take WHERE state = 'ready'")
        assert len(self.gateway.snapshots.objects) == serving
