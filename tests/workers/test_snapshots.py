"""Snapshots taken, refreshed and let go, with a cluster in memory: whatever goes wrong, nothing is left behind, and the reason is told."""

from dataclasses import replace
from datetime import timedelta

import pytest

from app.domain.snapshots import SourceVm, VolumeVerdict
from app.errors import ClusterForbidden, ClusterRefused, ClusterUnavailable
from app.store.snapshots import ready_for_shape, start_of
from app.usecases.claims import release_claim
from app.usecases.pools import delete_pool
from app.usecases.snapshots import delete_snapshot, refresh_snapshot
from app.workers.snapshots import Snapshots
from tests.store.scenes import execute, fetch, scalar
from tests.workers.snapshot_scenes import DISKLESS, TEMPLATE, Died, World

OTHER = {"spec": {"domain": {"memory": {"guest": "2Gi"}}, "volumes": TEMPLATE["spec"]["volumes"]}}


@pytest.fixture
def world(db, gateway, settings):
    return World(db, gateway, settings)


async def nothing_is_left(world):
    """No VM, no open claim, no object but those of takes that serve."""
    await world.settle()
    assert not world.gateway.vms
    assert not await scalar(world.db, "SELECT count(*) FROM claim WHERE state IN ('pending', 'bound')")
    serving = await scalar(world.db, "SELECT count(*) FROM snapshot_take WHERE state = 'ready'")
    assert len(world.gateway.snapshots.objects) == serving


class TestOfAPool:
    async def test_a_vm_is_booted_for_it_stopped_taken_and_removed(self, world, db):
        pool = await world.make_pool()
        await world.ask()
        take = await world.until("ready")
        assert [name for call, name in world.gateway.calls if call == "stop"] == [take["vm_name"]]
        assert take["vm_uid"]
        assert take["based_at"] is not None
        assert take["shape"] == pool.shape
        assert take["disks"][0]["volume"] == "root"
        assert take["bytes"] == 2 * 1024**3
        assert take["excluded"] == [{"name": "cloudinit", "reason": "there is no disk"}]
        assert await world.claims() == ["released"]
        async with db.begin() as tx:
            options = await ready_for_shape(tx, pool.shape)
            start = await start_of(tx, "ready")
        assert [option.name for option in options] == ["ready"]
        assert start.disks[0].size == "2Gi"
        await nothing_is_left(world)
        assert await scalar(db, "SELECT count(*) FROM vm") == 1

    async def test_its_warm_vms_are_left_alone(self, world, db):
        pool = await world.make_pool(size=1)
        await world.ask()
        await world.until("ready")
        await world.settle()
        warm = await fetch(db, "SELECT id FROM vm WHERE pool_id = :id", id=pool.id)
        assert len(warm) == 1
        assert await scalar(db, "SELECT state FROM vm WHERE id = :id", id=warm[0]["id"]) == "ready"

    async def test_frozen_it_runs_on_while_it_is_taken(self, world):
        await world.make_pool()
        await world.ask(quiesce="freeze")
        await world.until("ready")
        assert "stop" not in {call for call, _ in world.gateway.calls}

    async def test_the_watch_does_not_take_the_stop_for_a_death(self, world, db):
        await world.make_pool()
        world.gateway.snapshots.stops_at_once = False
        await world.ask()
        take = await world.until("stopping")
        await world.turn()
        assert world.gateway.called("stop") == [take["vm_name"]]
        assert await scalar(db, "SELECT stopped FROM vm")
        world.gateway.snapshots.shut_down(take["vm_name"])
        await world.surround()
        assert await world.claims() == ["bound"]
        await world.until("ready")
        assert world.gateway.called("stop") == [take["vm_name"]]

    async def test_it_says_what_it_waits_for(self, world):
        await world.make_pool()
        world.boots = False
        await world.ask()
        await world.until("booting")
        await world.turn()
        assert (await world.take())["reason"].startswith("a VM is being booted for it")

    async def test_a_pool_that_starts_from_the_snapshot_itself_is_booted_cold_for_it(self, world, db):
        await world.make_pool()
        await world.ask()
        await world.until("ready")
        await world.make_pool(start_from={"snapshot": "ready"})
        await world.turn()
        await refresh_snapshot(db, "ready")
        await world.until("ready", number=2)
        await nothing_is_left(world)
        assert {row["path"] for row in await fetch(db, "SELECT path FROM vm")} == {"cold"}


class TestOfAVm:
    @pytest.fixture
    def other(self, gateway):
        verdicts = (
            VolumeVerdict("root", enabled=True),
            VolumeVerdict("scratch", enabled=False, reason="a container disk"),
        )
        vm = SourceVm("ubuntu", "uid-u", running=True, halted=False, deleting=False, volumes=verdicts, shape="abc")
        gateway.snapshots.others["ubuntu"] = vm
        gateway.snapshots.volumes = verdicts
        return vm

    async def test_it_is_taken_as_it_is(self, world, other):
        await world.ask(source={"vm": "ubuntu"})
        take = await world.until("ready")
        assert (take["vm_name"], take["vm_uid"], take["shape"]) == ("ubuntu", "uid-u", "abc")
        assert take["excluded"] == [{"name": "scratch", "reason": "a container disk"}]
        assert await world.claims() == []
        assert "stop" not in {call for call, _ in world.gateway.calls}

    async def test_one_of_a_pool_of_ours_serves_the_shape_of_that_pool(self, world, db):
        pool = await world.make_pool(size=1)
        await world.surround()
        (vm,) = await fetch(db, "SELECT name, uid FROM vm")
        await world.ask(source={"vm": vm["name"]})
        take = await world.until("ready")
        assert (take["vm_uid"], take["shape"]) == (vm["uid"], pool.shape)
        assert await scalar(db, "SELECT state FROM vm") == "ready"

    async def test_one_that_went_meanwhile_fails_it(self, world, other, gateway):
        await world.ask(source={"vm": "ubuntu"})
        del gateway.snapshots.others["ubuntu"]
        take = await world.until("failed")
        assert take["reason"] == "there is no VM 'ubuntu' in the namespace any more"

    async def test_one_whose_disks_cannot_be_taken_any_more_fails_it(self, world, other, gateway):
        await world.ask(source={"vm": "ubuntu"})
        none = (VolumeVerdict("root", enabled=False, reason="PVC not found"),)
        gateway.snapshots.others["ubuntu"] = replace(other, volumes=none)
        assert (await world.until("failed"))["reason"] == "root: PVC not found"


class TestWhatGoesWrong:
    @pytest.fixture(autouse=True)
    async def pool(self, world):
        return await world.make_pool()

    async def test_a_snapshot_that_kubevirt_fails(self, world):
        world.gateway.snapshots.outcome = {"failed": True, "error": "snapshot deadline exceeded"}
        await world.ask()
        take = await world.until("failed")
        assert take["reason"] == "KubeVirt could not take it: snapshot deadline exceeded"
        await nothing_is_left(world)

    async def test_a_snapshot_that_hangs_is_given_up_after_its_time(self, world, db):
        world.gateway.snapshots.outcome = {"progress": "Source not locked volume not bound"}
        await world.ask(timeout_seconds=60)
        await world.until("taking")
        await world.turn()
        assert (await world.take())["reason"] == "Source not locked volume not bound"
        await execute(db, "UPDATE snapshot_take SET state_since = now() - interval '121 s'")
        assert "not ready 60 s after" in (await world.until("failed"))["reason"]
        await nothing_is_left(world)

    async def test_a_snapshot_with_nothing_in_it(self, world):
        world.gateway.snapshots.volumes = (VolumeVerdict("root", enabled=True),)
        await world.ask()
        world.gateway.snapshots.volumes = ()
        assert "without a single volume" in (await world.until("failed"))["reason"]
        await nothing_is_left(world)

    async def test_a_snapshot_that_somebody_deletes(self, world):
        world.gateway.snapshots.outcome = {}
        await world.ask()
        await world.until("taking")
        await world.turn()
        world.gateway.snapshots.objects.clear()
        assert "was deleted in the cluster" in (await world.until("failed"))["reason"]
        await nothing_is_left(world)

    async def test_a_vm_that_dies_while_it_stops(self, world):
        world.gateway.snapshots.stops_at_once = False
        await world.ask()
        take = await world.until("stopping")
        await world.turn()
        world.gateway.vanish(take["vm_name"])
        world.gateway.snapshots.stops_at_once = True
        assert (await world.until("failed"))["reason"]
        await nothing_is_left(world)

    async def test_a_vm_that_does_not_stop(self, world, db):
        world.gateway.snapshots.stops_at_once = False
        await world.ask()
        await world.until("stopping")
        await world.turn()
        await execute(db, "UPDATE snapshot_take SET state_since = now() - interval '301 s'")
        assert (await world.until("failed"))["reason"] == "its VM did not stop within 300 s"
        await nothing_is_left(world)

    async def test_a_claim_that_somebody_releases(self, world, db):
        world.boots = False
        await world.ask()
        take = await world.until("booting")
        await release_claim(db, take["claim_id"])
        assert (await world.until("failed"))["reason"].startswith("no VM could be booted for it")
        await nothing_is_left(world)

    async def test_vms_that_never_come_up(self, world, settings):
        world.gateway.refuse("create", ClusterRefused("no such instance type"))
        await world.ask()
        take = None
        for _ in range(40):
            await execute(world.db, "UPDATE pool SET backoff_until = NULL")
            await world.turn()
            take = await world.take()
            if take["state"] == "failed":
                break
        assert take["state"] == "failed"
        assert take["reason"] == "no VM could be booted for it: 3 failed in a row: no such instance type"
        await nothing_is_left(world)

    @pytest.mark.parametrize("call", ["source", "stop", "look", "take", "disks"])
    async def test_an_absent_cluster_is_waited_for(self, world, call):
        world.gateway.refuse(call, ClusterUnavailable("refused"), times=2)
        await world.ask()
        await world.until("ready")
        await nothing_is_left(world)

    @pytest.mark.parametrize("call", ["stop", "look", "take", "disks"])
    async def test_what_the_cluster_forbids_fails_it_with_its_words(self, world, call):
        world.gateway.refuse(call, ClusterForbidden("no right to that"))
        await world.ask()
        assert (await world.until("failed"))["reason"] == "no right to that"
        await nothing_is_left(world)

    async def test_an_absent_cluster_is_said(self, world):
        world.gateway.refuse("take", ClusterUnavailable("refused"))
        await world.ask()
        await world.until("taking")
        await world.look()
        assert (await world.take())["reason"] == "the cluster is away: refused"
        assert await scalar(world.db, "SELECT attempts FROM snapshot") > 0

    async def test_an_object_of_that_name_that_is_not_ours_is_left_alone(self, world):
        world.gateway.snapshots.outcome = {}
        await world.ask()
        await world.until("taking")
        await world.turn()
        (name,) = world.gateway.snapshots.objects
        stranger = replace(world.gateway.snapshots.objects[name], take_id="not-ours", uid="other")
        world.gateway.snapshots.objects[name] = stranger
        assert "not ours" in (await world.until("failed"))["reason"]
        assert world.gateway.snapshots.objects == {name: stranger}

    async def test_what_cannot_be_removed_is_tried_until_it_can(self, world):
        world.gateway.snapshots.outcome = {"failed": True, "error": "x"}
        world.gateway.refuse("remove", ClusterForbidden("not yet"), times=3)
        await world.ask()
        await world.until("failed")
        await nothing_is_left(world)

    async def test_one_that_goes_slowly_has_not_failed_until_it_is_gone(self, world):
        world.gateway.snapshots.outcome = {"failed": True, "error": "x"}
        world.gateway.snapshots.lingers = True
        await world.ask()
        await world.until("failing")
        for _ in range(3):
            await world.turn()
        assert (await world.take())["state"] == "failing"
        world.gateway.snapshots.objects.clear()
        assert (await world.until("failed"))["reason"] == "KubeVirt could not take it: x"


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
        await nothing_is_left(world)

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
        await nothing_is_left(world)

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
        await nothing_is_left(world)

    async def test_its_objects_go_and_its_name_is_free(self, world, db):
        await world.ask()
        await world.until("ready")
        await delete_snapshot(db, "ready", force=False)
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
        await delete_snapshot(db, "ready", force=False)
        await self.gone(world)

    async def test_forced_its_pools_start_cold_and_say_so(self, world, db):
        await world.ask()
        await world.until("ready")
        await world.make_pool("fed", size=1, start_from={"snapshot": "ready"})
        await delete_snapshot(db, "ready", force=True)
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
        await world.worker.sweep()

    async def test_what_rows_know_stays(self, world):
        await self.sweep(world)
        assert len(world.gateway.snapshots.objects) == 1
        assert await world.states() == ["ready"]

    async def test_what_no_row_knows_is_removed(self, world, taken):
        (known,) = world.gateway.snapshots.objects.values()
        orphan = replace(known, name="left", uid="left", take_id="01a206d8-517b-7231-a079-9e6d21989c09")
        foreign = replace(known, name="odd", uid="odd", take_id="what?")
        world.gateway.snapshots.objects |= {"left": orphan, "odd": foreign}
        await self.sweep(world)
        assert set(world.gateway.snapshots.objects) == {known.name, "odd"}

    async def test_what_is_over_and_came_back_is_removed(self, world, db):
        """A create that was on its way while its take was given up."""
        objects = dict(world.gateway.snapshots.objects)
        await delete_snapshot(db, "ready", force=False)
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

    async def test_one_replica_does_it_in_an_interval(self, world, db, gateway, settings):
        await self.sweep(world)
        await Snapshots(db, gateway, settings).sweep()
        assert len(gateway.called("all")) == 1


async def test_two_workers_never_have_one_snapshot(world, db, gateway, settings):
    await world.make_pool()
    await world.ask()
    other = Snapshots(db, gateway, settings)
    inner = gateway.snapshots.source

    async def source(name):
        await other.step()  # it is leased, and not due for anybody else
        return await inner(name)

    gateway.snapshots.source = source
    await world.until("ready")
    assert len(gateway.called("take")) == 1
    await nothing_is_left(world)


class Crashing:
    """Counts what a worker does to the rows and to the cluster, and kills it before the `at`th."""

    def __init__(self, at):
        self.at = at
        self.count = 0

    def hit(self, *_):
        self.count += 1
        if self.count == self.at:
            raise Died

    def wrap(self, world):
        db = world.db
        crash = self

        class Database:
            url = db.url

            def begin(self):
                crash.hit()
                return db.begin()

        for call in ("source", "stop", "take", "look", "disks", "remove"):
            world.gateway.before[call] = self.hit
        return Snapshots(Database(), world.gateway, world.settings)


@pytest.mark.parametrize("outcome", [{"ready": True}, {"failed": True, "error": "no space"}])
async def test_killed_between_any_two_steps_it_ends_the_same(world, db, outcome):
    await world.make_pool()
    world.gateway.snapshots.outcome = outcome
    at = 0
    while True:
        at += 1
        name = f"s{at}"
        await world.ask(name)
        crash = Crashing(at)
        world.worker = crash.wrap(world)
        died = False
        for _ in range(20):
            try:
                await world.look()
            except Died:
                died = True
                break
            await world.surround()
            if (await world.take(name=name))["state"] in {"ready", "failed"}:
                break
        world.gateway.before.clear()
        world.worker = Snapshots(db, world.gateway, world.settings)
        take = await world.until("ready" if "ready" in outcome else "failed", name=name)
        await nothing_is_left(world)
        made = await scalar(
            db,
            "SELECT count(DISTINCT v.id) FROM vm v JOIN claim c ON c.id = v.claim_id WHERE c.id = :id",
            id=take["claim_id"],
        )
        assert made == 1, at
        await execute(db, "DELETE FROM snapshot")
        world.gateway.snapshots.objects.clear()
        if not died:
            break
    assert at > 15


async def test_a_take_that_is_not_over_holds_its_claim_however_long_the_cluster_is_away(world, db):
    await world.make_pool()
    world.gateway.snapshots.outcome = {}
    await world.ask()
    take = await world.until("taking")
    await execute(db, "UPDATE claim SET lease_expires_at = now() + interval '10 s' WHERE id = :id", id=take["claim_id"])
    await world.look()
    left = await scalar(db, "SELECT lease_expires_at - now() FROM claim WHERE id = :id", id=take["claim_id"])
    assert left > timedelta(minutes=10)
    world.gateway.snapshots.turn_out(next(iter(world.gateway.snapshots.objects)), ready=True)
    await world.until("ready")
