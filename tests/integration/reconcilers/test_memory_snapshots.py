"""Snapshots with memory, taken with a cluster in memory: from a VM that runs, looked after, and taken again."""

from dataclasses import replace

import pytest

from app.domain.snapshots import KeptMemory
from app.reconcilers.snapshots.reconciler import SnapshotReconciler
from app.reconcilers.snapshots.sweeper import SnapshotSweeper
from app.services.snapshots.service import refresh_snapshot
from tests.support.rows import event_types, execute, scalar
from tests.support.snapshot_world import Died, World

MISMATCH = "it was kept with QEMU 9"


@pytest.fixture
async def world(db, gateway, settings):
    world = World(db, gateway, settings)
    await world.make_pool()
    return world


def grow_stale(world):
    """The cluster has another QEMU."""
    for name, found in world.gateway.snapshots.objects.items():
        lost = KeptMemory(1024, "qemu 9", MISMATCH)
        world.gateway.snapshots.objects[name] = replace(found, memory=lost)


async def test_the_vm_runs_while_its_memory_is_kept(world, db):
    await world.ask(memory=True)
    take = await world.until("ready")
    assert world.gateway.called("stop") == []
    assert (take["memory_bytes"], take["fingerprint"]) == (1024, "qemu 10")
    assert take["vm_spec"]["template"]["spec"]["volumes"][0]["name"] == "root"
    assert take["shape"] == await scalar(db, "SELECT shape FROM pool WHERE name = 'web'")
    await world.nothing_is_left()


async def test_a_snapshot_of_the_disks_keeps_none_of_it(world):
    await world.ask()
    take = await world.until("ready")
    assert (take["memory_bytes"], take["fingerprint"], take["vm_spec"]) == (None, None, None)


async def test_a_save_that_fails_is_told_and_leaves_nothing(world):
    world.gateway.snapshots.outcome = {"failed": True, "error": "MemoryNotKept: no space left on device"}
    await world.ask(memory=True)
    take = await world.until("failed")
    assert take["reason"] == "KubeVirt could not take it: MemoryNotKept: no space left on device"
    await world.nothing_is_left()


async def test_a_cluster_that_kept_the_disks_alone_is_not_believed(world):
    world.gateway.snapshots.memory = None
    await world.ask(memory=True)
    take = await world.until("failed")
    assert take["reason"] == "the cluster took its disks and kept no memory, as KubeVirt does"
    await world.nothing_is_left()


@pytest.mark.parametrize("finder", ["reconciler", "sweeper"])
async def test_memory_that_cannot_be_restored_any_more_is_stale(world, db, gateway, settings, finder):
    await world.ask(memory=True)
    await world.until("ready")
    grow_stale(world)
    if finder == "reconciler":
        await world.look()
    else:
        await SnapshotSweeper(db, gateway, settings).step()
    take = await world.take()
    assert (take["state"], take["stale_reason"]) == ("ready", MISMATCH)
    assert (await event_types(db)).count("snapshot.stale") == 1


async def test_one_that_refreshes_itself_is_taken_again(world):
    await world.ask(memory=True, refresh=True)
    await world.until("ready")
    grow_stale(world)
    fresh = await world.until("ready", number=2)
    assert fresh["stale_reason"] is None
    await world.until("retired", number=1)
    await world.nothing_is_left()


async def test_any_other_once_somebody_asks(world, db):
    await world.ask(memory=True)
    await world.until("ready")
    grow_stale(world)
    await world.turn()
    assert await world.states() == ["ready"]
    await refresh_snapshot(db, "ready")
    await world.until("ready", number=2)


async def test_killed_between_any_two_steps_it_keeps_memory_once(world, db, gateway):
    """Each time the worker dies one call later, and another one goes on."""
    calls = ("source", "take", "look", "disks")
    for at in range(1, 8):
        name, left = f"s{at}", [at]

        def hit(_name, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise Died

        gateway.before.update(dict.fromkeys(calls, hit))
        await world.ask(name, memory=True)
        for _ in range(20):
            try:
                await world.look()
            except Died:
                break
            await world.surround()
            if (await world.take(name=name))["state"] == "ready":
                break
        gateway.before.clear()
        world.worker = SnapshotReconciler(db, gateway, world.settings)
        take = await world.until("ready", name=name)
        assert take["fingerprint"] == "qemu 10"
        assert len(gateway.snapshots.objects) == 1
        await execute(db, "DELETE FROM snapshot")
        gateway.snapshots.objects.clear()
