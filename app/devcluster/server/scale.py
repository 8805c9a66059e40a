"""The scale subresource of pools, for reading and writing."""

from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Stored

_KEPT = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def view(stored: Stored) -> Json:
    metadata, status = stored.obj["metadata"], stored.obj.get("status") or {}
    shown: Json = {"replicas": status.get("replicas", 0)}
    if "labelSelector" in status:
        shown["selector"] = status["labelSelector"]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in _KEPT},
        "spec": {"replicas": stored.obj["spec"].get("replicas", 0)},
        "status": shown,
    }


def as_merge_patch(scale: Json) -> Json:
    """The merge patch of the pool for a Scale, or for a merge patch of a Scale."""
    patch: Json = {"spec": {"replicas": (scale.get("spec") or {}).get("replicas")}}
    version = (scale.get("metadata") or {}).get("resourceVersion")
    return {**patch, "metadata": {"resourceVersion": version}} if version else patch
