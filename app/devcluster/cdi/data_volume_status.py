"""A DataVolume's status as CDI v1.66.0 writes it: phase, progress, restarts, and the conditions Bound, Running, Ready."""

from dataclasses import dataclass

from app.devcluster.apiserver.objects import status_of
from app.devcluster.apiserver.status import Json
from app.devcluster.cdi.conditions import cdi_condition
from app.devcluster.storage.volumes import is_bound

PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class Told:
    """The facts of a new status. `reason` and `message`: why an importer stopped. `claim`: why there is no claim (reason and
    message). None for `progress` or `restarts` keeps the old value.
    """

    phase: str
    progress: str | None = None
    running: bool = False
    reason: str = ""
    message: str = ""
    claim: tuple[str, str] | None = None
    restarts: int | None = None


def restarts_of(volume: Json) -> int:
    """How often the importer was restarted."""
    return int(status_of(volume).get("restartCount", 0))


def percent_of(volume: Json) -> float:
    """The progress of the transfer; 0 where it is not known."""
    progress = status_of(volume).get("progress") or "N/A"
    return 0.0 if progress == "N/A" else float(progress.removesuffix("%"))


def build_status(volume: Json, claim: Json | None, told: Told, moment: str) -> Json:
    old = status_of(volume)
    name = volume["metadata"]["name"]
    known = old.get("conditions")
    bound = _bound(name, claim, told)
    absent = ("False", told.claim[0], told.claim[1]) if told.claim else None
    conditions = {
        "Bound": bound,
        "Running": ("False", "", "") if absent else _running(told),
        "Ready": absent or ("True" if told.phase == "Succeeded" else "False", "", ""),
    }
    status: Json = {
        "conditions": [cdi_condition(known, kind, *value, moment) for kind, value in conditions.items()],
        "progress": told.progress or old.get("progress") or "N/A",
    }
    if claim is not None:
        status["claimName"] = name
    if told.phase:
        status["phase"] = told.phase
    restarts = restarts_of(volume) if told.restarts is None else told.restarts
    if restarts:
        status["restartCount"] = restarts
    return status


def _bound(name: str, claim: Json | None, told: Told) -> tuple[str, str, str]:
    if told.claim is not None:
        return ("False", *told.claim)
    if claim is None:
        return "False", "NotFound", "No PVC found"
    return ("True", "Bound", "") if is_bound(claim) else ("False", "Pending", f"PVC {name} Pending")


def _running(told: Told) -> tuple[str, str, str]:
    if told.running:
        return "True", "Pod is running", ""
    return "False", told.reason or "Completed", told.message
