"""What KubeVirt's validator refuses in a VirtualMachinePool."""

from app.devcluster.apiserver.status import Json
from app.devcluster.kubevirt.vm_rules import check_machine


def check_pool(pool: Json, old: Json | None) -> list[Json]:
    spec = pool.get("spec") or {}
    template = spec.get("virtualMachineTemplate") or {}
    causes = check_machine(template.get("spec") or {}, "spec.virtualMachineTemplate.spec")
    selector = spec.get("selector") or {}
    if old is not None and selector != (old.get("spec") or {}).get("selector"):
        causes.append(_refused("selector is immutable after creation."))
    labels = (template.get("metadata") or {}).get("labels") or {}
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()) or not _meets(selector, labels):
        causes.append(_refused("selector does not match labels."))
    return causes


def _meets(selector: Json, labels: dict[str, str]) -> bool:
    for requirement in selector.get("matchExpressions") or ():
        value = labels.get(requirement["key"])
        given = requirement.get("values") or ()
        met = {
            "In": value in given,
            "NotIn": value not in given,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(requirement["operator"], False)
        if not met:
            return False
    return True


def _refused(message: str) -> Json:
    return {"reason": "FieldValueInvalid", "message": message, "field": "spec.selector"}
