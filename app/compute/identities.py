"""The identities of VMs: files that only one VM gets, on a disk of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MadeIdentity:
    """What the cluster has: the UID of the object, and the token that is in it."""

    uid: str
    token: str


class IdentityGateway(Protocol):
    """An identity has the name of its VM. It is made before the VM, and removed with it."""

    async def make(self, *, name: str, pool: str, vm_id: str, files: Mapping[str, str]) -> MadeIdentity:
        """Makes the identity, or finds the one that an earlier attempt made (same name, same `vm_id`). `files` is by file name; one
        of them is `token`, which is not the one that is returned if there was an identity already.

        Raises ClusterConflict if the name belongs to something else.
        """
        ...

    async def remove(self, *, name: str, uid: str | None, vm_id: str | None = None) -> None:
        """Removes exactly that identity; nothing if it is gone. With `uid` None the name decides, but only an object with our labels
        is removed, and only that of `vm_id` if it is given.
        """
        ...
