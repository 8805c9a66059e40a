"""VMs on their way whose disks were to be made from what the cluster has lost since: nothing will come of them.

Left alone they would be waited for until their boot timeout, by claims to which another path may be open.
"""

from collections.abc import Iterable
from uuid import UUID

from app.domain.states import VmState
from app.reconcilers.vms.outcomes import FateRules, give_up
from app.store.database import Database
from app.store.vms import observed
from app.telemetry import VM_ENDS


async def give_up_stranded(db: Database, vm_ids: Iterable[UUID], *, reason: str, rules: FateRules) -> None:
    """Each in its own transaction. One that has got a node meanwhile has its disks, and goes on."""
    for vm_id in vm_ids:
        async with db.begin() as tx:
            vm = (await observed.by_ids(tx, [vm_id])).get(vm_id)
            if vm is None or vm.state not in {VmState.CREATING, VmState.BOOTING} or vm.facts.node is not None:
                continue
            now = await observed.database_now(tx)
            if await give_up(tx, vm, VmState.FAILED, reason=reason, rules=rules, now=now):
                VM_ENDS.labels(was=vm.state, became=VmState.FAILED).inc()
