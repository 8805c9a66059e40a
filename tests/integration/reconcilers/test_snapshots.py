"""Snapshots taken with a cluster in memory: whatever goes wrong, nothing is left behind, and the reason is told."""

from dataclasses import replace
from datetime import timedelta

import pytest

from app.domain.snapshots import SourceVm, VolumeVerdict
from app.errors import ClusterForbidden, ClusterRefused, ClusterUnavailable
from app.services.claims.lifecycle import release_claim
from app.services.snapshots.service import refresh_snapshot
from app.store.snapshots.sources import ready_for_shape, start_of
from tests.support.rows import execute, fetch, scalar
from tests.support.snapshot_world import TEMPLATE, World


@pytest.fixture
def world(db, gateway, settings):
    return World(db, gateway, settings)


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
        await world.nothing_is_left()
        assert await scalar(db, "SELECT count(*) FROM vm") == 1

    async def test_its_guest_gets_the_time_to_shut_down(self, world, db):
        """A pool's VMs may be ended by force: nobody reads their disks again. This one's are read."""
        short = {"spec": {**TEMPLATE["spec"], "terminationGracePeriodSeconds": 0}}
        pool = await world.make_pool(template=short)
        await world.ask()
        take = await world.until("ready")
        made = await scalar(
            db,
            "SELECT p.vm_spec FROM pool p JOIN claim c ON c.pool_id = p.id WHERE c.id = :id",
            id=take["claim_id"],
        )
        assert made["template"]["spec"]["terminationGracePeriodSeconds"] == 180
        assert take["shape"] == pool.shape

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
        await world.nothing_is_left()
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
        await world.nothing_is_left()

    async def test_a_snapshot_that_hangs_is_given_up_after_its_time(self, world, db):
        world.gateway.snapshots.outcome = {"progress": "Source not locked volume not bound"}
        await world.ask(timeout_seconds=60)
        await world.until("taking")
        await world.turn()
        assert (await world.take())["reason"] == "Source not locked volume not bound"
        await execute(db, "UPDATE snapshot_take SET state_since = now() - interval '121 s'")
        assert "not ready 60 s after" in (await world.until("failed"))["reason"]
        await world.nothing_is_left()

    async def test_a_snapshot_with_nothing_in_it(self, world):
        world.gateway.snapshots.volumes = (VolumeVerdict("root", enabled=True),)
        await world.ask()
        world.gateway.snapshots.volumes = ()
        assert "without a single volume" in (await world.until("failed"))["reason"]
        await world.nothing_is_left()

    async def test_a_snapshot_that_somebody_deletes(self, world):
        world.gateway.snapshots.outcome = {}
        await world.ask()
        await world.until("taking")
        await world.turn()
        world.gateway.snapshots.objects.clear()
        assert "was deleted in the cluster" in (await world.until("failed"))["reason"]
        await world.nothing_is_left()

    async def test_a_vm_that_dies_while_it_stops(self, world):
        world.gateway.snapshots.stops_at_once = False
        await world.ask()
        take = await world.until("stopping")
        await world.turn()
        world.gateway.vanish(take["vm_name"])
        world.gateway.snapshots.stops_at_once = True
        assert (await world.until("failed"))["reason"]
        await world.nothing_is_left()

    async def test_a_vm_that_does_not_stop(self, world, db):
        world.gateway.snapshots.stops_at_once = False
        await world.ask()
        await world.until("stopping")
        await world.turn()
        await execute(db, "UPDATE snapshot_take SET state_since = now() - interval '301 s'")
        assert (await world.until("failed"))["reason"] == "its VM did not stop within 300 s"
        await world.nothing_is_left()

    async def test_a_claim_that_somebody_releases(self, world, db):
        world.boots = False
        await world.ask()
        take = await world.until("booting")
        await release_claim(db, take["claim_id"])
        assert (await world.until("failed"))["reason"].startswith("no VM could be booted for it")
        await world.nothing_is_left()

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
        await world.nothing_is_left()

    @pytest.mark.parametrize("call", ["source", "stop", "look", "take", "disks"])
    async def test_an_absent_cluster_is_waited_for(self, world, call):
        world.gateway.refuse(call, ClusterUnavailable("refused"), times=2)
        await world.ask()
        await world.until("ready")
        await world.nothing_is_left()

    @pytest.mark.parametrize("call", ["stop", "look", "take", "disks"])
    async def test_what_the_cluster_forbids_fails_it_with_its_words(self, world, call):
        world.gateway.refuse(call, ClusterForbidden("no right to that"))
        await world.ask()
        assert (await world.until("failed"))["reason"] == "no right to that"
        await world.nothing_is_left()

    async def test_an_absent_cluster_is_said(self, world):
        world.gateway.refuse("take", ClusterUnavailable("refused"))
        await world.ask()
        await world.until("taking")
        await world.look()
        assert (await world.take())["reason"] == "the cluster is unavailable: refused"
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
        await world.nothing_is_left()

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
