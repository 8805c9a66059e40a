"""What snapshots, restores and clones share: their two conditions, finalizers, and locks."""

from datetime import datetime

from app.devcluster.apiserver.conditions import put
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp

FAILED = "Failure"


def progress(
    old: list[Json] | None,
    progressing: tuple[bool, str],
    ready: tuple[bool, str],
    now: datetime,
    **more: tuple[bool, str],
) -> list[Json]:
    """Progressing, Ready and `more`, each as (value, reason); unchanged ones keep their times."""
    conditions = old or []
    for kind, (value, reason) in {**more, "Progressing": progressing, "Ready": ready}.items():
        condition = {
            "lastProbeTime": None,
            "lastTransitionTime": stamp(now),
            "reason": reason,
            "status": "True" if value else "False",
            "type": kind,
        }
        conditions = put(conditions, condition)
    return conditions


def with_finalizer(obj: Json, finalizer: str) -> Json:
    metadata = obj["metadata"]
    finalizers = metadata.get("finalizers", [])
    if finalizer in finalizers:
        return obj
    return {**obj, "metadata": {**metadata, "finalizers": [*finalizers, finalizer]}}


def owned_by(owner: Json) -> list[Json]:
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
