"""KubeVirt's and CDI's webhooks as far as this cluster has them: defaults for VMs, and the refusals of its validators."""

import uuid

from app.devcluster.apiserver import schemas
from app.devcluster.apiserver.objects import Store
from app.devcluster.apiserver.quantities import is_quantity
from app.devcluster.apiserver.registry import (
    DATA_IMPORT_CRONS,
    DATA_VOLUMES,
    POOLS,
    VIRTUAL_MACHINES,
    VM_SNAPSHOTS,
    Resource,
)
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.cdi.rules import check_cron, check_volume
from app.devcluster.kubevirt.pool_rules import check_pool
from app.devcluster.kubevirt.vm_rules import check_machine

_QUANTITY_RULE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
VALIDATOR = "virtualmachine-validator.kubevirt.io"
_DEPRECATED = "spec.running is deprecated, please use spec.runStrategy instead."


class Webhooks:
    """Mutates and validates what is written through the API; controllers write past it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mutate(self, resource: Resource, obj: Json, old: Json | None) -> Json:
        if resource is not VIRTUAL_MACHINES:
            return obj
        obj = {**obj, "kind": VIRTUAL_MACHINES.kind}
        self._check_shape(obj)
        return obj if old is not None else _with_defaults(obj)

    def validate(self, resource: Resource, obj: Json, old: Json | None) -> list[str]:
        if resource is VIRTUAL_MACHINES:
            if old is not None and (old.get("spec") == obj.get("spec") or "deletionTimestamp" in obj["metadata"]):
                return []
            if old is not None:
                _refuse(VALIDATOR, check_snapshotted(obj, old))
            _refuse(VALIDATOR, check_machine(obj["spec"], "spec"))
            return [_DEPRECATED] if "running" in obj["spec"] else []
        if resource is POOLS:
            _refuse("virtualmachinepool-validator.kubevirt.io", check_pool(obj, old))
        if resource is VM_SNAPSHOTS:
            _refuse("virtualmachinesnapshot-validator.snapshot.kubevirt.io", _check_snapshot(obj, old))
        if resource is DATA_VOLUMES:
            _refuse("datavolume-validate.cdi.kubevirt.io", check_volume(self._store, obj, old))
        if resource is DATA_IMPORT_CRONS:
            _refuse("dataimportcron-validate.cdi.kubevirt.io", check_cron(obj, old))
        return []

    def _check_shape(self, vm: Json) -> None:
        """The mutator reads the VM before the API server's schema does, and complains in its own way."""
        webhook = "virtualmachines-mutator.kubevirt.io"
        problems: list[Json] = []
        for item in schemas.check(VIRTUAL_MACHINES, vm).causes:
            field, message = item["field"], item["message"]
            if item["reason"] == "FieldValueRequired":
                problems.append({"message": f"{field} in body is required"})
            elif item["reason"] == "FieldValueTypeInvalid":
                problems.append({"message": message.split(": ", 2)[2] if message.count(": ") > 1 else message})
        if problems:
            _refuse(webhook, problems)
        for value in _quantities(vm["spec"]["template"].get("spec") or {}):
            if not is_quantity(value):
                raise ApiError(400, None, f'admission webhook "{webhook}" denied the request: {_QUANTITY_RULE}')


def check_snapshotted(vm: Json, old: Json) -> list[Json]:
    """While a snapshot of it is taken, a VM keeps its volumes and goes on running, or not."""
    name = (old.get("status") or {}).get("snapshotInProgress")
    if not name:
        return []
    before, after = old["spec"], vm["spec"]
    kept = "vm disks or volumes" if _volumes(before) != _volumes(after) else "vm running state"
    if kept == "vm running state" and all(before.get(key) == after.get(key) for key in ("running", "runStrategy")):
        return []
    told = f'Cannot update {kept} until snapshot "{name}" completes'
    return [{"reason": "FieldValueNotSupported", "message": told, "field": "spec"}]


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
    metadata = {**(template.get("metadata") or {})}
    metadata["annotations"] = {"kubevirt.io/pci-topology-version": "v3", **(metadata.get("annotations") or {})}
    spec["domain"] = domain
    template = {**template, "metadata": metadata, "spec": spec}
    return {**vm, "spec": {**vm["spec"], "template": template}}


def _quantities(spec: Json) -> list[object]:
    """The quantities the mutator parses; hugepage sizes it leaves to the validator."""
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
        if spec != old.get("spec"):
            return [_invalid("spec in immutable after creation", "spec")]
        return []
    if (spec.get("source") or {}).get("kind") != "VirtualMachine":
        return [_invalid("invalid kind", "spec.source.kind")]
    return []


def _invalid(message: str, field: str) -> Json:
    return {"reason": "FieldValueInvalid", "message": message, "field": field}


def _refuse(webhook: str, causes: list[Json]) -> None:
    if not causes:
        return
    told = ", ".join(item["message"] for item in causes)
    raise ApiError(
        422,
        "Invalid",
        f'admission webhook "{webhook}" denied the request: {told}',
        details={"causes": causes},
    )
