"""The readiness of a launcher pod: its containers', and the gate that a paused guest closes. Each function gives a new pod."""

from datetime import datetime

from app.devcluster.apiserver.conditions import find, holds, make, put
from app.devcluster.apiserver.objects import with_status
from app.devcluster.apiserver.status import Json
from app.devcluster.nodes.pod_status import unready_message

_GATE = "kubevirt.io/virtual-machine-unpaused"
_GATE_CLOSED = f'corresponding condition of pod readiness gate "{_GATE}" is not "True".'


def with_containers(pod: Json, now: datetime, *, ready: bool) -> Json:
    marker = make("ContainersReady", ready, now)
    if not ready:
        marker = make("ContainersReady", False, now, reason="ContainersNotReady", message=unready_message(pod))
    conditions = put(pod["status"].get("conditions"), marker)
    return with_gate(with_status(pod, conditions=conditions), now, paused=_is_closed(pod))


def with_gate(pod: Json, now: datetime, *, paused: bool) -> Json:
    conditions = pod["status"].get("conditions") or []
    conditions = put(conditions, make(_GATE, not paused, now))
    if not holds(conditions, "ContainersReady"):
        ready = make("Ready", False, now, reason="ContainersNotReady", message=unready_message(pod))
    elif paused:
        ready = make("Ready", False, now, reason="ReadinessGatesNotReady", message=_GATE_CLOSED)
    else:
        ready = make("Ready", True, now)
    conditions = put(conditions, ready)
    return pod if conditions == pod["status"].get("conditions") else with_status(pod, conditions=conditions)


def _is_closed(pod: Json) -> bool:
    gate = find(pod["status"].get("conditions"), _GATE)
    return gate is not None and gate["status"] == "False"
