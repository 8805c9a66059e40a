"""Documents as users write them, to be changed by a test."""

from typing import Any, Final

import yaml

from app.errors import FieldProblem
from app.manifests.documents import read_documents
from app.manifests.requests import ResourceRequest
from app.manifests.translate import translate

DOMAIN: Final = {"cpu": {"cores": 2}, "memory": {"guest": "1Gi"}}
DISK: Final = {"name": "boot", "containerDisk": {"image": "registry.local/disk:1"}}
VMI: Final = {"spec": {"domain": DOMAIN, "volumes": [DISK]}}


def document(kind: str, version: str, name: str, spec: Any, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def pool(name: str = "web", **spec: Any) -> dict[str, Any]:
    spec = {"size": 1, "template": VMI, **spec}
    return document("VirtualMachinePool", "pool.kubevirt.io/v1", name, without_null(spec))


def machine(name: str = "one", **spec: Any) -> dict[str, Any]:
    spec = {"running": True, "template": VMI, **spec}
    return document("VirtualMachine", "kubevirt.io/v1", name, without_null(spec))


def snapshot(name: str = "taken", **spec: Any) -> dict[str, Any]:
    source = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "prepared"}
    return document("VirtualMachineSnapshot", "snapshot.kubevirt.io/v1", name, without_null({"source": source, **spec}))


def volume(name: str = "near", **spec: Any) -> dict[str, Any]:
    spec = {
        "source": {"http": {"url": "https://example.com/disk.qcow2"}},
        "pvc": {"resources": {"requests": {"storage": "1Gi"}}},
        **spec,
    }
    return document("DataVolume", "cdi.kubevirt.io/v1beta1", name, without_null(spec))


def import_cron(name: str = "nightly", **spec: Any) -> dict[str, Any]:
    template = {
        "spec": {
            "source": {"registry": {"url": "docker://registry.local/disk:1"}},
            "storage": {"resources": {"requests": {"storage": "1Gi"}}},
        }
    }
    spec = {"schedule": "30 2 * * *", "managedDataSource": name, "template": template, **spec}
    return document("DataImportCron", "cdi.kubevirt.io/v1beta1", name, without_null(spec))


def annotated(written: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """With `emberpool.io/<setting>` for each."""
    annotations = {f"emberpool.io/{name.replace('_', '-')}": value for name, value in settings.items()}
    return {**written, "metadata": {**written["metadata"], "annotations": annotations}}


def without_null(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if value is not None}


def as_yaml(*documents: Any) -> bytes:
    return yaml.safe_dump_all(documents, sort_keys=False).encode()


def translated(*documents: Any) -> tuple[list[ResourceRequest], list[FieldProblem]]:
    found = translate(read_documents(as_yaml(*documents)), namespace="default")
    return found.requests, found.problems


def request_of(written: dict[str, Any]) -> ResourceRequest:
    requests, problems = translated(written)
    assert problems == []
    (request,) = requests
    return request


def refused(*documents: Any) -> dict[str, str]:
    """What is wrong, by field; at least one thing is."""
    _, problems = translated(*documents)
    assert problems
    return {problem.field: problem.message for problem in problems}
