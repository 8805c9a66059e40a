"""What the service may ask of a cluster. Every method raises only errors of `app.errors`:

ClusterUnavailable (try again later; also where KubeVirt or the namespace is missing), ClusterRefused (the object is wrong; its
author must change it), ClusterForbidden (a permission or a quota is missing), ClusterConflict, ClusterNotFound, and ClusterError
for everything else the cluster answers.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from app.compute.capabilities import Capability
from app.compute.console import ConsoleGateway
from app.compute.identities import IdentityGateway
from app.compute.nodes import NodeEvent
from app.compute.ownership import OwnershipGateway
from app.compute.preloads import PreloadGateway
from app.compute.snapshots import SnapshotGateway
from app.compute.vm_pools import VmPoolGateway
from app.compute.vms import ClusterEvent, Listed, VmTemplate
from app.domain.nodes import Demand, Toleration
from app.domain.observation import Failure, Observation, PodTimes, WarmWhen
from app.domain.ownership import ClaimRecord
from app.domain.paths import Start
from app.domain.placement import Placement
from app.domain.templates import Marks, VmSpec, WrittenTemplate


class Gateway(Protocol):
    @property
    def snapshots(self) -> SnapshotGateway: ...

    @property
    def preloads(self) -> PreloadGateway: ...

    @property
    def vm_pools(self) -> VmPoolGateway: ...

    @property
    def identities(self) -> IdentityGateway: ...

    @property
    def ownership(self) -> OwnershipGateway: ...

    @property
    def console(self) -> ConsoleGateway: ...

    async def unavailable(self, capability: Capability) -> str | None:
        """Why this cluster lacks the capability; None if it has it. WATCH_NODES is answered without a call to the cluster."""
        ...

    def expand(
        self,
        template: WrittenTemplate,
        warm_when: WarmWhen,
        placement: Placement | None = None,
        *,
        diskless: bool = False,
        channel: bool = False,
    ) -> VmTemplate:
        """Turns a written template into a VM's spec. Raises TemplateRefused with every problem and its field. No network.

        `warm_when` is the pool's: if the guest agent decides and the template has no readiness probe, the spec gets a probe that
        asks the agent, so that the VM is ready when its guest is. `placement` is added to what the template says about nodes.
        `diskless`: the VMs get their disk from what they start from, so the short form needs no image. `channel`: each VM gets an
        identity disk (`identities`).
        """
        ...

    def reopen(self, spec: VmSpec, *, shutdown_seconds: int = 0) -> VmTemplate:
        """The template of a stored spec. No network.

        `shutdown_seconds`: the guest gets at least this long to shut down when its VM is stopped. That changes the spec and the
        fingerprint, and not the shape.
        """
        ...

    def without_identity(self, template: WrittenTemplate) -> tuple[WrittenTemplate, tuple[str, ...]]:
        """A template that was read from a VM of the cluster, without what identifies that VM; and the fields that were taken out.
        No network.
        """
        ...

    def demand(self, spec: VmSpec) -> Demand | None:
        """What a VM of the spec needs from a node; None if that cannot be known. No network."""
        ...

    def tolerations(self, spec: VmSpec) -> tuple[Toleration, ...]:
        """What a VM of the spec tolerates of nodes. No network."""
        ...

    def fragment(self, spec: VmSpec) -> dict[str, Any]:
        """The part of the spec that says where its VM may run and on what terms, as JSON to show to people."""
        ...

    async def check(self, template: VmTemplate) -> None:
        """Tries to create one VM without creating it. Raises TemplateRefused with the cluster's message and field.

        A missing namespace (ClusterUnavailable) or an exhausted quota (ClusterForbidden) is not the template's fault.
        """
        ...

    async def create_vm(self, *, name: str, pool: str, vm_id: str, spec: VmSpec, start: Start = None) -> Observation:
        """Creates the VM, or finds the one that an earlier attempt created (same name, same `vm_id`). Both are success.

        An identity that its spec asks for is there before. With `start`, its disks begin with that content, and its guest in that memory, if there is one. Disks from a snapshot are created after the VM and belong to it; until
        this returns, the VM may exist without them. A VM from an earlier attempt may already be `deleting` in the answer.

        Raises ClusterConflict if the name belongs to an object that is not this VM.
        """
        ...

    async def delete_vm(self, *, name: str, uid: str | None, again: bool = False) -> bool:
        """Deletes exactly the VM with that UID. True: the object still exists; False: it does not exist (any more).

        With `uid` None the name decides, but only an object with our labels is deleted. An object with another UID is left
        alone and counts as gone. `again`: the cluster may have been asked before, so that it is looked at first, and only asked if
        the object is not going.
        """
        ...

    async def label_claim(
        self,
        *,
        name: str,
        uid: str,
        claim_id: str,
        given: Mapping[str, str],
        marks: Marks | None = None,
        instance: str | None = None,
        record: ClaimRecord | None = None,
    ) -> None:
        """Marks exactly that VM with the claim's id, and with the labels that were `given` to the claim as far as the cluster
        accepts them. The label `name` becomes an annotation if it cannot be a label.

        `marks`: those of the template that the claim describes; the VM gets them in place of its own. `instance`: the UID of what
        runs the VM, which gets the same, as far as it still exists. `record`: what the claim can be rebuilt from, which the VM alone
        carries. Safe to repeat. Raises ClusterNotFound, ClusterConflict
        (another UID).
        """
        ...

    async def list_vms(self) -> Listed:
        """Every VM of this installation."""
        ...

    async def pod_times(self, vm_ids: Sequence[str]) -> dict[str, PodTimes]:
        """When the pods of these VMs were scheduled and started, by `vm_id`. VMs without a pod are left out."""
        ...

    async def disk_failures(self, vm_uids: Sequence[str]) -> dict[str, Failure | None]:
        """What keeps the disks of these VMs from being made, by the VM's UID; None: nothing does. VMs of which the cluster tells
        nothing new are left out.
        """
        ...

    def observe(self) -> AsyncGenerator[ClusterEvent, None]:
        """Lists the VMs, then watches them, for ever.

        It lists again when the watch expires, breaks or is silent, and at every relist interval. It ends only when it is closed;
        wrap it in `contextlib.aclosing`, which leaves no task and no connection behind. The first event is a Listed or a Broken.
        """
        ...

    def observe_nodes(self) -> AsyncGenerator[NodeEvent, None]:
        """The same for nodes and what runs on them. The first event is a NodesListed or a Broken."""
        ...

    async def close(self) -> None: ...
