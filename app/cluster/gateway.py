"""What the rest of the service may ask of a cluster. Every method raises only errors of `app.errors`:

ClusterUnavailable (try again later), ClusterRefused (the object is wrong: its author must change it), ClusterForbidden
(a right or a quota is missing), ClusterConflict, ClusterNotFound; anything else the cluster says is a ClusterError.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from app.domain.observation import Observation

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class VmTemplate:
    """A pool's template, expanded and checked by our own rules: the `spec` of a VirtualMachine, and its fingerprint.

    `fingerprint` is the same for templates that make the same VM; a change of it rotates a pool.
    """

    spec: Manifest
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole truth at one moment: VMs of ours that are not in it do not exist. `began_at` is when the list was asked for."""

    observations: tuple[Observation, ...]
    began_at: datetime


@dataclass(frozen=True, slots=True)
class Changed:
    """One VM (or its VMI) changed: all that is known of it now."""

    observation: Observation


@dataclass(frozen=True, slots=True)
class Gone:
    """One VM left the cluster."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The cluster cannot be observed right now, and why; a Listed follows when it can be again."""

    reason: str


ClusterEvent = Listed | Changed | Gone | Broken


class Gateway(Protocol):
    def expand(self, template: Manifest) -> VmTemplate:
        """A template as users write it, to a VM's spec. Raises TemplateRefused, each problem with its field. No network."""
        ...

    async def check(self, template: VmTemplate) -> None:
        """A server-side dry run of one VM. Raises TemplateRefused with the cluster's own message and field."""
        ...

    async def create_vm(self, *, name: str, pool: str, vm_id: str, template: VmTemplate) -> Observation:
        """Makes the VM, or finds the one that an earlier try made (same name and `vm_id` label): both are success.

        Raises ClusterConflict where the name belongs to an object that is not this VM's.
        """
        ...

    async def delete_vm(self, *, name: str, uid: str | None) -> bool:
        """Asks for a Foreground delete of exactly that UID. True: the object is still going; False: there is none (any more).

        With `uid` None the name alone decides, but only an object that carries our labels is touched. An object of
        another UID is left alone and counts as gone.
        """
        ...

    async def label_claim(self, *, name: str, uid: str, claim_id: str) -> None:
        """Writes the claim's id as a label on exactly that VM. Raises ClusterNotFound, ClusterConflict (another UID)."""
        ...

    async def list_vms(self) -> Listed:
        """Every VM of this installation."""
        ...

    def observe(self) -> AsyncIterator[ClusterEvent]:
        """Lists, then watches, for ever: lists again on 410, on a break, on silence, and every relist interval. Ends only by being closed."""
        ...

    async def close(self) -> None: ...
