"""Nodes as rows: written where they look otherwise, read whole or as far as they are newer."""

from dataclasses import replace
from uuid import UUID

import pytest

from app.domain.nodes import ZONE, Node, Taint
from app.domain.states import VmState
from app.ids import new_id
from app.store import nodes
from app.store.pools import planning
from app.store.pools import rows as pools
from app.store.pools.planning import Planned
from tests.support.rows import execute, make_pool, make_vms, scalar

VM = "01a206d8-3b1d-7264-9eb0-d92e221c920a"
NODE = Node(
    "node-1",
    uid="a",
    labels={ZONE: "zone-a", "x": "y"},
    taints=(Taint("vms", "only", "NoExecute"),),
    cordoned=True,
    conditions={"Ready": "True"},
    capacity={"cpu": 8000},
    allocatable={"cpu": 7000, "memory": 2**40},
    images=(("a.example/b:1", 123),),
    used={"cpu": 100, "pods": 1},
    pinned=2000,
    vms=frozenset({VM}),
)


async def write(db, *found):
    async with db.begin() as tx:
        await nodes.write(tx, found)


async def read(db):
    async with db.begin() as tx:
        return await nodes.read_all(tx)


@pytest.mark.parametrize(
    "node", [NODE, replace(NODE, used=None, pinned=0), replace(NODE, repels=True), Node("bare", uid="b")]
)
async def test_a_node_is_read_as_it_was_written(db, node):
    await write(db, node)
    assert await read(db) == [node]


async def test_what_looks_as_before_is_not_new(db):
    await write(db, NODE, replace(NODE, name="node-2"))
    async with db.begin() as tx:
        first = await nodes.read_newer(tx, 0)
    assert [node.name for node in sorted(first.changed, key=lambda node: node.name)] == ["node-1", "node-2"]
    await write(db, NODE, replace(NODE, name="node-2", used={"cpu": 200}))
    async with db.begin() as tx:
        second = await nodes.read_newer(tx, first.version)
    assert [node.used for node in second.changed] == [{"cpu": 200}]
    assert second.names == {"node-1", "node-2"}
    async with db.begin() as tx:
        assert (await nodes.read_newer(tx, second.version)).changed == ()


async def test_nodes_that_went_are_dropped_one_by_one_or_by_a_list(db):
    await write(db, *(replace(NODE, name=name) for name in "abcd"))
    async with db.begin() as tx:
        await nodes.drop(tx, ["a"])
        await nodes.keep_only(tx, ["b", "c"])
    assert [node.name for node in await read(db)] == ["b", "c"]
    async with db.begin() as tx:
        await nodes.keep_only(tx, [])
    assert await read(db) == []


async def test_pages_are_by_name(db):
    await write(db, *(replace(NODE, name=name) for name in "cab"))
    async with db.begin() as tx:
        assert [node.name for node in await nodes.page(tx, after="a", limit=5)] == ["b", "c"]
        assert (await nodes.get(tx, "c")).name == "c"
        assert await nodes.get(tx, "d") is None


async def test_a_label_that_is_no_id_is_nobodys_vm(db):
    await write(db, replace(NODE, vms=frozenset({VM, "someone"})))
    assert [node.vms for node in await read(db)] == [frozenset({VM})]


async def test_vms_count_until_their_pod_is_seen_on_a_node(db):
    pool, other = await make_pool(db), await make_pool(db, "other", revision="r9")
    booting = await make_vms(db, pool, 2, VmState.BOOTING)
    ready = await make_vms(db, pool, 2)
    await make_vms(db, other, 3, VmState.PLANNED)
    instance = new_id()
    await execute(db, "UPDATE vm SET vmi_uid = :uid WHERE id = :id", uid=str(instance), id=booting[1])
    await execute(db, "UPDATE vm SET ready_at = now() - interval '2 minutes' WHERE id = :id", id=ready[0])
    await execute(db, "UPDATE ready_slot SET ready_at = now() - interval '2 minutes' WHERE vm_id = :id", id=ready[0])

    async def unplaced(*placed: UUID):
        await write(db, replace(NODE, vms=frozenset(str(vm_id) for vm_id in placed)))
        async with db.begin() as tx:
            found = await nodes.unplaced(tx, seconds=60)
        return {(group.pool_id, group.revision): group.count for group in found}

    others = {(other.id, "r9"): 3}
    assert await unplaced() == {(pool.id, "r1"): 3, **others}
    assert await unplaced(booting[0]) == {(pool.id, "r1"): 2, **others}
    assert await unplaced(booting[0], instance) == {(pool.id, "r1"): 1, **others}
    assert await unplaced(booting[0], instance, ready[1], new_id()) == others


async def test_our_vms_are_counted_and_listed_by_node(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 3)
    await execute(db, "UPDATE vm SET node = 'node-2' WHERE id = :id", id=ids[2])
    await execute(db, "UPDATE ready_slot SET node = 'node-2' WHERE vm_id = :id", id=ids[2])
    async with db.begin() as tx:
        assert await nodes.count_vms(tx, ["node-1", "node-2", "node-3"]) == {
            "node-1": {"ready": 2},
            "node-2": {"ready": 1},
            "node-3": {},
        }
        assert [(vm.id, vm.pool, vm.state) for vm in await nodes.vms_on(tx, "node-1")] == [
            (vm_id, "web", "ready") for vm_id in ids[:2]
        ]


async def test_only_pools_that_wait_for_room_are_woken(db):
    waiting, other = await make_pool(db), await make_pool(db, "other")
    async with db.begin() as tx:
        await planning.write(tx, {waiting.id: Planned(60, (), capacity_problem="too large", waits_for_room=True)})
        assert (await planning.last_plan(tx, waiting.id)).capacity_problem == "too large"
        assert (await planning.last_plan(tx, other.id)).capacity_problem is None
    await execute(db, "UPDATE pool_plan SET due_at = now() + interval '1 hour'")
    async with db.begin() as tx:
        assert await nodes.wake_waiting(tx) == 1
    assert await scalar(db, "SELECT pool_id FROM plan_request") == waiting.id
    async with db.begin() as tx:
        await planning.write(tx, {waiting.id: Planned(60, ())})
        assert await nodes.wake_waiting(tx) == 0
        assert (await pools.get_by_id(tx, waiting.id)).name == "web"
