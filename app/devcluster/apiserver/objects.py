"""Objects of the API as plain JSON: reading their usual members, and new versions of them. Nothing is changed in place."""

import uuid
from datetime import datetime
from typing import Any

from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp

Key = tuple[str, str]
"""Namespace (empty for cluster-scoped kinds) and name."""


def new_object(resource: Resource, name: str, namespace: str, now: datetime, **metadata: Any) -> Json:
    """What every object of a controller begins with: its kind, and metadata with a new uid."""
    own: Json = {"name": name, "namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": stamp(now)}
    if not namespace:
        del own["namespace"]
    if resource.counts_generation:
        own["generation"] = 1
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {**own, **metadata}}


def status_of(obj: Json) -> Json:
    return obj.get("status") or {}


def phase_of(obj: Json) -> str:
    """The phase in the status; empty where there is none yet."""
    return str(status_of(obj).get("phase", ""))


def labels_of(obj: Json) -> dict[str, str]:
    """Also of a pod template, which may have no metadata at all."""
    return (obj.get("metadata") or {}).get("labels") or {}


def annotations_of(obj: Json) -> dict[str, str]:
    return (obj.get("metadata") or {}).get("annotations") or {}


def owners_of(obj: Json) -> list[Json]:
    return obj["metadata"].get("ownerReferences") or []


def finalizers_of(obj: Json) -> list[str]:
    return obj["metadata"].get("finalizers") or []


def is_deleting(obj: Json) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def is_owned_by(obj: Json, owner: Json) -> bool:
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in owners_of(obj))


def owned_by(owner: Json) -> list[Json]:
    """The ownerReferences of an object that `owner` controls."""
    return [
        {
            "apiVersion": owner["apiVersion"],
            "blockOwnerDeletion": True,
            "controller": True,
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
        }
    ]


def with_metadata(obj: Json, **members: Any) -> Json:
    return {**obj, "metadata": {**obj["metadata"], **members}}


def with_status(obj: Json, **members: Any) -> Json:
    return {**obj, "status": {**status_of(obj), **members}}


def with_annotations(obj: Json, annotations: dict[str, str]) -> Json:
    return with_metadata(obj, annotations={**annotations_of(obj), **annotations})


def with_finalizer(obj: Json, finalizer: str) -> Json:
    finalizers = finalizers_of(obj)
    return obj if finalizer in finalizers else with_metadata(obj, finalizers=[*finalizers, finalizer])


def without_finalizer(obj: Json, finalizer: str) -> Json:
    return with_metadata(obj, finalizers=[item for item in finalizers_of(obj) if item != finalizer])
