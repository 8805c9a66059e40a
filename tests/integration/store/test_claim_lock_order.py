"""Everything that moves claims, side by side: nobody waits in a circle, and the rows agree at every moment."""

import asyncio

from app.domain.states import ClaimState, VmState
from app.store.claims import rows as claims
from app.store.claims.warm import WarmClaimStore
from app.store.vms import rows as vms
from tests.support import store_invariants as invariants
from tests.support.claim_rows import bind, end, wait_for_vm
from tests.support.rows import fetch, make_pool, make_vms, request

_ROUNDS = 15


class Bustle:
    """One coroutine for each kind of writer. A deadlock raises in one of them (Postgres gives up on one side)."""

    def __init__(self, db, pool):
        self.db = db
        self.pool = pool
        self.lane = WarmClaimStore(db.url)

    async def arrive(self):
        for _ in range(2 * _ROUNDS):
            await wait_for_vm(self.db, self.pool)

    async def supply(self):
        for _ in range(_ROUNDS):
            await make_vms(self.db, self.pool, 3)
            await bind(self.db, self.pool)

    async def claim(self):
        for _ in range(_ROUNDS):
            await self.lane.claim(self.pool.id, [request(f"key-{n}") for n in range(3)], from_start=True)
        await self.lane.close()

    async def bind(self):
        for _ in range(2 * _ROUNDS):
            await bind(self.db, self.pool, limit=3)

    async def leave(self):
        for _ in range(_ROUNDS):
            rows = await fetch(self.db, "SELECT id FROM claim WHERE ended_at IS NULL ORDER BY random() LIMIT 4")
            await end(self.db, [row["id"] for row in rows])

    async def hold(self):
        for _ in range(_ROUNDS):
            for row in await fetch(self.db, "SELECT id FROM claim WHERE state = 'pending' ORDER BY random() LIMIT 2"):
                async with self.db.begin() as tx:
                    await claims.keep_place(tx, row["id"], seconds=60)

    async def die(self):
        for _ in range(_ROUNDS):
            for row in await fetch(
                self.db, "SELECT id, vm_id FROM claim WHERE state = 'bound' ORDER BY random() LIMIT 1"
            ):
                async with self.db.begin() as tx:
                    if await claims.has_vm(tx, row["id"], row["vm_id"]):
                        await claims.requeue(tx, row["id"], vm_id=row["vm_id"], reason="dead", pending_seconds=60)
                        await vms.move(tx, [row["vm_id"]], VmState.LOST, sources=[VmState.CLAIMED], reason="dead")
                        await claims.bind_pending(tx, self.pool.id)

    async def reap(self):
        for _ in range(_ROUNDS):
            async with self.db.begin() as tx:
                over = await claims.expired_leases(tx, limit=2)
                ended = await claims.end(tx, over, ClaimState.EXPIRED, sources=[ClaimState.BOUND], reason="over")
                await vms.release(tx, [v for _, _, v in ended if v], sources=[VmState.CLAIMED], reason="over")
                late = await claims.expired_places(tx, limit=2)
                await claims.end(tx, late, ClaimState.FAILED, sources=[ClaimState.PENDING], reason="late")

    async def hurry(self):
        query = """
            UPDATE claim SET lease_expires_at = lease_expires_at - interval '1 hour', pending_until = now()
            WHERE id = (SELECT id FROM claim WHERE ended_at IS NULL ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING id"""
        for _ in range(_ROUNDS):
            await fetch(self.db, query)

    async def watch(self):
        for _ in range(_ROUNDS):
            await invariants.check(self.db)


async def test_nobody_waits_in_a_circle_and_the_rows_agree_throughout(db):
    bustle = Bustle(db, await make_pool(db))
    async with asyncio.TaskGroup() as tasks:
        for work in (
            bustle.arrive,
            bustle.supply,
            bustle.claim,
            bustle.bind,
            bustle.bind,
            bustle.leave,
            bustle.leave,
            bustle.hold,
            bustle.die,
            bustle.reap,
            bustle.hurry,
            bustle.watch,
        ):
            tasks.create_task(work())
    await invariants.check(db)
    assert {row["state"] for row in await fetch(db, "SELECT DISTINCT state FROM claim")} >= {"released", "failed"}
