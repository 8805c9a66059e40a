"""One replica watches: it writes down what it sees in order, says how fresh that is, and hands over."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

from app.compute.vms import Broken, Changed, Gone, Restored
from app.domain.states import VmState
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.informer import VmInformer
from app.reconcilers.vms.status_writer import StatusWriter
from app.store import watch_state as watches
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, execute, fetch, make_pool, make_vms, scalar, state_of


@asynccontextmanager
async def observing(db, gateway, settings, holder="one"):
    stop = asyncio.Event()
    task = asyncio.create_task(VmInformer(db, gateway, settings, holder=holder).run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done()


async def made(db, gateway, settings, count=1):
    """VMs that the cluster has, in the rows' state booting: (id, name)."""
    pool = await make_pool(db)
    ids = await make_vms(db, pool, count, VmState.PLANNED)
    await VmCreator(db, gateway, settings).step()
    rows = await fetch(db, "SELECT id, name FROM vm WHERE id = ANY(:ids) ORDER BY id", ids=ids)
    return [(row["id"], row["name"]) for row in rows]


async def becomes(db, vm_id, state):
    async def has():
        return await state_of(db, vm_id) is state

    await eventually(has)


async def watch_state(db):
    async with db.begin() as tx:
        return await watches.get(tx, watches.VMS)


async def heard(db, condition=lambda state: True):
    async def has():
        state = await watch_state(db)
        return state is not None and condition(state)

    await eventually(has)


async def test_what_happens_in_the_cluster_is_written_down(db, gateway, settings):
    ((vm_id, name), (other, other_name)) = await made(db, gateway, settings, 2)
    gateway.boot(other_name)
    async with observing(db, gateway, settings):
        await becomes(db, other, VmState.READY)  # by the list that every watch begins with
        gateway.boot(name)
        await becomes(db, vm_id, VmState.READY)
        gateway.change(name, ready=False)
        await becomes(db, vm_id, VmState.BOOTING)
        gateway.boot(name)
        await becomes(db, vm_id, VmState.READY)
        gateway.vanish(name)
        await becomes(db, vm_id, VmState.LOST)
    state = await watch_state(db)
    assert state is not None
    assert state.holder == "one"
    assert state.list_age_seconds is not None


async def test_events_that_come_together_are_applied_in_their_order(db, gateway, settings):
    ((vm_id, name),) = await made(db, gateway, settings)
    async with observing(db, gateway, settings):
        await heard(db, lambda state: state.list_age_seconds is not None)  # what the first list signs has been told
        warm = gateway.boot(name)
        for event in (Changed(warm), Gone(name, warm.uid), Broken("cut"), gateway.listed(ago=timedelta(0))):
            gateway.watchers[0].put_nowait(event)
        await becomes(db, vm_id, VmState.LOST)
        await heard(db, lambda state: state.broken_since is None)


async def test_a_broken_watch_is_told_until_the_next_list(db, gateway, settings):
    await made(db, gateway, settings)
    async with observing(db, gateway, settings):
        await heard(db)
        gateway.watchers[0].put_nowait(Broken("connection refused"))
        await heard(db, lambda state: state.broken_reason == "connection refused")
        gateway.watchers[0].put_nowait(gateway.listed())
        await heard(db, lambda state: state.broken_since is None)


async def test_a_watch_that_is_open_again_needs_no_list(db, gateway, settings):
    ((vm_id, name),) = await made(db, gateway, settings)
    async with observing(db, gateway, settings):
        await heard(db)
        gateway.watchers[0].put_nowait(Broken("connection refused"))
        await heard(db, lambda state: state.broken_reason == "connection refused")
        gateway.watchers[0].put_nowait(Restored())
        await heard(db, lambda state: state.broken_since is None)
        gateway.boot(name)
        await becomes(db, vm_id, VmState.READY)


async def test_events_are_written_between_the_steps_of_a_list(db, gateway, settings, monkeypatch):
    """GIVEN a list that never ends THEN what happens meanwhile is written."""

    async def endless(_writer, _listed, _newer):
        while True:
            yield

    monkeypatch.setattr(StatusWriter, "write_list", endless)
    ((vm_id, name),) = await made(db, gateway, settings)
    async with observing(db, gateway, settings):
        await holds(db, "one")
        gateway.boot(name)
        await becomes(db, vm_id, VmState.READY)
        state = await watch_state(db)
        assert state is None or state.list_age_seconds is None, "the list is not whole"


async def test_an_observation_that_cannot_be_written_ends_no_more_than_this_watch(db, gateway, settings):
    ((vm_id, name),) = await made(db, gateway, settings)
    async with observing(db, gateway, settings):
        await heard(db)
        gateway.watchers[0].put_nowait("no event at all")
        gateway.watchers[0].put_nowait(Changed(None))  # type: ignore[arg-type] - the point
        gateway.boot(name)
        await becomes(db, vm_id, VmState.READY)


async def holder(db):
    return await scalar(db, "SELECT holder FROM lease WHERE name = :name", name=watches.VMS)


async def holds(db, name):
    async def has():
        return await holder(db) == name

    await eventually(has)


async def test_one_watches_and_another_takes_over_when_it_stops(db, gateway, settings):
    ((vm_id, name),) = await made(db, gateway, settings)
    async with observing(db, gateway, settings, "second-hand"):
        await holds(db, "second-hand")
        async with observing(db, gateway, settings, "waiting") as waiting:
            assert len(gateway.watchers) == 1
            await execute(db, "UPDATE lease SET expires_at = expires_at")  # others may write beside it
            assert not waiting.done()
    assert await holder(db) is None, "a watch that stops gives its lease back"
    async with observing(db, gateway, settings, "next"):
        await holds(db, "next")
        gateway.boot(name)
        await becomes(db, vm_id, VmState.READY)


async def test_another_takes_over_when_the_one_that_watched_is_gone(db, gateway, settings):
    ((vm_id, name),) = await made(db, gateway, settings)
    dying = asyncio.create_task(VmInformer(db, gateway, settings, holder="dying").run(asyncio.Event()))
    await holds(db, "dying")
    async with observing(db, gateway, settings, "heir"):
        dying.cancel()
        await asyncio.wait([dying])
        assert await holder(db) == "dying", "it had no time to give its lease back"
        await execute(db, "UPDATE lease SET expires_at = now() - interval '1 s'")
        await holds(db, "heir")
        gateway.boot(name)
        await becomes(db, vm_id, VmState.READY)


async def test_one_whose_lease_was_taken_stops_watching(db, gateway, settings):
    await made(db, gateway, settings)
    async with observing(db, gateway, settings, "slow"):
        await holds(db, "slow")
        query = """
            UPDATE lease SET holder = 'other', token = gen_random_uuid(), expires_at = now() + interval '1 hour'"""
        await execute(db, query)

        async def stopped():
            return not gateway.watchers

        await eventually(stopped)
        assert await holder(db) == "other"
