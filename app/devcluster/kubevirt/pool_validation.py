"""Validation of a VirtualMachinePool, with the messages of KubeVirt v1.9.0."""

from app.devcluster.apiserver.label_selectors import selects
from app.devcluster.apiserver.objects import labels_of
from app.devcluster.apiserver.status import Json, cause
from app.devcluster.kubevirt.vm_validation import check_machine


def check_pool(pool: Json, old: Json | None) -> list[Json]:
    spec = pool.get("spec") or {}
    template = spec.get("virtualMachineTemplate") or {}
    causes = check_machine(template.get("spec") or {}, "spec.virtualMachineTemplate.spec")
    selector = spec.get("selector") or {}
    if old is not None and selector != (old.get("spec") or {}).get("selector"):
        causes.append(cause("FieldValueInvalid", "selector is immutable after creation.", "spec.selector"))
    if not selects(selector, labels_of(template)):
        causes.append(cause("FieldValueInvalid", "selector does not match labels.", "spec.selector"))
    return causes
