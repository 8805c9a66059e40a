"""The images that a pod needs, and their names."""

import hashlib

from app.devcluster.apiserver.status import Json

LAUNCHER_IMAGE = "quay.io/kubevirt/virt-launcher:v1.9.0"
"""Every node has it: KubeVirt's own pods brought it there."""


def pod_images(pod: Json) -> list[str]:
    """Images a node must have before the pod starts, each once; the launcher's own is left out."""
    spec = pod["spec"]
    found = [item["image"] for item in (*(spec.get("initContainers") or ()), *spec["containers"])]
    found += [item["image"]["reference"] for item in spec.get("volumes") or () if "image" in item]
    return [image for image in dict.fromkeys(found) if image != LAUNCHER_IMAGE]


def pinned_name(image: str) -> str:
    """The image by its digest: the one that its reference names, or one made from it."""
    name, marked, digest = image.partition("@")
    if ":" in name.rpartition("/")[2]:
        name = name.rpartition(":")[0]
    return f"{name}@{digest if marked else 'sha256:' + hashlib.sha256(image.encode()).hexdigest()}"
