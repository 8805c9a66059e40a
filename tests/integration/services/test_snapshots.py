"""Asking for snapshots, and letting them go: what is refused, and that asking twice is asking once."""

from dataclasses import replace

import pytest

from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import SourceVm, VolumeVerdict
from app.errors import (
    ClusterUnavailable,
    Conflict,
    InvalidRequest,
    PoolBeingDeleted,
    PoolNotFound,
    SnapshotBeingDeleted,
    SnapshotInUse,
    SnapshotNotFound,
    SnapshotRefused,
    VmNotFound,
)
from app.services.pools.service import delete_pool, put_pool
from app.services.snapshots.service import create_snapshot, delete_snapshot, prepare_snapshot, refresh_snapshot
from app.services.writes import WriteOutcome
from tests.support.rows import event_types, scalar, spec

TEMPLATE = {"spec": {"domain": {}, "volumes": [{"name": "root", "dataVolume": {"name": "root"}}]}}
DISKLESS = {"spec": {"domain": {}, "volumes": []}}
NONE = (VolumeVerdict("root", enabled=False, reason="a container disk"),)


def wanted(name="ready", **given):
    return SnapshotSpec(**{"name": name, "source": {"pool": "web"}, **given})


@pytest.fixture(autouse=True)
async def pool(db, gateway):
    return (await put_pool(db, gateway, "web", spec(size=1, template=TEMPLATE))).pool


async def test_creating_the_same_snapshot_twice_changes_nothing(db, gateway):
    first = await create_snapshot(db, gateway, wanted())
    second = await create_snapshot(db, gateway, wanted())
    assert (first.outcome, second.outcome) == (WriteOutcome.CREATED, WriteOutcome.UNCHANGED)
    assert first.snapshot.id == second.snapshot.id
    assert await scalar(db, "SELECT count(*) FROM snapshot_take") == 1
    assert [name for name in await event_types(db) if name.startswith("snapshot")] == [
        "snapshot.created",
        "snapshot.planned",
    ]


async def test_preparing_tells_the_outcome_and_writes_nothing(db, gateway):
    prepared = await prepare_snapshot(db, gateway, wanted())
    assert (prepared.before, prepared.outcome) == (None, WriteOutcome.CREATED)
    assert await scalar(db, "SELECT count(*) FROM snapshot") == 0
    with pytest.raises(PoolNotFound):
        await prepare_snapshot(db, gateway, wanted(source={"pool": "nope"}))
    await create_snapshot(db, gateway, wanted())
    assert (await prepare_snapshot(db, gateway, wanted())).outcome is WriteOutcome.UNCHANGED


async def test_another_one_under_the_name_is_refused_by_what_differs(db, gateway):
    await create_snapshot(db, gateway, wanted())
    with pytest.raises(Conflict, match="keep: the snapshot has 1, the request has 2") as error:
        await create_snapshot(db, gateway, wanted(keep=2))
    assert [problem.field for problem in error.value.problems] == ["keep"]


async def test_two_that_ask_at_once_get_one(db, gateway):
    gateway.snapshots.others["u"] = SourceVm("u", "1", False, True, False, (VolumeVerdict("root", enabled=True),), "s")
    inner = gateway.snapshots.source
    first = []

    async def source(name):
        gateway.snapshots.source = inner
        first.append(await create_snapshot(db, gateway, wanted(source={"vm": "u"})))
        return await inner(name)

    gateway.snapshots.source = source
    second = await create_snapshot(db, gateway, wanted(source={"vm": "u"}))
    assert second.outcome is WriteOutcome.UNCHANGED
    assert second.snapshot.id == first[0].snapshot.id


class TestSources:
    async def test_a_pool_must_be_there(self, db, gateway):
        with pytest.raises(PoolNotFound, match="nope"):
            await create_snapshot(db, gateway, wanted(source={"pool": "nope"}))

    async def test_and_must_stay(self, db, gateway):
        await delete_pool(db, "web", force=False)
        with pytest.raises(PoolBeingDeleted):
            await create_snapshot(db, gateway, wanted())

    async def test_and_must_have_a_disk_that_can_be_taken(self, db, gateway):
        gateway.snapshots.volumes = NONE
        with pytest.raises(SnapshotRefused, match="root: a container disk") as error:
            await create_snapshot(db, gateway, wanted())
        assert error.value.problems[0].field == "source.pool"

    async def test_a_vm_must_be_there(self, db, gateway):
        with pytest.raises(VmNotFound, match="'nope' does not exist"):
            await create_snapshot(db, gateway, wanted(source={"vm": "nope"}))

    @pytest.mark.parametrize(
        ("volumes", "says"),
        [(NONE, "root: a container disk"), ((), "it has no volumes")],
    )
    async def test_and_must_have_a_disk_too(self, db, gateway, volumes, says):
        gateway.snapshots.others["u"] = SourceVm("u", "1", True, False, False, volumes, None)
        with pytest.raises(SnapshotRefused, match=says):
            await create_snapshot(db, gateway, wanted(source={"vm": "u"}))

    async def test_one_that_is_going_is_none(self, db, gateway):
        vm = SourceVm("u", "1", True, False, True, (VolumeVerdict("root", enabled=True),), None)
        gateway.snapshots.others["u"] = vm
        with pytest.raises(VmNotFound, match="is being deleted"):
            await create_snapshot(db, gateway, wanted(source={"vm": "u"}))
        gateway.snapshots.others["u"] = replace(vm, deleting=False)
        await create_snapshot(db, gateway, wanted(source={"vm": "u"}))

    async def test_with_the_cluster_away_nothing_is_stored(self, db, gateway):
        gateway.refuse("source", ClusterUnavailable("refused"))
        with pytest.raises(ClusterUnavailable):
            await create_snapshot(db, gateway, wanted(source={"vm": "u"}))
        assert await scalar(db, "SELECT count(*) FROM snapshot") == 0


class TestPoolsFromIt:
    async def test_it_must_be_there(self, db, gateway):
        with pytest.raises(InvalidRequest, match="there is no snapshot 'ready'") as error:
            await put_pool(db, gateway, "fed", spec(template=TEMPLATE, start_from={"snapshot": "ready"}))
        assert [problem.field for problem in error.value.problems] == ["start_from.snapshot"]
        assert await scalar(db, "SELECT count(*) FROM pool WHERE name = 'fed'") == 0

    async def test_it_need_not_be_ready(self, db, gateway):
        await create_snapshot(db, gateway, wanted())
        put = await put_pool(db, gateway, "fed", spec(template=TEMPLATE, start_from={"snapshot": "ready"}))
        assert (put.pool.path, put.pool.source) == ("snapshot", "ready")

    async def test_while_they_do_it_stays(self, db, gateway):
        await create_snapshot(db, gateway, wanted())
        await put_pool(db, gateway, "fed", spec(template=TEMPLATE, start_from={"snapshot": "ready"}))
        with pytest.raises(SnapshotInUse, match="'fed'"):
            await delete_snapshot(db, gateway, "ready", force=False)
        assert (await delete_snapshot(db, gateway, "ready", force=True)).deleting_at is not None

    async def test_those_that_could_not_start_without_it_hold_it_against_force(self, db, gateway):
        await create_snapshot(db, gateway, wanted())
        await put_pool(db, gateway, "fed", spec(template=DISKLESS, start_from={"snapshot": "ready"}))
        with pytest.raises(SnapshotInUse, match="could not start cold"):
            await delete_snapshot(db, gateway, "ready", force=True)
        await delete_pool(db, "fed", force=False)
        await delete_snapshot(db, gateway, "ready", force=False)

    async def test_one_that_is_going_is_none_to_start_from(self, db, gateway):
        await create_snapshot(db, gateway, wanted())
        await delete_snapshot(db, gateway, "ready", force=False)
        with pytest.raises(InvalidRequest, match="there is no snapshot"):
            await put_pool(db, gateway, "fed", spec(template=TEMPLATE, start_from={"snapshot": "ready"}))


async def test_what_is_going_is_neither_made_anew_nor_refreshed(db, gateway):
    await create_snapshot(db, gateway, wanted())
    await delete_snapshot(db, gateway, "ready", force=False)
    assert (await delete_snapshot(db, gateway, "ready", force=False)).deleting_at is not None
    with pytest.raises(SnapshotBeingDeleted):
        await create_snapshot(db, gateway, wanted())
    with pytest.raises(SnapshotBeingDeleted):
        await refresh_snapshot(db, "ready")


async def test_what_is_not_there_is_told(db, gateway):
    with pytest.raises(SnapshotNotFound, match="'nope'"):
        await refresh_snapshot(db, "nope")
    with pytest.raises(SnapshotNotFound, match="'nope'"):
        await delete_snapshot(db, gateway, "nope", force=False)
