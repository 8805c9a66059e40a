"""What the rest of the service may ask of a cluster. Every method raises only errors of `app.errors`:

ClusterUnavailable (try again later), ClusterRefused (the object is wrong: its author must change it), ClusterForbidden
(a right or a quota is missing), ClusterConflict, ClusterNotFound; anything else the cluster says is a ClusterError.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from app.compute.nodes import NodeEvent
from app.compute.preloads import PreloadGateway
from app.compute.snapshots import SnapshotGateway
from app.compute.vm_pools import VmPoolGateway
from app.compute.vms import ClusterEvent, Listed, VmTemplate
from app.domain.nodes import Demand
from app.domain.observation import Observation, PodTimes, WarmWhen
from app.domain.paths import Start
from app.domain.placement import Placement


class Gateway(Protocol):
    @property
    def snapshots(self) -> SnapshotGateway: ...

    @property
    def preloads(self) -> PreloadGateway: ...

    @property
    def vm_pools(self) -> VmPoolGateway: ...

    def expand(
        self,
        template: dict[str, Any],
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

    def demand(self, spec: dict[str, Any]) -> Demand | None:
        """What the pod of a VM of an expanded `spec` asks of a node; None where that is not known. No network."""
        ...

    def fragment(self, spec: dict[str, Any]) -> dict[str, Any]:
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
