"""The status of a pod from its acceptance by the kubelet on. Each function gives a new pod."""

from datetime import datetime
from typing import NamedTuple

from app.devcluster.apiserver.conditions import holds, make, put
from app.devcluster.apiserver.pod_images import pinned_name
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp


class Refusal(NamedTuple):
    """Why an image is not pulled, as in the waiting state of a container."""

    image: str
    reason: str
    message: str


_STATUSES = ("initContainerStatuses", "containerStatuses")


def accepted(pod: Json, now: datetime) -> Json:
    """The kubelet has accepted the pod; its images may have to be pulled first."""
    spec = pod["spec"]
    waiting = "PodInitializing" if spec.get("initContainers") else "ContainerCreating"
    main = [_waiting(item, waiting) for item in spec["containers"]]
    before = [_waiting(item, "PodInitializing") for item in spec.get("initContainers") or ()]
    status = {**pod["status"], "startTime": stamp(now), "containerStatuses": main}
    if before:
        status["initContainerStatuses"] = before
    conditions = put(status.get("conditions"), make("PodScheduled", True, now))
    conditions = put(conditions, make("PodReadyToStartContainers", False, now))
    if before:
        names = " ".join(item["name"] for item in before)
        message = f"containers with incomplete status: [{names}]"
        conditions = put(
            conditions, make("Initialized", False, now, reason="ContainersNotInitialized", message=message)
        )
    else:
        conditions = put(conditions, make("Initialized", True, now))
    status["conditions"] = _with_unready(pod, conditions, now)
    return {**pod, "status": status}


def initialized(pod: Json, now: datetime) -> Json:
    """The images are pulled and the init containers have completed; restartable ones keep running."""
    pod = pod if "startTime" in pod["status"] else accepted(pod, now)
    status = {**pod["status"]}
    before = [_initialized(item, now) for item in pod["spec"].get("initContainers") or ()]
    if before:
        status["initContainerStatuses"] = before
    conditions = put(status.get("conditions"), make("PodReadyToStartContainers", True, now))
    status["conditions"] = put(conditions, make("Initialized", True, now))
    return {**pod, "status": status}


def running(pod: Json, address: str, now: datetime) -> Json:
    """All containers run. The caller sets whether they are ready."""
    pod = initialized(pod, now) if not is_initialized(pod) else pod
    containers = [
        {**_head(item), "ready": True, "started": True, "state": {"running": {"startedAt": stamp(now)}}}
        for item in pod["spec"]["containers"]
    ]
    status = {
        **pod["status"],
        "phase": "Running",
        "containerStatuses": containers,
        "podIP": address,
        "podIPs": [{"ip": address}],
    }
    return {**pod, "status": status}


def pull_failed(pod: Json, refusal: Refusal, now: datetime) -> Json:
    """The containers of that image wait, with the reason."""
    pod = pod if "startTime" in pod["status"] else accepted(pod, now)
    waits = {"reason": refusal.reason, "message": refusal.message}
    status = {**pod["status"]}
    for kind in _STATUSES:
        if kind in status:
            status[kind] = [
                {**item, "state": {"waiting": waits}} if item["image"] == refusal.image else item
                for item in status[kind]
            ]
    return {**pod, "status": status}


def waiting_reason(pod: Json, image: str) -> str:
    """Why the first container of that image waits; empty where it does not."""
    for kind in _STATUSES:
        for item in pod["status"].get(kind, ()):
            if item["image"] == image:
                return str(item["state"].get("waiting", {}).get("reason", ""))
    return ""


def is_initialized(pod: Json) -> bool:
    return "startTime" in pod["status"] and holds(pod["status"].get("conditions"), "PodReadyToStartContainers")


def unready_message(pod: Json) -> str:
    names = " ".join(item["name"] for item in pod["spec"]["containers"])
    return f"containers with unready status: [{names}]"


def _with_unready(pod: Json, conditions: list[Json], now: datetime) -> list[Json]:
    for kind in ("Ready", "ContainersReady"):
        unready = make(kind, False, now, reason="ContainersNotReady", message=unready_message(pod))
        conditions = put(conditions, unready)
    return conditions


def _head(container: Json) -> Json:
    image = container["image"]
    return {"name": container["name"], "image": image, "imageID": pinned_name(image), "restartCount": 0}


def _waiting(container: Json, reason: str) -> Json:
    head = {**_head(container), "imageID": ""}
    return {**head, "ready": False, "started": False, "state": {"waiting": {"reason": reason}}}


def _initialized(container: Json, now: datetime) -> Json:
    if container.get("restartPolicy") == "Always":
        return {**_head(container), "ready": True, "started": True, "state": {"running": {"startedAt": stamp(now)}}}
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": stamp(now), "finishedAt": stamp(now)}
    return {**_head(container), "ready": True, "started": False, "state": {"terminated": ended}}
