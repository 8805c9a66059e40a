"""Why disks are not made is read from their objects and told by the VM, as long as it waits for them."""

import pytest

from app.config import Settings
from app.domain.observation import Failure, Observation
from app.domain.states import VmState
from app.errors import ClusterError, ClusterForbidden, ClusterUnavailable
from app.reconcilers.runtime.loop import FORBIDDEN_SECONDS, Wake
from app.reconcilers.vms.disk_failures import DiskFailures
from app.reconcilers.vms.status_writer import StatusWriter
from app.store.pools import statistics
from tests.support.rows import execute, fetch, make_pool, make_vms, scalar

BARE = Failure("DataVolumeError", "the VM's status is DataVolumeError", transient=True)
NOT_FOUND = Failure("import", "404 Not Found", transient=True)
FAILED = {"disks": "DataVolumeError", "failure": BARE}
IMPORTING = {"disks": "Provisioning"}


class Scene:
    """VMs of a pool that boot, seen by a status writer, at a time that the test sets."""

    def __init__(self, db, gateway):
        self.db, self.gateway, self.now = db, gateway, 0.0
        self.failures = DiskFailures(db, gateway, Wake(), every_seconds=3, clock=lambda: self.now)
        self.writer = StatusWriter(db, gateway, Settings(), disk_failures=self.failures)

    async def show(self, vm_id, **given):
        row = (await fetch(self.db, "SELECT name, uid FROM vm WHERE id = :id", id=vm_id))[0]
        obs = Observation(name=row["name"], namespace="default", uid=row["uid"], vm_id=str(vm_id), **given)
        await self.writer.apply_changes([obs])

    async def health(self, vm_id):
        return await scalar(self.db, "SELECT health FROM vm WHERE id = :id", id=vm_id)


@pytest.fixture
def scene(db, gateway):
    return Scene(db, gateway)


@pytest.fixture
async def vm_id(db):
    return (await make_vms(db, await make_pool(db), 1, VmState.BOOTING))[0]


async def test_what_ails_the_disk_takes_the_place_of_the_bare_status_and_stays(scene, vm_id):
    scene.gateway.disks = {f"uid-{vm_id}": NOT_FOUND}
    await scene.show(vm_id, **FAILED)
    assert await scene.health(vm_id) == f"DataVolumeError: {BARE.message}"
    assert not await scene.failures.step()
    assert await scene.health(vm_id) == "import: 404 Not Found"
    for given in (FAILED, IMPORTING, FAILED):
        await scene.show(vm_id, **given)
        assert await scene.health(vm_id) == "import: 404 Not Found"


async def test_between_two_attempts_the_last_failure_counts_and_after_the_disk_is_there_none(scene, vm_id):
    scene.gateway.disks = {f"uid-{vm_id}": NOT_FOUND}
    await scene.show(vm_id, **FAILED)
    await scene.failures.step()
    del scene.gateway.disks[f"uid-{vm_id}"]  # the import is tried again, and tells nothing
    scene.now += 10
    await scene.failures.step()
    assert await scene.health(vm_id) == "import: 404 Not Found"
    scene.gateway.disks[f"uid-{vm_id}"] = None
    scene.now += 10
    await scene.failures.step()
    assert await scene.health(vm_id) is None
    assert await scalar(scene.db, "SELECT unhealthy_since FROM vm") is None


async def test_a_disk_that_is_being_made_is_looked_at_after_a_while_and_then_now_and_then(scene, vm_id):
    scene.gateway.disks = {f"uid-{vm_id}": Failure("disk", "no accessModes", transient=True)}
    await scene.show(vm_id, **IMPORTING)
    await scene.failures.step()
    assert scene.gateway.called("disks") == []
    scene.now += 5
    for _ in range(3):
        await scene.failures.step()
    assert scene.gateway.called("disks") == [f"uid-{vm_id}"]
    assert await scene.health(vm_id) == "disk: no accessModes"
    scene.now += 5
    await scene.failures.step()
    assert len(scene.gateway.called("disks")) == 2


async def test_a_pvc_that_is_not_bound_for_long_is_told_though_no_object_tells_of_it(scene, vm_id):
    await scene.show(vm_id, disks="WaitingForVolumeBinding")
    scene.now += 10
    await scene.failures.step()
    assert await scene.health(vm_id) is None
    scene.now += 10
    await scene.failures.step()
    assert await scene.health(vm_id) == "WaitingForVolumeBinding: a PVC of the VM is not bound"


@pytest.mark.parametrize("given", [{"phase": "Scheduling", "vmi_uid": "vmi"}, {**FAILED, "deleting": True}])
async def test_a_vm_that_waits_no_more_is_not_looked_at(scene, vm_id, given):
    await scene.show(vm_id, **IMPORTING)
    await scene.show(vm_id, **given)
    scene.now += 60
    await scene.failures.step()
    assert scene.gateway.called("disks") == []


async def test_nor_is_one_that_is_given_up_meanwhile(scene, vm_id):
    await scene.show(vm_id, **FAILED)
    await execute(scene.db, "UPDATE vm SET state = 'failed', health = 'x'")
    scene.gateway.disks = {f"uid-{vm_id}": NOT_FOUND}
    await scene.failures.step()
    assert await scene.health(vm_id) == "x"
    scene.now += 60
    await scene.failures.step()
    assert len(scene.gateway.called("disks")) == 1


async def test_many_are_read_in_one_list_every_few_seconds(scene, db):
    ids = await make_vms(db, await make_pool(db, "many"), 60, VmState.BOOTING)
    scene.gateway.disks = {f"uid-{vm_id}": NOT_FOUND for vm_id in ids}
    for vm_id in ids:
        await scene.show(vm_id, **FAILED)
        await scene.failures.step()
        scene.now += 0.1
    assert len(scene.gateway.called("disks")) == 2
    scene.now += 3
    await scene.failures.step()
    assert len(scene.gateway.called("disks")) == 3
    assert {await scene.health(vm_id) for vm_id in ids} == {"import: 404 Not Found"}


async def test_a_cluster_that_is_away_is_asked_again_and_one_that_forbids_it_after_a_minute(scene, vm_id):
    scene.gateway.disks = {f"uid-{vm_id}": NOT_FOUND}
    await scene.show(vm_id, **FAILED)
    scene.gateway.refuse("disks", ClusterUnavailable("it is away"), times=1)
    with pytest.raises(ClusterUnavailable):
        await scene.failures.step()
    scene.now += 3
    await scene.failures.step()
    assert await scene.health(vm_id) == "import: 404 Not Found"
    scene.gateway.refuse("disks", ClusterError("it broke"), times=1)
    scene.now += 10
    await scene.failures.step()
    assert await scene.health(vm_id) == "import: 404 Not Found"
    scene.gateway.refuse("disks", ClusterForbidden("not allowed"), times=1)
    scene.now += 10
    await scene.failures.step()
    calls = len(scene.gateway.called("disks"))
    await scene.show(vm_id, **FAILED)
    scene.now += 10
    await scene.failures.step()
    assert len(scene.gateway.called("disks")) == calls
    scene.now += FORBIDDEN_SECONDS
    await scene.show(vm_id, **FAILED)
    await scene.failures.step()
    assert len(scene.gateway.called("disks")) == calls + 1


async def test_its_pool_and_its_claims_tell_it(scene, vm_id):
    scene.gateway.disks = {f"uid-{vm_id}": NOT_FOUND}
    await scene.show(vm_id, **FAILED)
    await scene.failures.step()
    await execute(scene.db, "UPDATE vm SET unhealthy_since = now() - interval '1 minute'")
    pool_id = await scalar(scene.db, "SELECT id FROM pool")
    async with scene.db.begin() as tx:
        assert str((await statistics.ailments(tx, [pool_id]))[pool_id]) == "1 of 1 VM: import: 404 Not Found"
        assert await statistics.why_waiting_for(tx, [pool_id]) == {pool_id: "1 of 1 VM: import: 404 Not Found"}
