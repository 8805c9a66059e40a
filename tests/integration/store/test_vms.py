"""VM rows: each move with its event, and the queue of ready VMs in step with it."""

import asyncio
from uuid import uuid4

import pytest

from app.domain.states import VM_TRANSITIONS, VmState
from app.errors import IllegalTransition
from app.store.vms import observed
from app.store.vms import pages as vm_pages
from app.store.vms import rows as vms
from tests.support import store_invariants as invariants
from tests.support.rows import (
    blocked,
    event_types,
    execute,
    fetch,
    make_pool,
    make_ready,
    make_vms,
    scalar,
    state_of,
    vm_status,
)


async def test_a_planned_vm_is_written_with_its_event(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 2, VmState.PLANNED)
    async with db.begin() as tx:
        vm = await vms.get(tx, ids[0])
    assert vm is not None
    assert (vm.state, vm.pool, vm.revision, vm.asked_at, vm.uid) == (VmState.PLANNED, "web", "r1", None, None)
    assert await event_types(db) == ["vm.planned", "vm.planned"]


async def test_the_way_to_ready_is_measured_and_queued_in_order(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 3)
    rows = await fetch(db, "SELECT * FROM vm ORDER BY created_at, id")
    assert [row["id"] for row in rows] == ids
    assert all(row["boot_seconds"] >= 0 and row["ready_at"] and row["deadline_at"] is None for row in rows)
    slots = await fetch(db, "SELECT * FROM ready_slot ORDER BY seq")
    assert {slot["vm_id"] for slot in slots} == set(ids)
    assert slots[0]["addresses"] == ["10.0.0.1"]
    assert slots[0]["node"] == "node-1"
    assert await event_types(db) == [*["vm.planned"] * 3, *["vm.creating"] * 3, *["vm.booting"] * 3, *["vm.ready"] * 3]


async def test_a_vm_that_is_unready_leaves_the_queue_and_may_come_back_behind_the_others(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 2)
    async with db.begin() as tx:
        moved = await vms.move(
            tx, ids[:1], VmState.BOOTING, sources=[VmState.READY], reason="it is not ready", deadline_seconds=20
        )
    assert moved == ids[:1]
    row = (await fetch(db, "SELECT * FROM vm WHERE id = :id", id=ids[0]))[0]
    assert row["unhealthy_since"] is not None
    assert row["deadline_at"] > row["state_since"]
    assert await scalar(db, "SELECT count(*) FROM ready_slot") == 1
    first_boot = row["boot_seconds"]
    await make_ready(db, ids[:1])
    row = (await fetch(db, "SELECT * FROM vm WHERE id = :id", id=ids[0]))[0]
    assert (row["boot_seconds"], row["unhealthy_since"], row["health"]) == (first_boot, None, None)
    assert [slot["vm_id"] for slot in await fetch(db, "SELECT vm_id FROM ready_slot ORDER BY seq")] == [ids[1], ids[0]]


@pytest.mark.parametrize("target", list(VmState))
async def test_a_move_that_the_table_forbids_raises_and_changes_nothing(db, target):
    forbidden = [state for state in VmState if target not in VM_TRANSITIONS[state]]
    for source in forbidden:
        async with db.begin() as tx:
            with pytest.raises(IllegalTransition):
                await vms.move(tx, [uuid4()], target, sources=[source])


async def test_only_vms_in_the_sources_are_moved(db):
    pool = await make_pool(db)
    planned = await make_vms(db, pool, 1, VmState.PLANNED)
    async with db.begin() as tx:
        assert await vms.move(tx, planned, VmState.FAILED, sources=[VmState.BOOTING], reason="no") == []
        assert await vms.move(tx, [], VmState.FAILED, sources=[VmState.BOOTING]) == []
    assert await state_of(db, planned[0]) is VmState.PLANNED


async def test_the_end_is_timed_and_keeps_its_reason(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 1, VmState.BOOTING)
    async with db.begin() as tx:
        await vms.move(tx, ids, VmState.FAILED, sources=[VmState.BOOTING], reason="no such image")
        await vms.release(tx, ids, sources=[VmState.FAILED], reason=None)
        await vms.move(tx, ids, VmState.DELETED, sources=[VmState.RELEASING])
        vm = await vms.get(tx, ids[0])
    assert vm is not None
    assert (vm.state, vm.reason, vm.ended_at is not None) == (VmState.DELETED, "no such image", True)
    events = await fetch(db, "SELECT type, data FROM event WHERE type LIKE 'vm.%' ORDER BY id DESC LIMIT 3")
    assert [(e["type"], e["data"]) for e in events] == [
        ("vm.deleted", {"from": "releasing"}),
        ("vm.releasing", {"from": "failed"}),
        ("vm.failed", {"from": "booting", "reason": "no such image"}),
    ]


async def test_taking_from_the_queue_keeps_the_floor_and_the_order(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 5)
    async with db.begin() as tx:
        taken = await vms.take_from_queue(tx, pool.id, [ids[3], ids[0], ids[1]], floor=3)
        assert set(taken) == {ids[3], ids[0]}
        assert set(await vms.leave_ready(tx, taken, reason="above the size")) == set(taken)
        assert await vms.take_from_queue(tx, pool.id, ids, floor=3) == []
        assert await vms.take_from_queue(tx, pool.id, [], floor=0) == []
    assert await state_of(db, ids[0]) is VmState.RELEASING


async def test_a_vm_that_a_claim_is_just_taking_is_passed_over(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 2)
    async with db.begin() as other:
        await other.exec_driver_sql(f"SELECT 1 FROM ready_slot WHERE vm_id = '{ids[0]}' FOR UPDATE")
        async with db.begin() as tx:
            taken = await vms.take_from_queue(tx, pool.id, ids, floor=0)
            assert taken == [ids[1]]
            await vms.leave_ready(tx, taken, reason="above the size")


async def test_two_that_move_one_vm_out_of_the_queue_move_it_once(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 1)

    async def fail():
        async with db.begin() as tx:
            return await vms.move(tx, ids, VmState.FAILED, sources=[VmState.READY], reason="gone")

    async with db.begin() as tx:
        await vms.move(tx, ids, VmState.LOST, sources=[VmState.READY], reason="gone")
        second = asyncio.create_task(fail())
        await blocked(db)
    assert await second == []
    assert await state_of(db, ids[0]) is VmState.LOST


async def test_urgency_moves_only_what_is_planned(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.BOOTING)
    planned = await make_vms(db, pool, 1, VmState.PLANNED)
    async with db.begin() as tx:
        await vms.urge(tx, {pool.id: True})
    assert [row["id"] for row in await fetch(db, "SELECT id FROM vm WHERE urgent")] == planned


async def test_pages_are_the_newest_first_and_filtered(db):
    web, batch = await make_pool(db, "web"), await make_pool(db, "batch")
    ready = await make_vms(db, web, 2)
    booting = await make_vms(db, batch, 1, VmState.BOOTING)
    gone = await make_vms(db, web, 1)
    async with db.begin() as tx:
        await vms.move(tx, gone, VmState.LOST, sources=[VmState.READY])
        everything = {"limit": 10, "pool": None, "state": None, "ended": True}
        assert [v.id for v in await vm_pages.page(tx, after=None, **everything)] == [*gone, *booting, *reversed(ready)]
        assert [v.id for v in await vm_pages.page(tx, after=booting[0], **everything)] == [*reversed(ready)]
        assert [v.id for v in await vm_pages.page(tx, after=None, **{**everything, "ended": False, "pool": "web"})] == [
            *reversed(ready)
        ]
        found = await vm_pages.page(tx, after=None, **{**everything, "state": VmState.LOST})
        assert [v.id for v in found] == gone
        assert len(await vm_pages.page(tx, after=None, **{**everything, "limit": 2})) == 2
        assert await vms.get(tx, uuid4()) is None


async def test_what_was_seen_is_written_to_the_row_and_to_its_place(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 2)
    seen = [vm_status(ids[0], node="node-2", addresses=("10.0.0.2", "fd00::2")), vm_status(ids[1], health="slow")]
    async with db.begin() as tx:
        await observed.write(tx, seen)
        await observed.write(tx, [])
        rows = await observed.by_ids(tx, ids)
    assert rows[ids[0]].facts.addresses == ("10.0.0.2", "fd00::2")
    assert rows[ids[1]].facts.health == "slow"
    assert rows[ids[1]].facts.unhealthy_since is not None
    assert await scalar(db, "SELECT node FROM ready_slot WHERE vm_id = :id", id=ids[0]) == "node-2"
    async with db.begin() as tx:
        await observed.write(tx, [vm_status(ids[1], uid="another", addresses=())])
        row = (await observed.by_ids(tx, ids))[ids[1]]
    assert row.facts.uid == f"uid-{ids[1]}", "a UID once written stays"
    assert (row.facts.health, row.facts.unhealthy_since, row.facts.addresses) == (None, None, ())


async def test_stages_may_be_known_in_part(db):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    async with db.begin() as tx:
        await observed.write_stages(tx, {vm_id: {"queue": 0.5, "schedule": None, "start": 2.0, "boot": None}})
        vm = await vms.get(tx, vm_id)
    assert vm is not None
    assert vm.stages == {"queue": 0.5, "schedule": None, "start": 2.0, "boot": None}


async def test_missing_are_those_that_had_an_object_before_the_list(db):
    pool = await make_pool(db)
    old = await make_vms(db, pool, 2)
    await make_vms(db, pool, 1, VmState.BOOTING)  # since after the list was asked for
    await make_vms(db, pool, 1, VmState.PLANNED)
    before = await scalar(db, "SELECT now() - interval '1 minute'")
    await execute(db, "UPDATE vm SET state_since = now() - interval '5 minutes' WHERE id = ANY(:ids)", ids=old)
    listed = (await fetch(db, "SELECT uid, name FROM vm WHERE id = :id", id=old[0]))[0]
    other = (await fetch(db, "SELECT name FROM vm WHERE id = :id", id=old[1]))[0]["name"]
    objects = {listed["uid"]: listed["name"], "another-uid": other}
    async with db.begin() as tx:
        found = await observed.missing(tx, objects=objects, before=before, limit=10)
        known = await observed.of_objects(tx, objects)
    assert {vm.id for vm in found} == {old[1]}, "an object of another UID under its name is not the VM"
    assert [vm.name for vm in known] == [listed["name"]]


async def test_overdue_are_boots_past_their_deadline(db):
    pool = await make_pool(db)
    late, _ = await make_vms(db, pool, 2, VmState.BOOTING)
    await execute(db, "UPDATE vm SET deadline_at = now() - interval '1 second' WHERE id = :id", id=late)
    async with db.begin() as tx:
        assert [vm.id for vm in await observed.overdue(tx, limit=10)] == [late]


async def test_the_checker_sees_what_is_wrong(db):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    await execute(db, "UPDATE vm SET state = 'booting' WHERE id = :id", id=vm_id)
    assert await invariants.broken_rules(db) == [("a place in the queue whose VM is not ready", str(vm_id))]
    await execute(db, "DELETE FROM ready_slot")
    await execute(db, "UPDATE vm SET state = 'ready' WHERE id = :id", id=vm_id)
    assert await invariants.broken_rules(db) == [("a ready VM without a place in the queue", str(vm_id))]
    await execute(db, "UPDATE vm SET state = 'booting' WHERE id = :id", id=vm_id)
