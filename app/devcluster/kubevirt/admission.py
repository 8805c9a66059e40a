"""KubeVirt's webhooks: defaults of VMs, and the validation of VMs, pools and snapshots."""

import uuid

from app.devcluster.apiserver import schemas
from app.devcluster.apiserver.admission import deny
from app.devcluster.apiserver.objects import annotations_of, is_deleting, status_of
from app.devcluster.apiserver.quantities import QUANTITY_RULE, is_quantity
from app.devcluster.apiserver.registry import POOLS, VIRTUAL_MACHINES, VM_RESTORES, VM_SNAPSHOTS, Resource
from app.devcluster.apiserver.status import ApiError, Json, cause
from app.devcluster.apiserver.store import Store
from app.devcluster.kubevirt.pool_validation import check_pool
from app.devcluster.kubevirt.state_volumes import check_restore
from app.devcluster.kubevirt.vm_validation import check_machine

VALIDATOR = "virtualmachine-validator.kubevirt.io"
_MUTATOR = "virtualmachines-mutator.kubevirt.io"
_DEPRECATED = "spec.running is deprecated, please use spec.runStrategy instead."


class KubeVirtWebhooks:
    def __init__(self, store: Store) -> None:
        self._store = store

    def mutate(self, resource: Resource, obj: Json, old: Json | None) -> Json:
        if resource is not VIRTUAL_MACHINES:
            return obj
        obj = {**obj, "kind": VIRTUAL_MACHINES.kind}
        _check_shape(obj)
        return obj if old is not None else _with_defaults(obj)

    def validate(self, resource: Resource, obj: Json, old: Json | None) -> list[str]:
        if resource is VIRTUAL_MACHINES:
            if old is not None and (old.get("spec") == obj.get("spec") or is_deleting(obj)):
                return []
            if old is not None:
                deny(VALIDATOR, check_snapshotted(obj, old))
            deny(VALIDATOR, check_machine(obj["spec"], "spec"))
            return [_DEPRECATED] if "running" in obj["spec"] else []
        if resource is POOLS:
            deny("virtualmachinepool-validator.kubevirt.io", check_pool(obj, old))
        if resource is VM_SNAPSHOTS:
            deny("virtualmachinesnapshot-validator.snapshot.kubevirt.io", _check_snapshot(obj, old))
        if resource is VM_RESTORES and old is None:
            deny("virtualmachinerestore-validator.snapshot.kubevirt.io", check_restore(self._store, obj))
        return []


def with_machine_defaults(vm: Json) -> Json:
    """A new VM after its mutating webhook. Raises ApiError where its template cannot be read."""
    _check_shape(vm)
    return _with_defaults(vm)


def check_snapshotted(vm: Json, old: Json) -> list[Json]:
    """While a VM is being snapshotted, neither its volumes nor its run strategy may change."""
    name = status_of(old).get("snapshotInProgress")
    if not name:
        return []
    before, after = old["spec"], vm["spec"]
    kept = "vm disks or volumes" if _volumes(before) != _volumes(after) else "vm running state"
    if kept == "vm running state" and all(before.get(key) == after.get(key) for key in ("running", "runStrategy")):
        return []
    told = f'Cannot update {kept} until snapshot "{name}" completes'
    return [cause("FieldValueNotSupported", told, "spec")]


def _check_shape(vm: Json) -> None:
    """The mutating webhook parses the VM before the schema of the API server is applied, and words errors in its own way."""
    problems: list[Json] = []
    for item in schemas.check(VIRTUAL_MACHINES, vm).causes:
        field, message = item["field"], item["message"]
        if item["reason"] == "FieldValueRequired":
            problems.append({"message": f"{field} in body is required"})
        elif item["reason"] == "FieldValueTypeInvalid":
            problems.append({"message": message.split(": ", 2)[2] if message.count(": ") > 1 else message})
    deny(_MUTATOR, problems)
    for value in _quantities(vm["spec"]["template"].get("spec") or {}):
        if not is_quantity(value):
            raise ApiError(400, None, f'admission webhook "{_MUTATOR}" denied the request: {QUANTITY_RULE}')


def _volumes(spec: Json) -> object:
    return spec["template"]["spec"].get("volumes") or []


def _with_defaults(vm: Json) -> Json:
    template = vm["spec"]["template"]
    spec = {"architecture": "amd64", **template["spec"]}
    domain = {**spec["domain"]}
    firmware = {**(domain.get("firmware") or {})}
    firmware.setdefault("serial", str(uuid.uuid4()))
    firmware.setdefault("uuid", str(uuid.uuid4()))
    domain["firmware"] = firmware
    domain["machine"] = {"type": "q35", **(domain.get("machine") or {})}
    domain.setdefault("resources", {})
    domain.setdefault("devices", {})
    annotations = {"kubevirt.io/pci-topology-version": "v3", **annotations_of(template)}
    metadata = {**(template.get("metadata") or {}), "annotations": annotations}
    spec["domain"] = domain
    template = {**template, "metadata": metadata, "spec": spec}
    return {**vm, "spec": {**_with_inference(vm["spec"]), "template": template}}


def _with_inference(spec: Json) -> Json:
    """An instance type and a preference are inferred from labels of a volume. No volume of this cluster has them, so a matcher
    that may fail is cleared (KubeVirt v1.9.0).
    """
    inferred = [key for key in ("instancetype", "preference") if (spec.get(key) or {}).get("inferFromVolume")]
    for key in inferred:
        if spec[key].get("inferFromVolumeFailurePolicy") != "Ignore":
            told = f"unable to find required instancetype.kubevirt.io/default-{key} label on the volume"
            raise ApiError(400, None, f'admission webhook "{_MUTATOR}" denied the request: {told}')
    return {key: value for key, value in spec.items() if key not in inferred}


def _quantities(spec: Json) -> list[object]:
    """The quantities that the mutating webhook parses; it leaves hugepage sizes to the validator."""
    domain = spec.get("domain") or {}
    memory = domain.get("memory") or {}
    found: list[object] = [memory[name] for name in ("guest", "maxGuest") if name in memory]
    resources = domain.get("resources") or {}
    for part in ("requests", "limits"):
        found += list((resources.get(part) or {}).values())
    return found


def _check_snapshot(obj: Json, old: Json | None) -> list[Json]:
    spec = obj.get("spec") or {}
    if old is not None:
        changed = spec != old.get("spec")
        return [cause("FieldValueInvalid", "spec in immutable after creation", "spec")] if changed else []
    if (spec.get("source") or {}).get("kind") != "VirtualMachine":
        return [cause("FieldValueInvalid", "invalid kind", "spec.source.kind")]
    return []
