"""A service without HTTP on a dev cluster, and an administrator with kubectl beside it."""

import asyncio
from dataclasses import dataclass, field

from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.gateway import KubeVirtGateway
from app.compute.kubevirt.kinds import VM_POOLS, VMS
from app.config import Settings
from app.domain.vm_pools import Backing
from app.errors import ClusterNotFound
from app.services.claims.service import ClaimService
from app.services.pools.service import put_pool
from app.store.database import Database
from tests.support import store_invariants as invariants
from tests.support.claim_services import new_claim, stays_connected
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, fetch, scalar, spec
from tests.support.worker_replicas import settles

TEMPLATE = {"image": "registry.example/guest:1", "cpu": 1, "memory": "128Mi"}
OTHER_TEMPLATE = {**TEMPLATE, "memory": "256Mi"}


@dataclass
class World:
    """`kubectl`: what somebody with the rights of an administrator can do. `taken`: VMs that are claimed, by UID."""

    db: Database
    gateway: KubeVirtGateway
    settings: Settings
    claim_service: ClaimService
    kubectl: KubeVirtClient
    backing: Backing
    cluster: object
    taken: dict[str, str] = field(default_factory=dict)

    async def put(self, name="web", **given):
        given = {"template": TEMPLATE, "backing": self.backing, **given}
        return (await put_pool(self.db, self.gateway, name, spec(**given))).pool

    async def claim(self, *, wait=20.0, lease=None):
        """A claim that is bound; its id, and its VM's UID."""
        answer = await self.claim_service.claim(new_claim(wait=wait, lease=lease), stays_connected)
        claim_id = answer.claim.id
        uid = await scalar(
            self.db, "SELECT v.uid FROM claim c JOIN vm v ON v.id = c.vm_id WHERE c.id = :id", id=claim_id
        )
        assert uid is not None
        self.taken[uid] = str(claim_id)
        return claim_id, uid

    async def settles(self, **wanted):
        await settles(self.db, **wanted)

    async def objects(self):
        """The VMs in the cluster, by UID."""
        found, _ = await self.kubectl.list_all(VMS, selector="")
        return {vm["metadata"]["uid"]: vm for vm in found}

    async def vm_pools(self):
        found, _ = await self.kubectl.list_all(VM_POOLS, selector="")
        return found

    async def vm_pool(self):
        """The only VirtualMachinePool that is not on its way out."""
        (one,) = [each for each in await self.vm_pools() if "deletionTimestamp" not in each["metadata"]]
        return one

    async def owned(self):
        """UIDs of the VMs that a VirtualMachinePool owns."""
        return {uid for uid, vm in (await self.objects()).items() if vm["metadata"].get("ownerReferences")}

    async def agrees(self, **wanted):
        """The rows come to `wanted`; then the cluster has exactly their objects, claims labelled, nothing owned that is not to be."""
        await self.settles(**wanted)

        async def same():
            rows = await fetch(self.db, "SELECT uid, state, claim_id, member FROM vm WHERE ended_at IS NULL")
            objects = await self.objects()
            if {row["uid"] for row in rows} != set(objects):
                return False
            for row in rows:
                metadata = objects[row["uid"]]["metadata"]
                owned = bool(metadata.get("ownerReferences"))
                if row["member"] != owned or (row["state"] == "claimed" and owned):
                    return False
                if row["state"] == "claimed" and metadata["labels"].get("emberpool.io/claim") != str(row["claim_id"]):
                    return False
            return await self._replicas_fit()

        await eventually(same)
        await self.settles(**wanted)
        await invariants.check(self.db)

    async def _replicas_fit(self):
        for pool in await self.vm_pools():
            owned = [
                uid
                for uid, vm in (await self.objects()).items()
                if any(ref["uid"] == pool["metadata"]["uid"] for ref in vm["metadata"].get("ownerReferences", ()))
            ]
            if pool["spec"]["replicas"] != len(owned):
                return False
        return True

    async def keeps_the_taken(self):
        """No VM that was claimed has been touched: it is there, runs the instance that it ran, and is nobody's."""
        objects = await self.objects()
        for uid in self.taken:
            assert uid in objects, "a claimed VM left the cluster"
            assert "deletionTimestamp" not in objects[uid]["metadata"]

    async def is_gone(self, name="web"):
        """The pool ends, and every VirtualMachinePool with it."""

        async def gone():
            return await scalar(
                self.db, "SELECT deleted_at FROM pool WHERE name = :name ORDER BY id DESC LIMIT 1", name=name
            )

        async def empty():
            return await self.vm_pools() == []

        await eventually(gone)
        await eventually(empty)

    async def has_no_objects(self):
        """The last VM leaves the cluster."""

        async def empty():
            return await self.objects() == {}

        await eventually(empty)

    async def notes(self):
        return await scalar(self.db, "SELECT notes FROM pool_plan") or []

    async def tells(self, *words):
        """The pool's notes come to have all of these words."""

        async def told():
            text = " ".join(await self.notes())
            return all(word in text for word in words)

        await eventually(told)


async def wait_for(check, *, seconds=PATIENCE):
    return await eventually(check, seconds=seconds)


async def is_missing(client, kind, name):
    try:
        await client.get(kind, name)
    except ClusterNotFound:
        return True
    return False


async def all_of(*works):
    return await asyncio.gather(*works)
