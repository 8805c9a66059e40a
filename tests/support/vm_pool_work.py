"""All that the service asks of a cluster for VirtualMachinePools: one of its own, and one that it takes over."""

from app.compute.gateway import Gateway
from app.compute.vm_pools import VmPoolOrder
from app.domain.observation import WarmWhen
from app.domain.vm_pools import Change
from app.ids import new_id, vm_pool_name
from tests.support.rows import eventually

_TEMPLATE = {"image": "registry.example/fedora:42", "cpu": 1, "memory": "1Gi"}


async def keep_vm_pools(gateway: Gateway) -> None:
    """Raises ClusterForbidden where a right is missing."""
    pools, template, pool_id = gateway.vm_pools, gateway.expand(_TEMPLATE, WarmWhen.AGENT), new_id()
    order = VmPoolOrder(vm_pool_name("web", pool_id, 1), "web", pool_id, template.spec, template.fingerprint)
    await pools.check(order)
    seen = await pools.make(order, replicas=1, paused=False)
    seen = await pools.change(order, seen, Change(replicas=2, template=True))

    async def has_vms():
        found = await pools.find(order.name)
        return found.members if found is not None and len(found.members) == 2 else None

    async def is_known():
        return not await pools.enroll(taken, seen.uid)

    names = await eventually(has_vms)
    # As if somebody else's: nothing of them is known, and their labels are of another pool.
    taken = VmPoolOrder(order.name, "taken", new_id(), template.spec, template.fingerprint)
    await eventually(is_known)
    listed = await gateway.list_vms()
    for vm in listed.observations:
        if vm.name in names:
            await pools.detach(name=vm.name, uid=vm.uid, claim_id=str(new_id()))
            await gateway.delete_vm(name=vm.name, uid=vm.uid)
    (seen,) = await pools.all()
    await pools.remove(seen)
    going = await pools.look(order.name)
    if going is not None:
        await pools.free(going)
