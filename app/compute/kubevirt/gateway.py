"""The Gateway for KubeVirt (>= 1.7), or for anything that has its API."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from app.compute.capabilities import Capability
from app.compute.kubevirt import labels
from app.compute.kubevirt.client import AlreadyExists, KubeVirtClient
from app.compute.kubevirt.connection import configure
from app.compute.kubevirt.console import KubeVirtConsole
from app.compute.kubevirt.identities import KubeVirtIdentities
from app.compute.kubevirt.kinds import DATA_VOLUMES, PODS, PVCS, VMIS, VMS, Manifest, opened
from app.compute.kubevirt.memory import ask_for_memory
from app.compute.kubevirt.nodes.watch import observe_nodes
from app.compute.kubevirt.ownership import KubeVirtOwnership
from app.compute.kubevirt.preloads.gateway import KubeVirtPreloads
from app.compute.kubevirt.reading import Selected
from app.compute.kubevirt.reflector import follow
from app.compute.kubevirt.snapshots import KubeVirtSnapshots
from app.compute.kubevirt.templates import expand as templates
from app.compute.kubevirt.templates.demand import demand_of, tolerations_of
from app.compute.kubevirt.templates.exported import without_identity
from app.compute.kubevirt.templates.manifests import (
    claim_patch,
    mark_changes,
    pod_patch,
    vm_manifest,
    with_record,
)
from app.compute.kubevirt.templates.placement import fragment_of
from app.compute.kubevirt.templates.start_sources import begin, pvcs_of
from app.compute.kubevirt.vm_pools import KubeVirtVmPools
from app.compute.kubevirt.vms.disks import CREATED_BY, disks_of_vms
from app.compute.kubevirt.vms.inventory import Inventory
from app.compute.kubevirt.vms.observations import observe_pod, observe_vm
from app.compute.nodes import NodeEvent
from app.compute.vms import ClusterEvent, Listed, VmTemplate
from app.config import Settings
from app.domain.nodes import Demand, Toleration
from app.domain.observation import Failure, Observation, PodTimes, WarmWhen
from app.domain.ownership import ClaimRecord
from app.domain.paths import Start
from app.domain.placement import Placement
from app.domain.templates import Marks, VmSpec, WrittenTemplate
from app.errors import ClusterConflict, ClusterNotFound, ClusterRefused, FieldProblem, TemplateRefused
from app.ids import new_id, vm_name

_DRY_RUN = "dry-run"
_NO_GUEST_URL = "EMBERPOOL_GUEST_URL, the address at which VMs reach the service, is not set"

_log = structlog.get_logger(__name__)


async def connect(settings: Settings) -> "KubeVirtGateway":
    """Reads the kubeconfig or the pod's service account. Raises ClusterError if neither can be used.

    Makes no call to the cluster: the first call shows whether it can be reached.
    """
    return KubeVirtGateway(settings, KubeVirtClient(settings, await configure(settings)))


class KubeVirtGateway:
    """Implements `Gateway`."""

    def __init__(self, settings: Settings, client: KubeVirtClient) -> None:
        """Owns the client and closes it."""
        self._settings = settings
        self._client = client
        self._where = {"namespace": settings.namespace, "instance": settings.instance}
        self._relisting = asyncio.Lock()
        """Lists that only repeat earlier ones take turns."""
        self.snapshots = KubeVirtSnapshots(settings, client)
        self.preloads = KubeVirtPreloads(settings, client)
        self.vm_pools = KubeVirtVmPools(settings, client)
        self.ownership = KubeVirtOwnership(settings, client)
        self.identities = KubeVirtIdentities(settings, client)
        self.console = KubeVirtConsole(client)

    async def unavailable(self, capability: Capability) -> str | None:
        match capability:
            case Capability.WATCH_NODES:
                return None if self._settings.watch_nodes else "EMBERPOOL_WATCH_NODES is off"
            case Capability.MEMORY:
                return await self.snapshots.why_no_memory()
            case Capability.VM_POOLS:
                return await self.vm_pools.why_unavailable()
            case Capability.IDENTITIES:
                return None if self._settings.guest_url else _NO_GUEST_URL
            case Capability.CONSOLE_LOGS:  # of which VMs, their pods tell
                return None

    def expand(
        self,
        template: WrittenTemplate,
        warm_when: WarmWhen,
        placement: Placement | None = None,
        *,
        diskless: bool = False,
        channel: bool = False,
    ) -> VmTemplate:
        options = {"diskless": diskless, "full_cores": self._settings.full_cores_only, "channel": channel}
        return self._within(templates.expand(template, warm_when, placement, **options))

    def reopen(self, spec: VmSpec, *, shutdown_seconds: int = 0) -> VmTemplate:
        found = templates.describe(opened(spec))
        if shutdown_seconds:
            slower = templates.describe(templates.give_time_to_stop(opened(spec), shutdown_seconds))
            found = replace(slower, shape=found.shape)
        return self._within(found)

    def without_identity(self, template: WrittenTemplate) -> tuple[WrittenTemplate, tuple[str, ...]]:
        return without_identity(template)

    def demand(self, spec: VmSpec) -> Demand | None:
        return demand_of(opened(spec))

    def tolerations(self, spec: VmSpec) -> tuple[Toleration, ...]:
        return tolerations_of(opened(spec))

    def fragment(self, spec: VmSpec) -> Manifest:
        return fragment_of(opened(spec))

    async def check(self, template: VmTemplate) -> None:
        vm_id, form = new_id(), templates.TemplateForm(template.form)
        name, spec = vm_name(_DRY_RUN, vm_id), opened(template.spec)
        body = vm_manifest(name=name, **self._where, pool=_DRY_RUN, vm_id=str(vm_id), spec=spec)
        try:
            await self._client.create(VMS, body, dry_run=True)
        except ClusterRefused as error:
            raise TemplateRefused(
                f"The cluster refuses a VM of this template: {error.detail}",
                problems=[FieldProblem(templates.locate(form, each.field), each.message) for each in error.problems],
            ) from error

    async def create_vm(self, *, name: str, pool: str, vm_id: str, spec: VmSpec, start: Start = None) -> Observation:
        begun = begin(opened(spec), start, vm=name, namespace=self._settings.namespace)
        body = ask_for_memory(vm_manifest(name=name, **self._where, pool=pool, vm_id=vm_id, spec=begun), start)
        identity = (*labels.ours(self._settings.instance), labels.VM_ID)
        vm, created = await self._client.create_or_find(
            VMS, body, identity, called="VM", advice="A new VM needs a new name."
        )
        if not created:
            _log.info("cluster.vm_found", vm=name, pool=pool)
        for claim in pvcs_of(vm, start, opened(spec)):
            try:
                await self._client.create(PVCS, claim)
            except AlreadyExists:
                _log.info("cluster.claim_found", claim=claim["metadata"]["name"])
        return observe_vm(vm, None)

    async def delete_vm(self, *, name: str, uid: str | None, again: bool = False) -> bool:
        if uid is None or again:
            vm = await self._client.find(VMS, name)
            if vm is None or uid not in {None, vm["metadata"]["uid"]}:
                return False
            ours = labels.has(vm, labels.ours(self._settings.instance)) and not self._client.is_foreign(vm)
            if uid is None and not ours:
                _log.warning("cluster.foreign_vm_left_alone", vm=name)
                return False
            if vm["metadata"].get("deletionTimestamp"):
                return True
            uid = str(vm["metadata"]["uid"])
        return await self._client.delete(VMS, name, uid)

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
        before = (await self._client.get(VMS, name))["spec"] if marks is not None else None
        patch = claim_patch(claim_id, given, marks, before)
        # The VM comes last: what it has tells a second attempt whether the pods still lack it.
        if instance is not None:
            if marks is not None and before is not None and any(mark_changes(marks, before).values()):
                await self._label_pods(instance, pod_patch(patch))
            with suppress(ClusterNotFound, ClusterConflict):  # a later VMI gets them from the VM's template
                await self._client.merge(VMIS, name, instance, {"metadata": patch})
        own = with_record(patch, record) if record is not None else patch
        await self._client.merge(VMS, name, uid, {"metadata": own, "spec": {"template": {"metadata": patch}}})

    async def _label_pods(self, instance: str, patch: Manifest) -> None:
        """Services and network policies select the pods. KubeVirt v1.9.0 does not carry labels on to a pod that runs."""
        pods, _ = await self._client.list_all(PODS, selector=f"kubevirt.io/created-by={instance}")
        for pod in pods:
            with suppress(ClusterNotFound, ClusterConflict):
                await self._client.merge(PODS, pod["metadata"]["name"], pod["metadata"]["uid"], {"metadata": patch})

    async def list_vms(self) -> Listed:
        began_at, inventory = datetime.now(UTC), Inventory()
        for kind in (VMS, VMIS):
            for item in (await self._client.list_all(kind))[0]:
                inventory.put(kind, item)
        listed = inventory.report(began_at)
        if not listed.observations:
            await self._client.require_namespace()
        return listed

    async def pod_times(self, vm_ids: Sequence[str]) -> dict[str, PodTimes]:
        selector = f"{labels.VM_ID} in ({','.join(vm_ids)})"
        pods, _ = await self._client.list_all(PODS, selector=selector)
        found = [observe_pod(pod) for pod in pods]
        return {vm_id: times for vm_id, times in found if vm_id is not None}

    async def disk_failures(self, vm_uids: Sequence[str]) -> dict[str, Failure | None]:
        try:
            volumes, _ = await self._client.list_all(DATA_VOLUMES, selector=f"{CREATED_BY} in ({','.join(vm_uids)})")
        except ClusterNotFound:  # without CDI there are no DataVolumes
            return {}
        return disks_of_vms(volumes, datetime.now(UTC))

    def observe(self) -> AsyncGenerator[ClusterEvent, None]:
        seconds = self._settings.relist_seconds
        return follow(Selected(self._client), Inventory(), (VMS, VMIS), relist_seconds=seconds, turn=self._relisting)

    def observe_nodes(self) -> AsyncGenerator[NodeEvent, None]:
        return observe_nodes(
            Selected(self._client, selector=""),
            namespace=self._settings.namespace,
            relist_seconds=self._settings.relist_seconds,
            turn=self._relisting,
        )

    async def close(self) -> None:
        await self._client.close()

    def _within(self, template: VmTemplate) -> VmTemplate:
        """A volume claim that is named without a namespace is in that of the VMs."""
        return replace(template, images=tuple(each.within(self._settings.namespace) for each in template.images))
