"""Deleting: preconditions, finalizers, propagation policies and dry runs."""

from dataclasses import dataclass
from typing import Self

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.registry import PODS, Resource
from app.devcluster.apiserver.status import Json, bad_option, conflict, describe
from app.devcluster.apiserver.store import Stored
from app.devcluster.apiserver.times import stamp

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_POLICIES = ("Foreground", "Background", "Orphan")


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    policy: str = ""
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False
    grace_seconds: int | None = None

    @classmethod
    def parse(cls, body: Json, query: dict[str, list[str]]) -> Self:
        """Options of the body; those of the query count where the body has none. Raises ApiError 422."""
        first = {key: values[0] for key, values in query.items() if values}
        policy = body.get("propagationPolicy") or first.get("propagationPolicy", "")
        if policy and policy not in _POLICIES:
            message = f'Unsupported value: "{policy}": supported values: "Foreground", "Background", "Orphan", "nil"'
            raise bad_option("DeleteOptions", "propagationPolicy", "FieldValueNotSupported", message)
        if body.get("orphanDependents") is True:
            policy = "Orphan"
        dry_run = body.get("dryRun") or query.get("dryRun") or []
        if dry_run not in ([], ["All"]):
            shown = ", ".join(f'"{item}"' for item in dry_run)
            message = f'Unsupported value: [{shown}]: supported values: "All"'
            raise bad_option("DeleteOptions", "dryRun", "FieldValueNotSupported", message)
        grace = body.get("gracePeriodSeconds", first.get("gracePeriodSeconds"))
        preconditions = body.get("preconditions") or {}
        return cls(
            policy=policy,
            uid=preconditions.get("uid") or "",
            resource_version=preconditions.get("resourceVersion") or "",
            dry_run=bool(dry_run),
            grace_seconds=None if grace is None else int(grace),
        )


def delete(api: Api, resource: Resource, namespace: str, name: str, options: DeleteOptions) -> Json:
    """Gives the body of the answer: the object where it stays because of its finalizers, else a Status."""
    stored = api.get(resource, namespace, name)
    _check_preconditions(resource, stored, options)
    metadata = stored.obj["metadata"]
    finalizers = _finalizers(metadata, options.policy)
    grace = _grace(resource, stored, options)
    if not finalizers and not grace:
        if not options.dry_run:
            api.store.remove(resource, namespace, name)
        details = describe(resource.group, resource.plural, name, uid=metadata["uid"])
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    marked = {**metadata}
    if finalizers:
        marked["finalizers"] = finalizers
    if "deletionTimestamp" not in metadata:
        marked["deletionTimestamp"] = stamp(api.clock.now())
        marked["deletionGracePeriodSeconds"] = grace
        if "generation" in marked:
            marked["generation"] += 1
    elif not grace and metadata.get("deletionGracePeriodSeconds"):
        marked["deletionGracePeriodSeconds"] = 0
    if marked == metadata:
        return stored.obj
    obj = {**stored.obj, "metadata": marked}
    return obj if options.dry_run else api.store.put(resource, obj).obj


def _finalizers(metadata: Json, policy: str) -> list[str]:
    finalizers = list(metadata.get("finalizers") or [])
    if "deletionTimestamp" in metadata and not policy:
        return finalizers
    kept = [item for item in finalizers if item not in {FOREGROUND, ORPHAN}]
    if policy == "Foreground":
        return [*kept, FOREGROUND]
    if policy == "Orphan":
        return [*kept, ORPHAN]
    return kept


def _grace(resource: Resource, stored: Stored, options: DeleteOptions) -> int:
    """The grace period in seconds; only pods on a node have one."""
    if resource is not PODS or not stored.obj.get("spec", {}).get("nodeName"):
        return 0
    if stored.obj.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return 0
    if options.grace_seconds is not None:
        return options.grace_seconds
    return int(stored.obj["spec"].get("terminationGracePeriodSeconds", 30))


def _check_preconditions(resource: Resource, stored: Stored, options: DeleteOptions) -> None:
    metadata = stored.obj["metadata"]
    if options.uid and options.uid != metadata["uid"]:
        raise conflict(
            resource.group,
            resource.kind,
            metadata["name"],
            f"the UID in the precondition ({options.uid}) does not match the UID in record ({metadata['uid']}). The "
            "object might have been deleted and then recreated",
        )
    if options.resource_version and options.resource_version != str(stored.rv):
        raise conflict(
            resource.group,
            resource.kind,
            metadata["name"],
            f"the ResourceVersion in the precondition ({options.resource_version}) does not match the "
            f"ResourceVersion in record ({stored.rv}). The object might have been modified",
        )
