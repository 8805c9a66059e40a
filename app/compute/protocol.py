"""What the rest of the service may ask of a cluster. Every method raises only errors of `app.errors`:

ClusterUnavailable (try again later), ClusterRefused (the object is wrong: its author must change it), ClusterForbidden
(a right or a quota is missing), ClusterConflict, ClusterNotFound; anything else the cluster says is a ClusterError.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from app.domain.nodes import Demand, Node
from app.domain.observation import Observation, PodTimes, WarmWhen
from app.domain.paths import ImageRef, SnapshotDisk, Start
from app.domain.placement import Placement
from app.domain.preload_lifecycle import Present, Seen, Volume
from app.domain.preloads import PreloadSpec
from app.domain.snapshots import Sight, SourceVm, VolumeVerdict
from app.domain.vm_pools import Change, VmPoolSight

Manifest = dict[str, Any]


class TemplateForm(StrEnum):
    """How a template was written. It is needed only to say where in it a refused field stands."""

    SHORT = "short"
    """`{image, cpu, memory, ...}`"""
    VMI = "vmi"
    """`{metadata?, spec: {domain, volumes, ...}}`: what a VirtualMachine has as `spec.template`"""
    VM_SPEC = "vm-spec"
    """`{runStrategy?, template, dataVolumeTemplates?}`: a VirtualMachine's `spec`"""
    VM = "vm"
    """`{metadata?, spec: {runStrategy?, template, ...}}`: a VirtualMachine, or a VirtualMachinePool's template"""


@dataclass(frozen=True, slots=True)
class VmTemplate:
    """A pool's template, expanded and checked by our own rules: the `spec` of a VirtualMachine, and its fingerprint.

    `fingerprint` is the same for templates that make the same VM; a change of it rotates a pool. `spec` and `fingerprint`
    are all that a VM is made from, and so all that has to be kept. `shape` is the same for templates whose VMs boot the
    same, whatever they are called: a VM of one may serve a wish for the other. `images`: what its disks are made from.
    """

    spec: Manifest
    fingerprint: str
    form: TemplateForm = TemplateForm.VM_SPEC
    shape: str = ""
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole truth at one moment: VMs of ours that are not in it do not exist.

    `began_at` is when the list was asked for, by this process's clock: a VM created after it may be missing. Whoever
    compares it with times that another clock wrote must allow for the difference, or take their own note of the time.
    """

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


@dataclass(frozen=True, slots=True)
class NodesListed:
    """All nodes there are. `pods_hidden`: why what runs on them cannot be seen; None: it can."""

    nodes: tuple[Node, ...]
    pods_hidden: str | None


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """One node, or what runs on it, changed: all that is known of it now."""

    node: Node


@dataclass(frozen=True, slots=True)
class NodeGone:
    """One node left the cluster."""

    name: str


NodeEvent = NodesListed | NodeChanged | NodeGone | Broken


class Gateway(Protocol):
    @property
    def snapshots(self) -> "SnapshotGateway": ...

    @property
    def preloads(self) -> "PreloadGateway": ...

    @property
    def vm_pools(self) -> "VmPoolGateway": ...

    def expand(
        self,
        template: Manifest,
        warm_when: WarmWhen,
        placement: Placement | None = None,
        *,
        diskless: bool = False,
    ) -> VmTemplate:
        """A template as users write it, to a VM's spec. Raises TemplateRefused with every problem found, each with its field. No network.

        `warm_when` is the pool's: where the guest agent decides and the template brings no readiness probe, the spec gets
        one that asks the agent, so that the VM's Ready follows its guest. `diskless`: its VMs get a disk from what they
        start from, and the short form needs no image. `placement` says where it may run, beside what the template says of that.
        """
        ...

    def demand(self, spec: Manifest) -> Demand | None:
        """What the pod of a VM of an expanded `spec` asks of a node; None where that is not known. No network."""
        ...

    def fragment(self, spec: Manifest) -> Manifest:
        """What of an expanded `spec` says where its VM may run, and on what terms."""
        ...

    async def check(self, template: VmTemplate) -> None:
        """A server-side dry run of one VM. Raises TemplateRefused with the cluster's own message and field.

        A namespace that is missing (ClusterNotFound) or a quota that is used up (ClusterForbidden) is no fault of the template.
        """
        ...

    async def create_vm(
        self, *, name: str, pool: str, vm_id: str, template: VmTemplate, start: Start = None
    ) -> Observation:
        """Makes the VM, or finds the one that an earlier try made (same name and `vm_id` label): both are success.

        With a `start` its disks begin with that content. Those of a snapshot are made after the VM and belong to it: until
        this returns the VM may stand there without them.

        Raises ClusterConflict where the name belongs to an object that is not this VM's. A VM that an earlier try made may
        already be `deleting` in the answer.
        """
        ...

    async def delete_vm(self, *, name: str, uid: str | None) -> bool:
        """Asks for a Foreground delete of exactly that UID. True: the object is still going; False: there is none (any more).

        With `uid` None the name alone decides, but only an object that carries our labels is touched. An object of
        another UID is left alone and counts as gone.
        """
        ...

    async def label_claim(self, *, name: str, uid: str, claim_id: str, called: str | None = None) -> None:
        """Writes the claim's id as a label on exactly that VM, and what people call it where it can be found by that: as a
        label too, or as an annotation where it is none. Raises ClusterNotFound, ClusterConflict (another UID).
        """
        ...

    async def list_vms(self) -> Listed:
        """Every VM of this installation."""
        ...

    async def pod_times(self, vm_ids: Sequence[str]) -> dict[str, PodTimes]:
        """What the pods of these VMs tell of their start, by `vm_id`; VMs that have none are missing."""
        ...

    def observe(self) -> AsyncGenerator[ClusterEvent, None]:
        """Lists, then watches, for ever: lists again on 410, on a break, on silence, and every relist interval. Ends only by being closed.

        The first event is a Listed or a Broken. Wrap it in `contextlib.aclosing`: closed, it leaves no task and no connection.
        """
        ...

    def observe_nodes(self) -> AsyncGenerator[NodeEvent, None]:
        """Likewise for the cluster's nodes and what runs on them. The first event is a NodesListed or a Broken."""
        ...

    async def close(self) -> None: ...


class SnapshotGateway(Protocol):
    """Snapshots of VMs' disks. Objects are named by the caller, and carry our labels and the id of the take that they are of."""

    def judge(self, template: VmTemplate) -> tuple[VolumeVerdict, ...]:
        """Which volumes of a template's VMs could ever be in a snapshot, and why not each other. No network.

        What only the cluster knows (has its storage class a snapshot class?) is taken to be well.
        """
        ...

    async def source(self, name: str) -> SourceVm | None:
        """The VM of that name, whoever made it; None: there is none."""
        ...

    async def stop(self, *, name: str, uid: str) -> None:
        """Lets exactly that VM shut down, and not start again. Raises ClusterNotFound, ClusterConflict (another UID)."""
        ...

    async def take(self, *, name: str, snapshot: str, take_id: str, vm: str, deadline_seconds: int) -> Sight:
        """Asks for a snapshot of the VM, or finds the one that an earlier try asked for (same name and label).

        Raises ClusterConflict where the name belongs to an object that is not this take's.
        """
        ...

    async def look(self, name: str) -> Sight | None:
        """None: there is no such object."""
        ...

    async def disks(self, sight: Sight) -> tuple[SnapshotDisk, ...]:
        """The disks of a snapshot that is ready, each large enough for what it holds."""
        ...

    async def remove(self, *, name: str, uid: str | None, take_id: str) -> bool:
        """Asks for the end of the snapshot and all that it holds. True: it is still going; False: there is none (any more).

        With `uid` None the name decides. An object that is not this take's is left alone and counts as gone.
        """
        ...

    async def all(self) -> tuple[Sight, ...]:
        """Every snapshot of this installation."""
        ...


@dataclass(frozen=True, slots=True)
class PreloadOrder:
    """What is to be made for one generation of a preload."""

    preload_id: UUID
    name: str
    generation: int
    spec: PreloadSpec


class PreloadGateway(Protocol):
    """Images brought near: as volumes by CDI, onto nodes by DaemonSets. Objects carry our labels, and the preload's id."""

    def reference(self, spec: PreloadSpec) -> ImageRef:
        """The image that it brings near; a PVC's with its namespace. No network."""
        ...

    def found_in(self, template: VmTemplate) -> tuple[PreloadSpec, ...]:
        """What would bring each image of the template near, with the size and class that the template asks for. No network."""
        ...

    async def check(self, order: PreloadOrder) -> None:
        """A server-side dry run. Raises PreloadRefused with the cluster's own message and field, ClusterError without CDI."""
        ...

    async def make(self, order: PreloadOrder) -> None:
        """Makes the generation's object, or finds the one that an earlier try made: both are success.

        Raises ClusterConflict where the name belongs to an object that is not this generation's, ClusterError without CDI.
        """
        ...

    async def look(self, preload_id: UUID) -> tuple[Seen, ...]:
        """Every object of that preload, of whichever generation."""
        ...

    async def find_present(self, name: str) -> Present:
        """What stands in the namespace under the preload's own name, made by others."""
        ...

    async def clones(self, volume: Volume) -> tuple[str, ...]:
        """Names of the volumes that are being cloned from it, whoever asked for them."""
        ...

    async def remove(self, seen: Seen) -> None:
        """Asks for the end of exactly that object. One that is gone, or is another by now, is success."""
        ...

    async def all(self) -> tuple[Seen, ...]:
        """Every object of every preload of this installation, by kind, name and preload alone: for finding those of no row."""
        ...


@dataclass(frozen=True, slots=True)
class VmPoolOrder:
    """What the VirtualMachinePool `name` of a pool is to make VMs from."""

    name: str
    pool: str
    pool_id: UUID
    template: VmTemplate
    revision: str
    start: Start = None


@dataclass(frozen=True, slots=True)
class FoundVmPool:
    """A VirtualMachinePool that somebody made. `template` makes its VMs, of which it owns `members`, by name. `managed`: by
    which strategies the cluster may change or delete its VMs; `heals`: it has autohealing.
    """

    sight: VmPoolSight
    template: Manifest
    members: tuple[str, ...]
    managed: tuple[str, ...]
    heals: bool


class VmPoolGateway(Protocol):
    """VirtualMachinePools, of which the cluster is let do one thing: create VMs. Objects carry our labels, and the pool's id."""

    def fingerprint(self, order: VmPoolOrder) -> str:
        """Changes with all that VMs are made from. No network."""
        ...

    async def check(self, order: VmPoolOrder) -> None:
        """A server-side dry run. Raises ClusterRefused in the cluster's own words, ClusterNotFound where no such kind is served."""
        ...

    async def look(self, name: str) -> VmPoolSight | None:
        """None: there is no such object. Raises ClusterNotFound where the cluster does not know the kind."""
        ...

    async def make(self, order: VmPoolOrder, *, replicas: int, paused: bool) -> VmPoolSight:
        """Makes it, or finds the one that an earlier try made. Raises ClusterConflict where the name is another's."""
        ...

    async def change(self, order: VmPoolOrder, seen: VmPoolSight, change: Change) -> VmPoolSight:
        """Writes the change to exactly what was seen. Raises ClusterRefused where somebody else wrote since."""
        ...

    async def detach(self, *, name: str, uid: str, claim_id: str | None) -> None:
        """Takes exactly that VM from its VirtualMachinePool, and writes the claim's id onto it in the same patch.

        One that has no owner is success. Raises ClusterNotFound where it is gone, or another has its name by now.
        """
        ...

    async def free(self, seen: VmPoolSight) -> None:
        """Lets one that is deleted, or to be, go: it no longer waits for us."""
        ...

    async def remove(self, seen: VmPoolSight) -> None:
        """Asks for the end of exactly that object; VMs that it owns stay, and are owned by nobody."""
        ...

    async def all(self) -> tuple[VmPoolSight, ...]:
        """Every VirtualMachinePool of this installation."""
        ...

    async def find(self, name: str) -> FoundVmPool | None:
        """One that anybody made, with its VMs; None: there is none of that name."""
        ...

    async def enroll(self, order: VmPoolOrder, owner: str) -> int:
        """Puts our labels on the VMs of `owner` that lack them, so that they are seen as the pool's; on how many it did."""
        ...
