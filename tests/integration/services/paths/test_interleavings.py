"""Steps of two processes in orders that are drawn: whoever claims, releases, plans, makes, loses or moves, nobody gets two VMs.

Each schedule runs with its steps side by side, on a real database; afterwards all faults are over, and what must hold holds.
"""

import asyncio
import random
from contextlib import suppress

import pytest

from app.domain.paths import StartPath
from app.errors import Conflict, DatabaseUnavailable, NoPath, NoWarmVm
from app.services.claims.lifecycle import release_claim
from app.services.pools.service import delete_pool, put_pool
from tests.support import store_invariants as invariants
from tests.support.described_claims import live_vms, make_preload, make_snapshot
from tests.support.rows import execute, fetch, spec

SCHEDULES = 8
STEPS = 40
KEYS = 5
SHAPES = [{"image": "registry.example/one:1"}, {"image": "registry.example/two:1"}]
POOL = "web"


class Schedule:
    def __init__(self, db, gateway, start, seed):
        self.db = db
        self.gateway = gateway
        self.draw = random.Random(seed)
        self.replicas = [start(breaker_failures=100), start(breaker_failures=100)]
        self.bodies = {}
        self.answers = {}

    async def run(self):
        for _ in range(STEPS):
            together = self.draw.randint(1, 4)
            await asyncio.gather(*(self._step() for _ in range(together)))

    async def _step(self):
        replica = self.draw.choice(self.replicas)
        step = self.draw.choices(
            ["claim", "release", "plan", "create", "boot", "crash", "remove", "reroute", "reap", "pool", "unpool"],
            [8, 2, 6, 6, 4, 2, 3, 4, 2, 1, 1],
        )[0]
        with suppress(
            NoPath, NoWarmVm, Conflict, DatabaseUnavailable
        ):  # said no, or lost a deadlock: nothing was changed
            await getattr(self, f"_{step}")(replica)

    async def _claim(self, replica):
        key = str(self.draw.randrange(KEYS))
        body = self.bodies.setdefault(
            key,
            {
                "vm": self.draw.choice(SHAPES),
                "paths": self.draw.choice([tuple(StartPath), (StartPath.SNAPSHOT, StartPath.COLD)]),
            },
        )
        answer = await replica.claim(key=key, request_hash=key, **body)
        found = answer.claim.id
        self.answers.setdefault(key, []).append(found)

    async def _release(self, _replica):
        known = [each for ids in self.answers.values() for each in ids]
        if known:
            await release_claim(self.db, self.draw.choice(known))

    async def _plan(self, replica):
        await replica.plan()

    async def _create(self, replica):
        await replica.create()

    async def _boot(self, replica):
        await replica.boot()

    async def _crash(self, replica):
        await replica.crash()

    async def _remove(self, replica):
        await replica.remove()

    async def _reroute(self, replica):
        await replica.rerouting.step(patience_seconds=0)

    async def _reap(self, replica):
        await replica.reap.step()

    async def _pool(self, replica):
        rows = await fetch(self.db, "SELECT 1 FROM pool WHERE name = :name AND deleted_at IS NULL", name=POOL)
        if not rows:
            await put_pool(self.db, self.gateway, POOL, spec(size=1, template=self.draw.choice(SHAPES)))
            replica.path_selector.forget_pools()

    async def _unpool(self, _replica):
        rows = await fetch(self.db, "SELECT 1 FROM pool WHERE name = :name AND deleting_at IS NULL", name=POOL)
        if rows:
            await delete_pool(self.db, POOL, force=False)

    async def settle(self):
        """No VM fails any more, and everything there is to do is done."""
        replica = self.replicas[0]
        for name in list(self.gateway.vms):
            self.gateway.change(name, failure=None)
        for _ in range(8):
            await execute(
                self.db, "UPDATE vm SET lease_expires_at = now() - interval '1 s' WHERE lease_expires_at IS NOT NULL"
            )
            await replica.rerouting.step(patience_seconds=0)
            await replica.serve()
            await replica.reap.step()
            await replica.remove()


@pytest.mark.parametrize("seed", range(SCHEDULES))
async def test_whatever_the_order(db, gateway, start, seed):
    schedule = Schedule(db, gateway, start, seed)
    await make_snapshot(db, "snap", schedule.replicas[0].shape(SHAPES[0]))
    await make_preload(db, "near", SHAPES[1]["image"])
    await schedule.run()
    await invariants.check(db)
    await schedule.settle()
    await invariants.check(db)

    # A key has one claim at a time: one that ended without a VM gives its key to the next.
    claims = {row["id"]: row for row in await fetch(db, "SELECT id, state, vm_id, idem_key, shape, path FROM claim")}
    for key, ids in schedule.answers.items():
        lasting = {each for each in ids if claims[each]["idem_key"] == key}
        assert len(lasting) <= 1, (key, lasting)
        given = {claims[each]["vm_id"] for each in ids if claims[each]["vm_id"] is not None}
        assert len(given) <= 1, (key, given)
    assert {row["state"] for row in claims.values()} <= {"bound", "released", "failed"}

    # As many VMs as bound claims, and the pool's own.
    vms = await live_vms(db)
    bound = [row for row in claims.values() if row["state"] == "bound"]
    size = sum(
        row["size"]
        for row in await fetch(db, "SELECT (spec->>'size')::int AS size FROM pool WHERE deleting_at IS NULL")
    )
    assert sorted(vm["state"] for vm in vms) == ["claimed"] * len(bound) + ["ready"] * size
    assert {vm.vm_id for vm in gateway.vms.values()} == {str(vm["id"]) for vm in vms}
    shapes = {vm["id"]: vm["shape"] for vm in vms}
    assert all(shapes[row["vm_id"]] == row["shape"] for row in bound)
