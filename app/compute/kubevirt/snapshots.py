"""Snapshots of VMs: KubeVirt's VirtualMachineSnapshot, and the VolumeSnapshots that it creates.

A VirtualMachineSnapshot has one VolumeSnapshot for each volume that can have one: a PVC whose storage class has a
VolumeSnapshotClass. The other volumes are left out without an error (KubeVirt v1.9.0), so its contents are known only at its end.
"""

from collections.abc import Iterable
from math import ceil
from typing import Any

from app.compute.kubevirt import labels
from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.kinds import VM_SNAPSHOT_CONTENTS, VM_SNAPSHOTS, VMS, VOLUME_SNAPSHOTS, Manifest, opened
from app.compute.kubevirt.memory import GROUP, WHY_NONE, asking, read_memory, unkept_devices
from app.compute.kubevirt.quantities import parse_quantity, requested_storage
from app.compute.kubevirt.templates.expand import SHORT_VOLUMES, TemplateForm, locate
from app.compute.kubevirt.templates.exported import without_identity
from app.compute.kubevirt.templates.memory_match import find_differences
from app.compute.kubevirt.templates.rules import DEFAULT_RUN_STRATEGY
from app.compute.kubevirt.templates.shapes import shape_of
from app.compute.vms import VmTemplate
from app.config import Settings
from app.domain.paths import SnapshotDisk
from app.domain.snapshots import SnapshotStatus, SourceVm, VolumeVerdict, unkept_disks
from app.domain.templates import VmSpec
from app.errors import ClusterError, FieldProblem

_COPIED = ("dataVolume", "persistentVolumeClaim")
_SAME_FOR_ALL = frozenset(
    {
        "cloudInitConfigDrive",
        "cloudInitNoCloud",
        "configMap",
        "downwardAPI",
        "downwardMetrics",
        "secret",
        "serviceAccount",
        "sysprep",
    }
)
"""Volumes whose content is not the guest's."""
_HALTED = "Halted"
_LEAVING = frozenset({"Stopping", "Terminating"})
_PARTIAL = "PartialSnapshot"
_DEFAULT_NETWORKS: list[Manifest] = [{"name": "default", "pod": {}}]
_DEFAULT_INTERFACES: list[Manifest] = [{"name": "default", "masquerade": {}}]


class KubeVirtSnapshots:
    """Implements `SnapshotGateway`."""

    def __init__(self, settings: Settings, client: KubeVirtClient) -> None:
        self._client = client
        self._where = {"namespace": settings.namespace, "instance": settings.instance}

    def judge(self, spec: VmSpec) -> tuple[VolumeVerdict, ...]:
        return tuple(judge_volume(volume) for volume in _volumes(opened(spec)))

    def judge_memory(self, spec: VmSpec) -> tuple[str, ...]:
        return (*unkept_devices(opened(spec)), *unkept_disks(self.judge(spec)))

    def memory_differences(
        self, template: VmTemplate, kept: VmSpec, disks: Iterable[SnapshotDisk]
    ) -> tuple[FieldProblem, ...]:
        form = TemplateForm(template.form or TemplateForm.VM_SPEC)
        fields = SHORT_VOLUMES if form is TemplateForm.SHORT else {}
        return find_differences(
            opened(template.spec), opened(kept), disks, lambda field: locate(form, field), dict(fields)
        )

    async def why_no_memory(self) -> str | None:
        """See `Capability.MEMORY`."""
        return None if await self._client.versions(GROUP) else WHY_NONE

    async def source(self, name: str) -> SourceVm | None:
        vm = await self._client.find(VMS, name)
        return read_source(vm) if vm is not None else None

    async def stop(self, *, name: str, uid: str) -> None:
        await self._client.merge(VMS, name, uid, {"spec": {"runStrategy": _HALTED}})

    async def take(
        self, *, name: str, snapshot: str, take_id: str, vm: str, deadline_seconds: int, memory: bool = False
    ) -> SnapshotStatus:
        take = {"snapshot": snapshot, "take_id": take_id, "vm": vm}
        body = snapshot_manifest(name=name, **self._where, **take, deadline_seconds=deadline_seconds)
        if memory:
            body["metadata"] = asking(body["metadata"])
        made, _ = await self._client.create_or_find(VM_SNAPSHOTS, body, (labels.TAKE,))
        return read_status(made)

    async def look(self, name: str) -> SnapshotStatus | None:
        found = await self._client.find(VM_SNAPSHOTS, name)
        return read_status(found) if found is not None else None

    async def disks(self, status: SnapshotStatus) -> tuple[SnapshotDisk, ...]:
        if status.content is None:
            raise ClusterError(f"VirtualMachineSnapshot {status.name} is ready but names no content.")
        content = await self._client.get(VM_SNAPSHOT_CONTENTS, status.content)
        found = []
        for backup in disk_backups(content):
            name = backup.get("volumeSnapshotName")
            if name:
                found.append(read_disk(backup, await self._client.get(VOLUME_SNAPSHOTS, name)))
        return tuple(found)

    def count_bytes(self, disks: Iterable[SnapshotDisk]) -> int:
        return sum(ceil(_number(disk.size)) for disk in disks)

    async def remove(self, *, name: str, uid: str | None, take_id: str) -> bool:
        if uid is None:
            found = await self.look(name)
            if found is None or found.take_id != take_id:
                return False
            uid = found.uid
        return await self._client.delete(VM_SNAPSHOTS, name, uid)

    async def all(self) -> tuple[SnapshotStatus, ...]:
        found, _ = await self._client.list_all(VM_SNAPSHOTS)
        return tuple(read_status(each) for each in found)


def snapshot_manifest(
    *, name: str, namespace: str, instance: str, snapshot: str, take_id: str, vm: str, deadline_seconds: int
) -> Manifest:
    """The VirtualMachineSnapshot of one take. Its contents are deleted with it."""
    marks = {**labels.ours(instance), labels.SNAPSHOT: snapshot, labels.TAKE: take_id}
    return VM_SNAPSHOTS.manifest(
        {"name": name, "namespace": namespace, "labels": marks},
        {
            "source": {"apiGroup": VMS.group, "kind": VMS.name, "name": vm},
            "deletionPolicy": "Delete",
            "failureDeadline": f"{deadline_seconds}s",
        },
    )


def judge_volume(volume: Manifest) -> VolumeVerdict:
    """Whether a volume of this kind can be in a snapshot."""
    name = volume["name"]
    if any(key in volume for key in _COPIED):
        return VolumeVerdict(name, enabled=True)
    kind = next((key for key in volume if key != "name"), "nothing")
    why = {
        "containerDisk": "a container disk is read from its image at each boot and cannot be snapshotted",
        "emptyDisk": "an empty disk is created again at each boot and cannot be snapshotted",
        "ephemeral": "an ephemeral disk loses its data at each stop and cannot be snapshotted",
    }.get(kind, f"a {kind} volume has no disk that could be snapshotted")
    return VolumeVerdict(name, enabled=False, reason=why, written=kind not in _SAME_FOR_ALL)


def read_source(vm: Manifest) -> SourceVm:
    """Reads a VirtualMachine of the cluster. KubeVirt's own status of a volume counts, if there is one."""
    status = vm.get("status") or {}
    said = {each["name"]: each for each in status.get("volumeSnapshotStatuses") or []}
    spec, shape = _as_written(vm["spec"])
    halted = vm["spec"].get("runStrategy") == _HALTED or vm["spec"].get("running") is False
    return SourceVm(
        name=vm["metadata"]["name"],
        uid=str(vm["metadata"]["uid"]),
        running=bool(status.get("created")) or not halted or status.get("printableStatus") in _LEAVING,
        halted=halted,
        deleting="deletionTimestamp" in vm["metadata"],
        volumes=tuple(_verdict(volume, said.get(volume["name"])) for volume in _volumes(vm["spec"])),
        shape=shape,
        spec=VmSpec(spec) if shape is not None else None,
    )


def read_status(snapshot: Manifest) -> SnapshotStatus:
    """Reads a VirtualMachineSnapshot of the cluster."""
    metadata, status = snapshot["metadata"], snapshot.get("status") or {}
    volumes = status.get("snapshotVolumes") or {}
    conditions = {each.get("type"): each for each in status.get("conditions") or []}
    failure = conditions.get("Failure") or {}
    errors = [(status.get("error") or {}).get("message")]
    if failure.get("status") == "True":
        errors.insert(0, failure.get("reason"))
    error = ": ".join(str(each) for each in errors if each)
    progressing = conditions.get("Progressing") or {}
    hints = {each.get("indication"): each.get("message") for each in status.get("sourceIndications") or []}
    return SnapshotStatus(
        name=metadata["name"],
        uid=str(metadata["uid"]),
        take_id=(metadata.get("labels") or {}).get(labels.TAKE),
        installation=(metadata.get("labels") or {}).get(labels.INSTALLATION),
        ready=bool(status.get("readyToUse")),
        failed=status.get("phase") == "Failed",
        deleting="deletionTimestamp" in metadata,
        error=error or None,
        progress=progressing.get("reason"),
        content=status.get("virtualMachineSnapshotContentName"),
        included=tuple(volumes.get("includedVolumes") or ()),
        excluded=tuple(volumes.get("excludedVolumes") or ()),
        hint=hints.get(_PARTIAL),
        memory=read_memory(snapshot),
    )


def disk_backups(content: Manifest) -> list[Manifest]:
    """The backups of a VirtualMachineSnapshotContent that are of volumes of its VM.

    KubeVirt v1.9.0 also backs up the state of a persistent TPM or EFI, as a volume that the VM does not have
    (`persistent-state-for-<vm>`). It is no disk: a guest must not get it as one.
    """
    own = {volume["name"] for volume in _volumes(content["spec"]["source"]["virtualMachine"]["spec"])}
    return [backup for backup in content["spec"].get("volumeBackups") or [] if backup["volumeName"] in own]


def read_disk(backup: Manifest, volume_snapshot: Manifest) -> SnapshotDisk:
    """Reads one volume of a VirtualMachineSnapshotContent and its VolumeSnapshot."""
    spec = backup["persistentVolumeClaim"]["spec"]
    asked = requested_storage(spec)
    holds = (volume_snapshot.get("status") or {}).get("restoreSize")
    sizes = [str(size) for size in (asked, holds) if size is not None]
    if not sizes:
        raise ClusterError(f"The cluster does not tell the size of VolumeSnapshot {backup['volumeSnapshotName']}.")
    return SnapshotDisk(
        volume=backup["volumeName"],
        volume_snapshot=backup["volumeSnapshotName"],
        size=max(sizes, key=_number),
        storage_class=spec.get("storageClassName"),
        access_modes=tuple(spec.get("accessModes") or ()),
        volume_mode=spec.get("volumeMode"),
    )


def _number(size: str) -> Any:
    try:
        return parse_quantity(size)
    except ValueError as error:
        raise ClusterError(
            f"The cluster tells the size of a disk as {size!r}, which cannot be read: it {error}."
        ) from error


def _volumes(spec: Manifest) -> list[Manifest]:
    volumes: list[Manifest] = spec["template"]["spec"].get("volumes") or []
    return volumes


def _verdict(volume: Manifest, said: Manifest | None) -> VolumeVerdict:
    ours = judge_volume(volume)
    if said is None or not ours.enabled:
        return ours  # our reason is better: KubeVirt only names the kind of volume
    return VolumeVerdict(ours.name, enabled=bool(said.get("enabled")), reason=said.get("reason"))


def _as_written(spec: Manifest) -> tuple[Manifest, str | None]:
    """The spec of a VM in the cluster, as if it ran, without what the cluster wrote into it (KubeVirt v1.9.0), and its shape."""
    spec, _ = without_identity(spec)
    if spec.pop("running", None) is not None or spec.get("runStrategy") in {_HALTED, "Manual"}:
        spec["runStrategy"] = DEFAULT_RUN_STRATEGY
    vmi = spec["template"]["spec"]
    domain = vmi.get("domain") or {}
    for holder, key, default in ((vmi, "architecture", "amd64"), (domain, "machine", {"type": "q35"})):
        if holder.get(key) == default:
            del holder[key]
    devices = domain.get("devices") or {}
    if vmi.get("networks") == _DEFAULT_NETWORKS and devices.get("interfaces") == _DEFAULT_INTERFACES:
        del vmi["networks"], devices["interfaces"]
    try:
        return spec, shape_of(spec)
    except (KeyError, TypeError, AttributeError):  # a VM that others created may be written in ways that ours never are
        return spec, None
