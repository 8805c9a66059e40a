"""One replica watches the nodes: what it sees is written down, how fresh it is, and pools that wait for room are woken."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

from app.compute.vms import Broken
from app.domain.nodes import Demand, Node
from app.lifecycle.placement import Placing
from app.reconcilers.nodes.informer import NodeInformer
from app.reconcilers.pools.planner import plan_due_pools
from app.store import nodes
from app.store import watch_state as watches
from tests.support.fake_gateway import FakeGateway
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, execute, make_pool, scalar

NODE = Node("node-1", uid="a", allocatable={"cpu": 4000, "pods": 10}, conditions={"Ready": "True"})


@asynccontextmanager
async def watching(db, gateway, settings, holder="one"):
    stop = asyncio.Event()
    task = asyncio.create_task(NodeInformer(db, gateway, settings, holder=holder).run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done()


async def known(db):
    async with db.begin() as tx:
        return await nodes.read_all(tx)


async def becomes(db, *found):
    async def are():
        return await known(db) == list(found)

    await eventually(are)


async def state(db, name=nodes.WATCH):
    async with db.begin() as tx:
        return await watches.get(tx, name)


async def test_what_happens_to_nodes_is_written_down(db, gateway, settings):
    async with db.begin() as tx:
        await nodes.write(tx, [replace(NODE, name="long-gone")])
    gateway.put_node(NODE)
    async with watching(db, gateway, settings):
        await becomes(db, NODE)
        busy = replace(NODE, used={"cpu": 100})
        gateway.put_node(replace(NODE, used={"cpu": 50}))
        gateway.put_node(busy)
        await becomes(db, busy)
        gateway.put_node(replace(NODE, name="node-2"))
        await becomes(db, busy, replace(NODE, name="node-2"))
        gateway.drop_node("node-1")
        await becomes(db, replace(NODE, name="node-2"))
    assert (await state(db)).broken_reason is None
    assert await scalar(db, "SELECT count(*) FROM lease") == 0


async def test_a_watch_that_breaks_says_so_and_is_heard_of_no_more(db, gateway, settings):
    gateway.put_node(NODE)
    async with watching(db, gateway, settings):
        await becomes(db, NODE)
        await execute(db, "UPDATE watch SET heard_at = now() - interval '1 hour'")
        gateway.tell_of_nodes(Broken("nodes is forbidden"))

        async def is_told():
            return (await state(db)).broken_reason == "nodes is forbidden"

        await eventually(is_told)
        assert (await state(db)).age_seconds > 3000


async def test_pods_that_cannot_be_seen_are_told_until_they_can(db, gateway, settings):
    gateway.put_node(replace(NODE, used=None))
    gateway.pods_hidden = "pods is forbidden"
    async with watching(db, gateway, settings):

        async def is_told():
            found = await state(db, nodes.PODS_WATCH)
            return found is not None and found.broken_reason == "pods is forbidden"

        await eventually(is_told)
    gateway.pods_hidden = None
    async with watching(db, gateway, settings):

        async def is_over():
            return (await state(db, nodes.PODS_WATCH)).broken_reason is None

        await eventually(is_over)


async def test_room_that_comes_wakes_those_who_wait_for_it_and_them_alone(db, gateway, settings):
    waiting, other = await make_pool(db, size=1), await make_pool(db, "other", size=0)
    gateway.demands = Demand({"cpu": 1000, "pods": 1})
    full = replace(NODE, used={"cpu": 4000, "pods": 4})
    gateway.put_node(full)
    placing = Placing(gateway)
    async with watching(db, gateway, settings):
        await becomes(db, full)
        for _ in range(2):
            await plan_due_pools(db, every_seconds=3600, placing=placing)
        assert await scalar(db, "SELECT count(*) FROM plan_request") == 0
        gateway.put_node(replace(full, used={"cpu": 4000, "pods": 3}, images=(("a", 1),)))
        gateway.put_node(replace(full, used={"cpu": 4500, "pods": 5}))
        await becomes(db, replace(full, used={"cpu": 4500, "pods": 5}))
        assert await scalar(db, "SELECT count(*) FROM plan_request") == 0

        gateway.put_node(replace(full, used={"cpu": 2000, "pods": 2}))

        async def is_due():
            return await scalar(db, "SELECT pool_id FROM plan_request") == waiting.id

        await eventually(is_due)
        await plan_due_pools(db, every_seconds=3600, placing=placing)
    assert await scalar(db, "SELECT count(*) FROM vm WHERE pool_id = :id", id=waiting.id) == 1
    assert await scalar(db, "SELECT count(*) FROM vm WHERE pool_id = :id", id=other.id) == 0


async def test_one_watches_and_another_takes_over(db, gateway, settings):
    gateway.put_node(NODE)
    async with watching(db, gateway, settings, "one"):
        await becomes(db, NODE)
        async with watching(db, gateway, settings, "two") as second:
            assert (await state(db)).holder == "one"
            assert len(gateway.node_watchers) == 1
            assert not second.done()

    async with watching(db, gateway, settings, "three"):

        async def is_taken():
            return (await state(db)).holder == "three"

        await eventually(is_taken)


async def test_one_that_lost_its_lease_writes_nothing_more(db, gateway, settings):
    gateway.put_node(NODE)
    async with watching(db, gateway, settings, "slow"):
        await becomes(db, NODE)
        # Another has taken it over meanwhile.
        await execute(db, "UPDATE lease SET token = gen_random_uuid(), expires_at = now() + interval '1 hour'")
        gateway.put_node(replace(NODE, cordoned=True))

        async def has_stopped():
            return gateway.node_watchers == []

        await eventually(has_stopped)
        assert await known(db) == [NODE]
    await execute(db, "DELETE FROM lease")


async def test_a_reader_that_fails_is_told_and_the_watch_begins_anew(db, gateway, settings, monkeypatch):
    gateway.put_node(NODE)
    failed = []

    async def fails_once():
        if not failed:
            failed.append(True)
            raise RuntimeError("a strange object")
        async for event in FakeGateway.observe_nodes(gateway):
            yield event

    monkeypatch.setattr(gateway, "observe_nodes", fails_once)
    async with watching(db, gateway, settings):
        await becomes(db, NODE)
    assert failed
