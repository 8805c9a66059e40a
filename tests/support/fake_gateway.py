"""A cluster in memory behind the Gateway's protocol: it keeps objects by name and UID, and does what a test orders.

It fakes the cluster and nothing of the rows. What a real cluster answers is held by the tests of `compute/`.
"""

import asyncio
import copy
import hashlib
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import NamedTuple

from app.compute.capabilities import Capability
from app.compute.nodes import NodeChanged, NodeEvent, NodeGone, NodesListed
from app.compute.vms import Changed, ClusterEvent, Gone, Listed, VmTemplate
from app.domain.nodes import Demand, Node
from app.domain.observation import Failure, Observation, PodTimes
from app.domain.ownership import ClaimRecord
from app.domain.paths import ImageKind, ImageRef
from app.domain.templates import Marks
from app.errors import ClusterConflict, ClusterNotFound, FieldProblem, TemplateRefused
from tests.support.fake_identities import FakeIdentities
from tests.support.fake_ownership import FakeOwnership
from tests.support.fake_preloads import FakePreloads
from tests.support.fake_snapshots import FakeSnapshots
from tests.support.fake_vm_pools import FakeVmPools


class LabelCall(NamedTuple):
    """`given`: the claim's labels; `marks`: those of the template that it describes; `instance`: the UID of the VMI."""

    given: dict[str, str]
    marks: Marks | None
    instance: str | None


class FakeGateway:
    """`before[call]` is run before a call and may raise; `calls` tells what was asked, in order."""

    def __init__(self) -> None:
        self.vms: dict[str, Observation] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: dict[str, Callable[..., object]] = {}
        self.lingers = False
        """Whether a deleted VM stays until the test lets it go, as under a finalizer."""
        self.boots_at_once = False
        self.labels: dict[str, LabelCall] = {}
        """What labelled VMs got last."""
        self.records: dict[str, ClaimRecord | None] = {}
        """What labelled VMs carry of their claims."""
        self.pods: dict[str, PodTimes] = {}
        """By VM id: what its pod tells of its start."""
        self.disks: dict[str, Failure | None] = {}
        """By the UID of a VM: what keeps its disks from being made."""
        self.watchers: list[asyncio.Queue[ClusterEvent]] = []
        self.demands: Demand | None = None
        """What a VM asks of a node; None: nobody knows."""
        self.lacking: dict[Capability, str] = {}
        """What the cluster lacks, and why."""
        self.nodes: dict[str, Node] = {}
        self.pods_hidden: str | None = None
        self.node_watchers: list[asyncio.Queue[NodeEvent]] = []
        self._numbers = count(1)
        self._expanded: dict[str, VmTemplate] = {}
        self.snapshots = FakeSnapshots(self)
        self.preloads = FakePreloads()
        self.vm_pools = FakeVmPools(self)
        self.ownership = FakeOwnership(self)
        self.identities = FakeIdentities(self)

    # What the service asks

    def expand(self, template, warm_when, placement=None, *, diskless=False, channel=False):
        if "refused" in template:
            raise TemplateRefused("it cannot be", problems=[FieldProblem("template.refused", "is not a field")])
        placed = placement.model_dump(mode="json") if placement else None
        text = json.dumps([template, warm_when, placed, *([channel] if channel else [])], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        image = template.get("image")
        found = VmTemplate(
            spec={"template": template, **({"channel": True} if channel else {})},
            fingerprint=fingerprint,
            shape=f"shape-{fingerprint[:12]}",
            images=(ImageRef(ImageKind.CONTAINER, image),) if image else (),
            has_own_disk=bool(template.get("spec", {}).get("volumes", [image])),
            has_identity_disk=channel,
        )
        self._expanded[_written(found.spec)] = found
        return found

    def reopen(self, spec, *, shutdown_seconds=0):
        found = self._expanded.get(_written(spec))
        if found is None:
            digest = hashlib.sha256(_written(spec).encode()).hexdigest()
            found = VmTemplate(spec, digest, f"shape-{digest[:12]}")
        if not shutdown_seconds:
            return found
        changed = copy.deepcopy(spec)
        changed["template"]["spec"]["terminationGracePeriodSeconds"] = shutdown_seconds
        return replace(found, spec=changed, fingerprint=f"{found.fingerprint}-{shutdown_seconds}")

    def without_identity(self, template):
        return template, ()

    def demand(self, spec):
        return self.demands

    def tolerations(self, spec):
        return self.demands.tolerations if self.demands is not None else ()

    def fragment(self, spec):
        return spec

    async def unavailable(self, capability):
        return self.lacking.get(capability)

    async def check(self, template):
        await self._called("check", template.fingerprint)

    async def create_vm(self, *, name, pool, vm_id, spec, start=None):
        await self._called("create", name)
        found = self.vms.get(name)
        if found is not None:
            if found.vm_id != vm_id:
                raise ClusterConflict(f"The name {name} belongs to a VM that is not ours.")
            return found
        made = Observation(
            name=name,
            namespace="default",
            uid=f"uid-{next(self._numbers)}",
            pool=pool,
            vm_id=vm_id,
            created_at=datetime.now(UTC),
            installation=self.ownership.installation,
        )
        self.vms[name] = made
        self._tell(Changed(made))
        if self.boots_at_once:
            self.boot(name)
        return made

    async def delete_vm(self, *, name, uid, again=False):
        found = self.vms.get(name)
        if again and found is not None and found.deleting:
            await self._called("look", name)
            return True
        await self._called("delete", name)
        if found is None or (uid is not None and found.uid != uid):
            return False
        if self.lingers:
            self.change(name, deleting=True)
            return True
        self.vanish(name)
        return False

    async def label_claim(self, *, name, uid, claim_id, given, marks=None, instance=None, record=None):
        await self._called("label", name)
        found = self.vms.get(name)
        if found is None:
            raise ClusterNotFound(f"VM {name} is not there.")
        if found.uid != uid:
            raise ClusterConflict(f"VM {name} is another one by now.")
        self.vms[name] = replace(found, claim_id=claim_id)
        self.labels[name] = LabelCall(dict(given), marks, instance)
        self.records[name] = record

    async def list_vms(self):
        return self.listed()

    async def pod_times(self, vm_ids):
        await self._called("pods", ",".join(vm_ids))
        return {vm_id: self.pods[vm_id] for vm_id in vm_ids if vm_id in self.pods}

    async def disk_failures(self, vm_uids):
        await self._called("disks", ",".join(vm_uids))
        return {uid: self.disks[uid] for uid in vm_uids if uid in self.disks}

    async def observe(self) -> AsyncGenerator[ClusterEvent, None]:
        events: asyncio.Queue[ClusterEvent] = asyncio.Queue()
        events.put_nowait(self.listed())
        self.watchers.append(events)
        try:
            while True:
                yield await events.get()
        finally:
            with suppress(ValueError):
                self.watchers.remove(events)

    async def observe_nodes(self) -> AsyncGenerator[NodeEvent, None]:
        events: asyncio.Queue[NodeEvent] = asyncio.Queue()
        events.put_nowait(NodesListed(tuple(self.nodes.values()), self.pods_hidden))
        self.node_watchers.append(events)
        try:
            while True:
                yield await events.get()
        finally:
            with suppress(ValueError):
                self.node_watchers.remove(events)

    async def close(self) -> None:
        pass

    # What a test orders

    def listed(self, *, ago=timedelta(0)):
        return Listed(tuple(self.vms.values()), datetime.now(UTC) - ago)

    def remember(self, template):
        """`reopen` gives this template for its spec."""
        self._expanded[_written(template.spec)] = template

    def change(self, name, **changes):
        self.vms[name] = replace(self.vms[name], **changes)
        self._tell(Changed(self.vms[name]))
        return self.vms[name]

    def boot(self, name, **changes):
        """The VM is warm."""
        warm = {
            "phase": "Running",
            "vmi_uid": f"vmi-of-{name}",
            "ready": True,
            "agent_connected": True,
            "node": "node-1",
            "addresses": ("10.0.0.7",),
        }
        return self.change(name, **{**warm, **changes})

    def vanish(self, name):
        """The object leaves the cluster."""
        gone = self.vms.pop(name)
        self._tell(Gone(name, gone.uid))

    def put_node(self, node):
        self.nodes[node.name] = node
        self.tell_of_nodes(NodeChanged(node))

    def drop_node(self, name):
        del self.nodes[name]
        self.tell_of_nodes(NodeGone(name))

    def tell_of_nodes(self, event):
        for watcher in self.node_watchers:
            watcher.put_nowait(event)

    def called(self, call):
        return [name for what, name in self.calls if what == call]

    def refuse(self, call, error, *, times=None):
        """The next `times` of a call (None: all) raise `error`."""
        left = [times]

        def fail(_name):
            if left[0] is None or left[0] > 0:
                left[0] = left[0] and left[0] - 1
                raise error

        self.before[call] = fail

    async def _called(self, call, name):
        self.calls.append((call, name))
        await asyncio.sleep(0)  # a call to a cluster always lets others run
        before = self.before.get(call)
        if before is not None:
            before(name)

    def _tell(self, event):
        for watcher in self.watchers:
            watcher.put_nowait(event)


def _written(spec):
    return json.dumps(spec, sort_keys=True)
