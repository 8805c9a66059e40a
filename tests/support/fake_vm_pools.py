"""VirtualMachinePools in memory, and their controller: it does nothing until a test lets it (`act`), and then creates alone."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count

from app.compute.vm_pools import FoundVmPool
from app.compute.vms import Changed
from app.domain.observation import Observation
from app.domain.vm_pools import VmPoolStatus
from app.errors import ClusterConflict, ClusterNotFound, ClusterRefused


class FakeVmPools:
    """`acts_at_once`: the controller acts after each write. VMs and orders for failures are the gateway's."""

    def __init__(self, gateway):
        self._gateway = gateway
        self.pools = {}
        self.orders = {}
        self.acts_at_once = False
        self._uids = count(1)

    # What the service asks

    def fingerprint(self, order):
        text = json.dumps([order.spec, order.revision, repr(order.start)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    async def check(self, order):
        await self._gateway._called("check_vm_pool", order.name)

    async def look(self, name):
        await self._gateway._called("look", name)
        return self.pools.get(name)

    async def make(self, order, *, replicas, paused):
        await self._gateway._called("make", order.name)
        found = self.pools.get(order.name)
        if found is not None:
            if found.pool_id != str(order.pool_id):
                raise ClusterConflict("it is not ours")
            return found
        made = VmPoolStatus(
            name=order.name,
            uid=f"vm-pool-{next(self._uids)}",
            generation=1,
            replicas=replicas,
            paused=paused,
            unmanaged=True,
            deleting=False,
            held=True,
            ours=True,
            pool_id=str(order.pool_id),
            labels={},
            finalizers=("emberpool.io/members",),
            installation=self._gateway.ownership.installation,
        )
        self.pools[order.name], self.orders[order.name] = made, order
        self._acted()
        return self.pools[order.name]

    async def change(self, order, seen, change):
        await self._gateway._called("change", seen.name)
        found = self.pools.get(seen.name)
        if found is None:
            raise ClusterNotFound("it is gone")
        if (found.uid, found.generation) != (seen.uid, seen.generation):
            raise ClusterRefused("the server rejected our request due to an error in our request")
        if change.template:
            self.orders[seen.name] = order
        self.write(
            seen.name,
            **({"replicas": change.replicas} if change.replicas is not None else {}),
            **({"paused": change.paused} if change.paused is not None else {}),
            **({"unmanaged": True, "ours": True, "held": True} if change.restore else {}),
        )
        self._acted()
        return self.pools[seen.name]

    async def detach(self, *, name, uid, claim_id):
        await self._gateway._called("detach", name)
        found = self._gateway.vms.get(name)
        if found is None or found.uid != uid:
            raise ClusterNotFound(f"VM {name} is not there.")
        self._gateway.change(name, owner=None, pool_id=None, claim_id=claim_id or found.claim_id)
        self._acted()

    async def free(self, seen):
        await self._gateway._called("free", seen.name)
        found = self.pools.get(seen.name)
        if found is not None and found.uid == seen.uid:
            self.pools[seen.name] = replace(found, held=False)
            self._collect(seen.name)

    async def remove(self, seen):
        await self._gateway._called("remove", seen.name)
        self.delete(seen.name, orphan=True)

    async def all(self):
        await self._gateway._called("all", "")
        return tuple(self.pools.values())

    async def find(self, name):
        seen = self.pools.get(name)
        if seen is None:
            return None
        members = tuple(vm.name for vm in self._members(seen))
        managed = () if seen.unmanaged else ("updateStrategy", "scaleInStrategy")
        return FoundVmPool(seen, {"spec": {"n": 1}}, members, managed, heals=False)

    async def enroll(self, order, owner):
        await self._gateway._called("enroll", order.name)
        strangers = [vm for vm in self._gateway.vms.values() if vm.owner == owner and vm.pool_id is None]
        for vm in strangers:
            self._gateway.change(vm.name, pool_id=str(order.pool_id), pool=order.pool)
        return len(strangers)

    # What a test orders

    def write(self, name, **changes):
        """Somebody writes to it: what changes its spec is a generation more."""
        before = self.pools[name]
        after = replace(before, **changes)
        if after != before:
            after = replace(after, generation=before.generation + 1)
        self.pools[name] = after

    def delete(self, name, *, orphan=False):
        """Somebody deletes it. Without `orphan` its VMs go with it, once it is gone."""
        seen = self.pools[name]
        self.pools[name] = replace(seen, deleting=True)
        if orphan:
            for vm in self._members(seen):
                self._gateway.change(vm.name, owner=None)
        self._collect(name)

    def act(self):
        """The controller's turn: what is missing is created, under the lowest free index. The VMs' names."""
        made = []
        for seen in list(self.pools.values()):
            if seen.deleting or seen.paused:
                continue
            for _ in range(seen.replicas - len(self._members(seen))):
                index = next(i for i in count() if f"{seen.name}-{i}" not in self._gateway.vms)
                made.append(self.stranger(seen.name, index))
        return made

    def stranger(self, name, index):
        """One VM more of that VirtualMachinePool."""
        seen, order = self.pools[name], self.orders[name]
        vm = Observation(
            name=f"{name}-{index}",
            namespace="default",
            uid=f"made-{next(self._uids)}",
            pool=order.pool,
            created_at=datetime.now(UTC),
            owner=seen.uid,
            pool_id=str(order.pool_id),
            revision=order.revision,
            installation=self._gateway.ownership.installation,
        )
        self._gateway.vms[vm.name] = vm
        self._gateway._tell(Changed(vm))
        if self._gateway.boots_at_once:
            self._gateway.boot(vm.name)
        return vm.name

    def _members(self, seen):
        return [vm for vm in self._gateway.vms.values() if vm.owner == seen.uid and not vm.deleting]

    def _collect(self, name):
        seen = self.pools[name]
        if seen.deleting and not seen.held:
            del self.pools[name]
            for vm in self._members(seen):
                self._gateway.vanish(vm.name)

    def _acted(self):
        if self.acts_at_once:
            self.act()
