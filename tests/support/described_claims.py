"""One process that serves claims and makes VMs, each of its steps called by the test; and what VMs can start from."""

import json

from app.compute.vms import VmTemplate
from app.config import Settings
from app.domain.claims import DescribedClaimRequest
from app.domain.observation import Failure, WarmWhen
from app.domain.paths import ImageKind
from app.ids import new_id
from app.reconcilers.claims.failover import ClaimFailover
from app.reconcilers.claims.reaper import Reaper
from app.reconcilers.pools.planner import PoolPlanner
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.remover import VmRemover
from app.reconcilers.vms.status_writer import StatusWriter
from app.services.claims.service import ClaimService
from app.services.claims.waiters import Waiters
from app.services.paths.selector import PathSelector
from app.services.pools.service import put_pool
from app.store.claims.warm import WarmClaimStore
from app.store.database import Database
from tests.support.claim_services import stays_connected
from tests.support.rows import execute, fetch, scalar, spec

TEMPLATE = {"image": "registry.example/guest:1"}
SETTINGS = {
    "creates_per_second": 1000,
    "backoff_base_seconds": 0.001,
    "backoff_cap_seconds": 0.002,
    "breaker_failures": 3,
    "cluster_timeout_seconds": 1,
}
CRASHED = Failure("CrashLoopBackOff", "the guest does not start")


def described_request(**given) -> DescribedClaimRequest:
    return DescribedClaimRequest(**{"vm": TEMPLATE, **given})


class Process:
    """Nothing runs by itself. What it keeps in memory is gone with it, so that a second one stands for a restart, or a replica."""

    def __init__(self, db: Database, gateway, **settings) -> None:
        given = Settings(**{**SETTINGS, **settings})
        self.db = db
        self.gateway = gateway
        self.lane = WarmClaimStore(db.url)
        self.waiters = Waiters(db, self.lane)
        self.claim_service = ClaimService(db, self.lane, self.waiters, given)
        self.path_selector = PathSelector(db, gateway, self.claim_service, given)
        self.rerouting = ClaimFailover(db, gateway, given)
        self.reap = Reaper(db, given)
        self._backfill = PoolPlanner(db, every_seconds=1)
        self._provision = VmCreator(db, gateway, given)
        self._removal = VmRemover(db, gateway, given)
        self._observing = StatusWriter(db, gateway, given)

    async def close(self):
        await self.lane.close()

    async def claim(self, **given):
        """What a claim that describes its VM, and does not wait, is answered with."""
        return await self.path_selector.claim(described_request(**given), stays_connected)

    async def plan(self):
        await execute(self.db, "UPDATE pool_plan SET due_at = now()")
        await execute(self.db, "UPDATE pool SET backoff_until = NULL WHERE stalled_at IS NULL")
        await self._backfill.step()

    async def create(self):
        await execute(self.db, "UPDATE vm SET due_at = now() WHERE state = 'planned'")
        await self._provision.step()

    async def remove(self):
        await execute(self.db, "UPDATE vm SET due_at = now() WHERE work = 'remove'")
        await self._removal.step()

    async def see(self):
        """The watch tells what the cluster shows now."""
        await self._observing.apply_changes(list(self.gateway.vms.values()))

    async def boot(self):
        """All VMs that the cluster has become warm."""
        for name in list(self.gateway.vms):
            self.gateway.boot(name)
        await self.see()

    async def crash(self):
        """All VMs that boot fail."""
        for row in await fetch(self.db, "SELECT name FROM vm WHERE state = 'booting'"):
            self.gateway.change(row["name"], failure=CRASHED)
        await self.see()

    async def fail_once(self):
        """A VM is made, and fails."""
        await self.plan()
        await self.create()
        await self.crash()
        await self.remove()

    async def serve(self):
        """Everything until whoever waits has a VM."""
        await self.plan()
        await self.create()
        await self.boot()

    def shape(self, template=None, warm_when=WarmWhen.AGENT) -> str:
        return self.template(template, warm_when).shape

    def template(self, template=None, warm_when=WarmWhen.AGENT) -> VmTemplate:
        return self.gateway.expand(template or TEMPLATE, warm_when)

    async def make_pool(self, name="web", **given):
        return (await put_pool(self.db, self.gateway, name, spec(**{"template": TEMPLATE, **given}))).pool


async def make_snapshot(db: Database, name: str, shape: str, *, state="ready", memory=None):
    """`memory`: the spec of the VM whose memory it keeps."""
    snapshot_id = new_id()
    await execute(
        db,
        "INSERT INTO snapshot (id, name, spec, memory) VALUES (:id, :name, CAST(:spec AS jsonb), :memory)",
        id=snapshot_id,
        name=name,
        spec=json.dumps({"name": name, "source": {"pool": "web"}}),
        memory=memory is not None,
    )
    await execute(
        db,
        """INSERT INTO snapshot_take (id, snapshot_id, number, state, shape, ready_at, vm_spec, fingerprint)
        VALUES (gen_random_uuid(), :id, 1, CAST(:state AS text), :shape, CASE WHEN :state = 'ready' THEN now() END,
            CAST(:vm_spec AS jsonb), :fingerprint)""",
        id=snapshot_id,
        state=state,
        shape=shape,
        vm_spec=json.dumps(memory) if memory is not None else None,
        fingerprint="qemu 10" if memory is not None and state == "ready" else None,
    )


async def make_preload(db: Database, name: str, image=TEMPLATE["image"], *, pulled=1):
    await execute(
        db,
        """INSERT INTO preload (id, name, spec, state, image_kind, image, ready_at, status)
        VALUES (gen_random_uuid(), :name, '{}'::jsonb, CASE WHEN :pulled > 0 THEN 'ready' ELSE 'pulling' END, :kind, :image,
            CASE WHEN :pulled > 0 THEN now() END, jsonb_build_object('on', jsonb_build_object('pulled', CAST(:pulled AS int), 'wanted', 3)))""",
        name=name,
        kind=str(ImageKind.CONTAINER),
        image=image,
        pulled=pulled,
    )


async def live_vms(db: Database):
    return await fetch(db, "SELECT id, name, state, path, source, shape FROM vm WHERE ended_at IS NULL ORDER BY id")


async def claim_state(db: Database, claim_id):
    return await scalar(db, "SELECT state FROM claim WHERE id = :id", id=claim_id)
