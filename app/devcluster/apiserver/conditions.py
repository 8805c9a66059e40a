"""Condition lists of pods and of KubeVirt's objects. Each function gives a new list."""

from datetime import datetime

from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp


def find(conditions: list[Json] | None, kind: str) -> Json | None:
    return next((item for item in conditions or () if item["type"] == kind), None)


def holds(conditions: list[Json] | None, kind: str) -> bool:
    found = find(conditions, kind)
    return found is not None and found["status"] == "True"


def make(
    kind: str,
    status: bool,  # noqa: FBT001  # the condition's own value
    now: datetime,
    *,
    reason: str = "",
    message: str = "",
    probed: bool = False,
) -> Json:
    """A condition. `probed` fills lastProbeTime: controllers set it on their own conditions and leave it null on copies."""
    condition: Json = {"lastProbeTime": stamp(now) if probed else None, "lastTransitionTime": stamp(now)}
    if message:
        condition["message"] = message
    if reason:
        condition["reason"] = reason
    return {**condition, "status": "True" if status else "False", "type": kind}


def put(conditions: list[Json] | None, condition: Json) -> list[Json]:
    """Replace the condition of that type, or add it. An equal one (status, reason, message) stays, with its times."""
    result = list(conditions or ())
    for number, old in enumerate(result):
        if old["type"] == condition["type"]:
            if not _same(old, condition):
                result[number] = condition
            return result
    result.append(condition)
    return result


def drop(conditions: list[Json] | None, *kinds: str) -> list[Json]:
    return [item for item in conditions or () if item["type"] not in kinds]


def _same(old: Json, new: Json) -> bool:
    return all(old.get(key) == new.get(key) for key in ("status", "reason", "message"))
