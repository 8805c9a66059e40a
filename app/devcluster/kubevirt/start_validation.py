"""Errors of a VM that KubeVirt finds only when it starts: those of the VMI's webhook, and missing instance types."""

from app.devcluster.apiserver.status import Json

_ARCHITECTURES = frozenset({"amd64", "arm64", "s390x"})
_WEBHOOK = 'admission webhook "virtualmachineinstances-create-validator.kubevirt.io" denied the request: '


def refuse_instance(vm: Json) -> tuple[str, str] | None:
    """Reason and message of the VM's Failure condition; None where the VMI may be created."""
    instance_type = vm["spec"].get("instancetype")
    if instance_type:
        kind = instance_type.get("kind", "VirtualMachineClusterInstancetype").lower()
        plural = f"{kind}s.instancetype.kubevirt.io"
        return "FailedFindInstancetype", f'{plural} "{instance_type.get("name")}" not found'
    problem = _problem(vm["spec"]["template"]["spec"])
    if problem is None:
        return None
    return "FailedCreate", f"Failure while starting VMI: {_WEBHOOK}{problem}"


def _problem(spec: Json) -> str | None:
    architecture = spec.get("architecture", "amd64")
    if architecture not in _ARCHITECTURES:
        return f"unsupported architecture: {architecture}"
    domain = spec["domain"]
    memory = domain.get("memory") or {}
    requested = (domain.get("resources") or {}).get("requests", {}).get("memory")
    limited = (domain.get("resources") or {}).get("limits", {}).get("memory")
    if not (memory.get("guest") or memory.get("hugepages") or requested or limited):
        return (
            "no memory requested, at least one of 'spec.domain.memory.guest', "
            "'spec.domain.memory.hugepages.pageSize' or 'spec.domain.resources.requests.memory' must be set"
        )
    return None
