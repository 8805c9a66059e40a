"""Identities in memory, as the Gateway's protocol has them: by the name of their VM."""

from itertools import count

from app.compute.identities import MadeIdentity
from app.errors import ClusterConflict


class FakeIdentities:
    """`found` is what the cluster has: the files, with the id of the VM and the UID of the object."""

    def __init__(self, cluster) -> None:
        self.found: dict[str, dict[str, str]] = {}
        self._cluster = cluster
        self._numbers = count(1)

    async def make(self, *, name, pool, vm_id, files):
        await self._cluster._called("identify", name)
        held = self.found.setdefault(name, {**files, "id": vm_id, "uid": f"identity-{next(self._numbers)}"})
        if held["id"] != vm_id:
            raise ClusterConflict(f"The name {name} belongs to a Secret that is not ours.")
        await self._cluster._called("identified", name)
        return MadeIdentity(held["uid"], held["token"])

    async def remove(self, *, name, uid, vm_id=None):
        await self._cluster._called("unidentify", name)
        held = self.found.get(name)
        if held is not None and uid in {None, held["uid"]}:
            del self.found[name]
