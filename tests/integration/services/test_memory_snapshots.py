"""Asking for snapshots that keep memory: what is refused, and why."""

import pytest

from app.compute.capabilities import Capability
from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import SourceVm, VolumeVerdict
from app.errors import Conflict, SnapshotRefused
from app.services.pools.service import put_pool
from app.services.snapshots.service import create_snapshot
from tests.support.rows import execute, scalar, spec

TEMPLATE = {"spec": {"domain": {}, "volumes": [{"name": "root", "dataVolume": {"name": "root"}}]}}
ROOT = VolumeVerdict("root", enabled=True)


def wanted(**given):
    return SnapshotSpec(**{"name": "running", "source": {"pool": "web"}, "memory": True, **given})


@pytest.fixture(autouse=True)
async def pool(db, gateway):
    return (await put_pool(db, gateway, "web", spec(size=1, template=TEMPLATE))).pool


async def refused(db, gateway, snapshot, *, field):
    with pytest.raises(SnapshotRefused) as error:
        await create_snapshot(db, gateway, snapshot)
    assert [problem.field for problem in error.value.problems] == [field]
    assert await scalar(db, "SELECT count(*) FROM snapshot") == 0
    return error.value.detail


async def test_a_cluster_that_keeps_no_memory_refuses_it(db, gateway):
    gateway.lacking[Capability.MEMORY] = "KubeVirt keeps no memory. Leave memory out"
    told = await refused(db, gateway, wanted(), field="memory")
    assert told == "memory: KubeVirt keeps no memory. Leave memory out. Nothing was changed"
    assert (await create_snapshot(db, gateway, wanted(memory=False))).snapshot.memory is False


async def test_a_vm_that_cannot_be_kept_whole_is_refused(db, gateway):
    gateway.snapshots.unkeepable = ("image: a container disk",)
    told = await refused(db, gateway, wanted(), field="source.pool")
    assert "the memory of pool 'web' cannot be kept: image: a container disk" in told


async def test_a_vm_that_does_not_run_is_refused(db, gateway):
    gateway.snapshots.others["u"] = SourceVm("u", "1", False, True, False, (ROOT,), "s", {"vm": "u"})
    told = await refused(db, gateway, wanted(source={"vm": "u"}), field="source.vm")
    assert told == "source.vm: VM 'u' does not run, so it has no memory to keep; start it, or leave memory out"


async def test_a_vm_whose_storage_takes_no_snapshots_is_refused(db, gateway):
    plain = VolumeVerdict("data", enabled=False, reason="no VolumeSnapshotClass")
    gateway.snapshots.others["u"] = SourceVm("u", "1", True, False, False, (ROOT, plain), "s", {"vm": "u"})
    told = await refused(db, gateway, wanted(source={"vm": "u"}), field="source.vm")
    assert "data: no VolumeSnapshotClass" in told


async def test_with_memory_and_without_are_two_snapshots(db, gateway):
    await create_snapshot(db, gateway, wanted())
    with pytest.raises(Conflict, match="memory: the snapshot has true, the request has false"):
        await create_snapshot(db, gateway, wanted(memory=False))


async def test_the_first_one_closes_the_database_to_programs_that_cannot_read_it(db, gateway):
    await execute(db, "INSERT INTO schema_compat (revision, serves_from) VALUES ('0015', '0005')")
    await create_snapshot(db, gateway, wanted(name="disks", memory=False))
    assert await scalar(db, "SELECT serves_from FROM schema_compat") == "0005"
    await create_snapshot(db, gateway, wanted())
    assert await scalar(db, "SELECT serves_from FROM schema_compat") == "0015"
