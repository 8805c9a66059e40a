"""Snapshots that are there: refreshed, started from, deleted, and compared with what the cluster has."""

from dataclasses import replace

import pytest

from app.reconcilers.snapshots.sweeper import SnapshotSweeper
from app.services.pools.service import delete_pool
from app.services.snapshots.service import delete_snapshot, refresh_snapshot
from app.store.snapshots.sources import start_of
from tests.support.rows import execute, fetch, own_id, scalar
from tests.support.snapshot_world import DISKLESS, TEMPLATE, World

OTHER = {"spec": {"domain": {"memory": {"guest": "2Gi"}}, "volumes": TEMPLATE["spec"]["volumes"]}}


@pytest.fixture
def world(db, gateway, settings):
    return World(db, gateway, settings)


class TestRefresh:
    @pytest.fixture(autouse=True)
    async def taken(self, world):
        await world.make_pool()
        await world.ask(refresh=True, keep=2)
        return await world.until("ready")

    async def test_an_unchanged_template_is_not_taken_again(self, world):
        for _ in range(3):
            await world.turn()
        assert await world.states() == ["ready"]

    async def test_another_size_is_no_other_template(self, world):
        await world.make_pool(size=1)
        for _ in range(3):
            await world.turn()
        assert await world.states() == ["ready"]

    async def test_a_changed_template_is_and_the_old_one_serves_until_then(self, world, db):
        world.boots = False
        await world.make_pool(template=OTHER)
        await world.until("booting", number=2)
        async with db.begin() as tx:
            assert (await start_of(tx, "ready")).disks
        world.boots = True
        await world.until("ready", number=2)
        assert await world.states() == ["ready", "ready"]

    async def test_only_so_many_are_kept(self, world, db):
        for number in (2, 3):
            await refresh_snapshot(db, "ready")
            await world.until("ready", number=number)
        await world.until("retired", number=1)
        assert await world.states() == ["retired", "ready", "ready"]
        await world.nothing_is_left()

    async def test_an_old_one_is_kept_while_a_vm_is_made_from_it(self, world, db):
        world.slow = "fed"
        await world.make_pool("fed", size=1, start_from={"snapshot": "ready"})
        await world.turn()
        for number in (2, 3):
            await refresh_snapshot(db, "ready")
            await world.until("ready", number=number)
        await world.until("retiring", number=1)
        await world.turn()
        assert len(world.gateway.snapshots.objects) == 3
        world.slow = "-"
        await world.until("retired", number=1)
        assert len(world.gateway.snapshots.objects) == 2

    async def test_a_failed_refresh_leaves_the_old_one_serving(self, world, db):
        world.gateway.snapshots.outcome = {"failed": True, "error": "no space"}
        await world.make_pool(template=OTHER)
        await world.until("failed", number=2)
        for _ in range(3):
            await world.turn()
        assert await world.states() == ["ready", "failed"]  # tried again, but not at once
        async with db.begin() as tx:
            assert (await start_of(tx, "ready")).disks
        world.gateway.snapshots.outcome = {"ready": True}
        await execute(db, "UPDATE snapshot_take SET ended_at = now() - interval '1 hour' WHERE state = 'failed'")
        await world.until("ready", number=3)
        await world.nothing_is_left()

    async def test_a_refresh_that_is_asked_for_twice_is_one(self, world, db):
        await refresh_snapshot(db, "ready")
        await refresh_snapshot(db, "ready")
        assert await world.states() == ["ready", "planned"]

    async def test_a_preload_that_became_ready_anew_is_taken_too(self, world, db):
        await execute(
            db,
            """INSERT INTO preload (id, name, spec, image_kind, image, state, status, ready_at)
               VALUES (gen_random_uuid(), 'near', '{}', 'container', 'a', 'ready', '{"on": {"pulled": 1}}', now())""",
        )
        await world.make_pool("near", template=DISKLESS, start_from={"preload": "near"})
        await world.ask("of-near", source={"pool": "near"}, refresh=True)
        await world.until("ready", name="of-near")
        assert await scalar(db, "SELECT path FROM vm WHERE source = 'near'") == "preload"
        await world.turn()
        assert await world.states("of-near") == ["ready"]
        await execute(db, "UPDATE preload SET ready_at = now()")
        await world.until("ready", name="of-near", number=2)

    async def test_without_its_pool_it_stays_as_it_is(self, world, db):
        await delete_pool(db, "web", force=False)
        for _ in range(3):
            await world.turn()
        assert await world.states() == ["ready"]


async def test_when_it_becomes_ready_those_that_waited_start_at_once(world, db):
    await world.make_pool()
    await world.ask()
    await world.make_pool("fed", size=1, start_from={"snapshot": "ready"})
    await world.surround()
    (vm,) = await fetch(db, "SELECT * FROM vm WHERE name LIKE 'fed%'")
    assert (vm["state"], vm["health"]) == ("planned", "snapshot 'ready' is not ready")
    assert vm["asked_at"] is None  # its boot has not begun
    await execute(db, "UPDATE vm SET due_at = now() + interval '1 hour' WHERE name LIKE 'fed%'")
    notes = await scalar(db, "SELECT notes FROM pool_plan q JOIN pool p ON p.id = q.pool_id WHERE p.name = 'fed'")
    assert notes == ["waits: snapshot 'ready' is not ready"]

    async def due():
        return await scalar(db, "SELECT due_at <= now() FROM vm WHERE name LIKE 'fed%'")

    while (await world.take())["state"] != "ready":
        assert not await due()
        await world.look()
        await execute(db, "UPDATE vm SET due_at = now() WHERE name NOT LIKE 'fed%'")
        await _surround_without(world, db, "fed")
    assert await due()
    await world.settle()
    assert await scalar(db, "SELECT path FROM vm WHERE name LIKE 'fed%'") == "snapshot"


async def _surround_without(world, db, name):
    """Everybody around, but what is planned for that pool stays as it is."""
    due_at = await scalar(db, "SELECT due_at FROM vm WHERE name LIKE :name", name=f"{name}%")
    await execute(db, "UPDATE pool SET paused = true WHERE name = :name", name=name)
    await world.surround()
    await execute(db, "UPDATE pool SET paused = false WHERE name = :name", name=name)
    await execute(
        db, "UPDATE vm SET due_at = CAST(:at AS timestamptz) WHERE name LIKE :name", at=due_at, name=f"{name}%"
    )


class TestDelete:
    @pytest.fixture(autouse=True)
    async def pool(self, world):
        return await world.make_pool()

    async def gone(self, world):
        for _ in range(10):
            await world.turn()
        assert await scalar(world.db, "SELECT count(*) FROM snapshot WHERE deleted_at IS NULL") == 0
        assert not world.gateway.snapshots.objects
        await world.nothing_is_left()

    async def test_its_objects_go_and_its_name_is_free(self, world, db):
        await world.ask()
        await world.until("ready")
        await delete_snapshot(db, world.gateway, "ready", force=False)
        async with db.begin() as tx:
            assert await start_of(tx, "ready") is None
        await self.gone(world)
        assert await world.ask() is not None

    @pytest.mark.parametrize("state", ["planned", "booting", "stopping", "taking"])
    async def test_one_that_is_being_taken_is_broken_off(self, world, db, state):
        world.gateway.snapshots.stops_at_once = state != "stopping"
        world.gateway.snapshots.outcome = {}
        await world.ask()
        await world.until(state)
        await delete_snapshot(db, world.gateway, "ready", force=False)
        await self.gone(world)

    async def test_forced_its_pools_start_cold_and_say_so(self, world, db):
        await world.ask()
        await world.until("ready")
        await world.make_pool("fed", size=1, start_from={"snapshot": "ready"})
        await delete_snapshot(db, world.gateway, "ready", force=True)
        for _ in range(5):
            await world.turn()
        (vm,) = await fetch(db, "SELECT * FROM vm WHERE name LIKE 'fed%'")
        assert (vm["state"], vm["path"], vm["source"]) == ("ready", "cold", None)
        notes = await scalar(db, "SELECT notes FROM pool_plan q JOIN pool p ON p.id = q.pool_id WHERE p.name = 'fed'")
        assert notes == ["snapshot 'ready' was deleted: new VMs start cold"]


class TestSweep:
    @pytest.fixture(autouse=True)
    async def taken(self, world):
        await world.make_pool()
        await world.ask()
        return await world.until("ready")

    async def sweep(self, world):
        await execute(world.db, "DELETE FROM lease")
        await SnapshotSweeper(world.db, world.gateway, world.settings).step()

    async def test_what_rows_know_stays(self, world):
        await self.sweep(world)
        assert len(world.gateway.snapshots.objects) == 1
        assert await world.states() == ["ready"]

    async def test_what_no_row_ever_knew_stays_and_is_told(self, world, taken):
        """It may be the only copy of the disks of a VM."""
        (known,) = world.gateway.snapshots.objects.values()
        signed = replace(known, installation=await own_id(world.db))
        orphan = replace(signed, name="left", uid="left", take_id="01a206d8-517b-7231-a079-9e6d21989c09")
        foreign = replace(signed, name="odd", uid="odd", take_id="what?")
        world.gateway.snapshots.objects |= {"left": orphan, "odd": foreign}
        await self.sweep(world)
        assert set(world.gateway.snapshots.objects) == {known.name, "left", "odd"}
        held = await scalar(world.db, "SELECT held->'VirtualMachineSnapshot'->>'detail' FROM installation")
        assert held == "1 that may be the only copy of somebody's disks (left)"

    async def test_what_no_row_knows_is_removed_once_an_operator_has_given_it_up(self, world, taken):
        (known,) = world.gateway.snapshots.objects.values()
        orphan = replace(known, name="left", uid="left", take_id="01a206d8-517b-7231-a079-9e6d21989c09")
        world.gateway.snapshots.objects["left"] = orphan
        await execute(world.db, "UPDATE installation SET given_up = '{left}'")
        await self.sweep(world)
        assert set(world.gateway.snapshots.objects) == {known.name}

    async def test_what_is_over_and_came_back_is_removed(self, world, db):
        """A create that was on its way while its take was given up."""
        objects = dict(world.gateway.snapshots.objects)
        await delete_snapshot(db, world.gateway, "ready", force=False)
        for _ in range(3):
            await world.turn()
        assert not world.gateway.snapshots.objects
        world.gateway.snapshots.objects |= objects
        await self.sweep(world)
        assert not world.gateway.snapshots.objects

    async def test_a_take_whose_object_has_gone_serves_no_longer(self, world, db):
        world.gateway.snapshots.objects.clear()
        await self.sweep(world)
        async with db.begin() as tx:
            assert await start_of(tx, "ready") == "snapshot 'ready' is not ready"
        assert "deleted in the cluster" in (await world.until("failed"))["reason"]

    async def test_vms_that_wait_for_disks_of_it_are_given_up(self, world, db):
        await world.make_pool("fed", size=2, start_from={"snapshot": "ready"})
        world.slow = "fed"
        await world.surround()
        first, second = await fetch(db, "SELECT * FROM vm WHERE name LIKE 'fed%' ORDER BY id")
        assert (first["state"], first["path"], first["node"]) == ("booting", "snapshot", None)
        await execute(db, "UPDATE vm SET node = 'node1' WHERE id = :id", id=second["id"])
        world.gateway.snapshots.objects.clear()
        await self.sweep(world)
        lost, going_on = await fetch(
            db, "SELECT * FROM vm WHERE id IN (:a, :b) ORDER BY id", a=first["id"], b=second["id"]
        )
        assert lost["reason"] == "snapshot 'ready' was deleted in the cluster before this VM had its disks"
        assert (lost["state"], going_on["state"]) == ("failed", "booting")
        await self.sweep(world)
        assert await scalar(db, "SELECT consecutive_failures FROM pool WHERE name = 'fed'") == 1

    async def test_vms_of_an_older_take_that_is_still_there_are_left_alone(self, world, db):
        await world.make_pool("fed", size=1, start_from={"snapshot": "ready"})
        world.slow = "fed"
        await world.surround()
        await execute(
            db,
            """INSERT INTO snapshot_take (id, snapshot_id, number, state, ready_at)
               SELECT gen_random_uuid(), snapshot_id, 2, 'failed', ready_at FROM snapshot_take""",
        )
        await self.sweep(world)
        assert await scalar(db, "SELECT state FROM vm WHERE name LIKE 'fed%'") == "booting"

    async def test_one_replica_does_it_in_an_interval(self, world, db, gateway, settings):
        await self.sweep(world)
        await SnapshotSweeper(db, gateway, settings).step()
        assert len(gateway.called("all")) == 1
