"""Everything that snapshots ask of a cluster: a role that lacks one right of it is not enough."""

from app.compute.gateway import Gateway
from app.domain.observation import WarmWhen
from app.domain.paths import FromSnapshot
from app.ids import new_id, vm_name
from tests.support.kubevirt_documents import WITH_DATA_VOLUME
from tests.support.rows import eventually


async def take_and_start(gateway: Gateway) -> None:
    """Raises ClusterForbidden where a right is missing."""
    snapshots = gateway.snapshots
    template = gateway.expand(WITH_DATA_VOLUME, WarmWhen.READY)
    vm = await _make(gateway, template)

    async def has_disks():
        found = await snapshots.source(vm.name)
        return found is not None and any(volume.enabled for volume in found.volumes)

    async def has_stopped():
        found = await snapshots.source(vm.name)
        return found is not None and not found.running

    await eventually(has_disks)
    await snapshots.stop(name=vm.name, uid=vm.uid)
    await eventually(has_stopped)
    take = {"snapshot": "ready", "take_id": str(new_id()), "vm": vm.name, "deadline_seconds": 60}
    name = vm_name("ready", new_id())
    made = await snapshots.take(name=name, **take)
    assert (await snapshots.take(name=name, **take)).uid == made.uid  # the answer was lost, and the call is made again

    async def is_ready():
        found = await snapshots.look(name)
        return found if found is not None and found.ready else None

    sight = await eventually(is_ready)
    disks = await snapshots.disks(sight)
    assert name in {each.name for each in await snapshots.all()}
    started = await _make(gateway, template, FromSnapshot("ready", disks))
    for each in (vm, started):
        await gateway.delete_vm(name=each.name, uid=each.uid)
    await snapshots.remove(name=name, uid=made.uid, take_id=take["take_id"])


async def _make(gateway, template, start=None):
    vm_id = new_id()
    name = vm_name("disks", vm_id)
    return await gateway.create_vm(name=name, pool="disks", vm_id=str(vm_id), spec=template.spec, start=start)
