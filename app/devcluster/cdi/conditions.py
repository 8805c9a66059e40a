"""Conditions of CDI's objects."""

from app.devcluster.apiserver.status import Json


def cdi_condition(old: list[Json] | None, kind: str, status: str, reason: str, message: str, moment: str) -> Json:
    """The new condition. An equal one keeps its times; only another status changes lastTransitionTime."""
    before = next((item for item in old or () if item["type"] == kind), {})
    if (before.get("status"), before.get("reason"), before.get("message")) == (status, reason, message):
        return before
    since = before["lastTransitionTime"] if before.get("status") == status else moment
    return {
        "lastHeartbeatTime": moment,
        "lastTransitionTime": since,
        "message": message,
        "reason": reason,
        "status": status,
        "type": kind,
    }
