"""Rows to test with, made by the store's own functions, so that a scene is one that the program could have made."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

from sqlalchemy import text

from app.domain.claims import ClaimRequest, NewClaim
from app.domain.pools import PoolSpec
from app.domain.states import VmState
from app.ids import new_id, vm_name
from app.store.database import Database
from app.store.pools import rows as pools
from app.store.vms import observed, work
from app.store.vms import rows as vms
from tests.support.patience import PATIENCE

TEMPLATE = {"image": "registry.example/guest:1"}


def spec(**given):
    return PoolSpec(**{"size": 3, "template": TEMPLATE, **given})


async def make_pool(db: Database, name="web", *, revision="r1", **given):
    pool_id = new_id()
    async with db.begin() as tx:
        assert await pools.insert(
            tx,
            pool_id=pool_id,
            name=name,
            spec=spec(**given),
            vm_spec={"template": {"n": name}},
            revision=revision,
            shape=f"shape-of-{name}",
        )
        pool = await pools.get_by_id(tx, pool_id)
    assert pool is not None
    return pool


async def make_vms(db: Database, pool, count, state=VmState.READY):
    """So many VMs of the pool, each brought to `state` on the way that a VM takes; their ids, oldest first."""
    ids = [new_id() for _ in range(count)]
    made = [vms.PlannedVm(vm_id, pool.id, vm_name(pool.name, vm_id), pool.revision) for vm_id in ids]
    async with db.begin() as tx:
        await vms.plan(tx, made)
    if state is VmState.PLANNED:
        return ids
    async with db.begin() as tx:
        taken = await work.acquire_creates(tx, token=uuid.uuid4(), limit=count, seconds=30, rate=1e6)
        assert {item.id for item in taken} == set(ids)
    if state is VmState.CREATING:
        return ids
    async with db.begin() as tx:
        await vms.move(tx, ids, VmState.BOOTING, sources=[VmState.CREATING], deadline_seconds=600)
        await observed.write(tx, [vm_status(vm_id) for vm_id in ids])
    if state is VmState.BOOTING:
        return ids
    if state is VmState.READY:
        await make_ready(db, ids)
    else:
        async with db.begin() as tx:
            await vms.move(tx, ids, VmState.RELEASING, sources=[VmState.BOOTING], reason="for the test")
            assert state is VmState.RELEASING
    return ids


async def make_ready(db: Database, ids):
    async with db.begin() as tx:
        moved = await vms.move(tx, ids, VmState.READY, sources=[VmState.BOOTING])
        assert set(moved) == set(ids)


def vm_status(vm_id, **given):
    base = {"uid": f"uid-{vm_id}", "vmi_uid": "vmi", "node": "node-1", "addresses": ("10.0.0.1",), "health": None}
    return observed.VmStatus(vm_id, **{**base, **given})


def request(key=None, *, body="body", seconds=60, labels=None):
    """A claim that is about to be made."""
    return NewClaim(new_id(), seconds, ClaimRequest("web", 0, seconds, labels or {}, key, body))


async def fetch(db: Database, query, **params):
    async with db.begin() as tx:
        return (await tx.execute(text(query), params)).mappings().all()


async def scalar(db: Database, query, **params):
    async with db.begin() as tx:
        return (await tx.execute(text(query), params)).scalar()


async def execute(db: Database, query, **params):
    async with db.begin() as tx:
        await tx.execute(text(query), params)


async def state_of(db: Database, vm_id):
    return VmState(await scalar(db, "SELECT state FROM vm WHERE id = :id", id=vm_id))


async def own_id(db: Database):
    """What the installation's objects carry."""
    return str(await scalar(db, "SELECT id FROM installation"))


async def event_types(db: Database):
    """Every event's type, in the order in which they were written."""
    return [row["type"] for row in await fetch(db, "SELECT type FROM event ORDER BY id")]


async def eventually(check: Callable[[], Awaitable[object]], *, seconds=PATIENCE):
    """The first truthy result of `check`; fails after `seconds`. Looks ever less often: what is watched needs the processor too."""
    end = time.monotonic() + seconds
    pause = 0.01
    while True:
        found = await check()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {check}"
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.06)


async def blocked(db: Database, count=1):
    """Waits until `count` sessions of this database wait for a lock."""

    async def waiting():
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return await scalar(db, query) >= count

    await eventually(waiting)
