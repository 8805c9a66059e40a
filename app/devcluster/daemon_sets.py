"""DaemonSets and plain pods: one pod for each node, and a kubelet that pulls their images and starts them.

That is what brings an image near before a VM needs it: the pod's images stay in the node's cache.
"""

import uuid
from functools import partial

from app.devcluster.api import Api
from app.devcluster.conditions import make
from app.devcluster.durations import Durations, Jitter
from app.devcluster.image_cache import ImageCache
from app.devcluster.objects import Change, Key, Stored
from app.devcluster.registry import DAEMON_SETS, NODES, PODS
from app.devcluster.snapshot_conditions import owned_by
from app.devcluster.status import Json
from app.devcluster.times import stamp
from app.devcluster.work import Timers, WorkQueue

_Item = tuple[str, Key]


class DaemonSetController:
    def __init__(self, api: Api, durations: Durations, jitter: Jitter, images: ImageCache) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._images = images
        self._timers: Timers[tuple[str, str]] = Timers(api.clock)
        self._queue: WorkQueue[_Item] = WorkQueue("daemonset", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for resource in (DAEMON_SETS, PODS):
            for stored in self._api.store.each(resource):
                self._queue.add((resource.id, _key(stored)))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is DAEMON_SETS:
            self._queue.add((DAEMON_SETS.id, change.key))
        elif change.resource is NODES:
            for stored in self._api.store.each(DAEMON_SETS):
                self._queue.add((DAEMON_SETS.id, _key(stored)))
        elif change.resource is PODS and not _holds_guest(change.last.obj):
            self._queue.add((PODS.id, change.key))
            for reference in change.last.obj["metadata"].get("ownerReferences", ()):
                if reference["kind"] == DAEMON_SETS.kind:
                    self._queue.add((DAEMON_SETS.id, (change.key[0], reference["name"])))

    def _visit(self, item: _Item) -> None:
        resource_id, key = item
        if resource_id == PODS.id:
            pod = self._api.store.get(PODS, *key)
            if pod is not None and not _holds_guest(pod.obj):
                self._run(key, pod)
            return
        stored = self._api.store.get(DAEMON_SETS, *key)
        if stored is not None and "deletionTimestamp" not in stored.obj["metadata"]:
            self._spread(stored)

    def _spread(self, stored: Stored) -> None:
        """A pod on every node that the template's selector takes; dead nodes keep theirs."""
        pods = {pod.obj["spec"].get("nodeName"): pod for pod in self._pods(stored.obj)}
        selector = stored.obj["spec"]["template"]["spec"].get("nodeSelector") or {}
        wanted = [node.obj for node in self._api.store.rows(NODES) if _takes(node.obj, selector)]
        for node in wanted:
            if node["metadata"]["name"] not in pods:
                self._api.store.put(PODS, self._pod(stored.obj, node["metadata"]["name"]))
        pods = {pod.obj["spec"].get("nodeName"): pod for pod in self._pods(stored.obj)}
        ready = sum(1 for pod in pods.values() if pod.obj["status"]["phase"] == "Running")
        status = {
            "currentNumberScheduled": len(pods),
            "desiredNumberScheduled": len(wanted),
            "numberAvailable": ready,
            "numberMisscheduled": 0,
            "numberReady": ready,
            "numberUnavailable": len(wanted) - ready,
            "observedGeneration": stored.obj["metadata"].get("generation", 1),
            "updatedNumberScheduled": len(pods),
        }
        self._api.modify(DAEMON_SETS, stored, lambda obj: {**obj, "status": status})

    def _pods(self, daemon_set: Json) -> list[Stored]:
        found = []
        for resource_id, key in self._api.store.dependents(daemon_set["metadata"]["uid"]):
            pod = self._api.store.get(PODS, *key) if resource_id == PODS.id else None
            if pod is not None and "deletionTimestamp" not in pod.obj["metadata"]:
                found.append(pod)
        return found

    def _pod(self, daemon_set: Json, node: str) -> Json:
        metadata, template = daemon_set["metadata"], daemon_set["spec"]["template"]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **{
                    key: value
                    for key, value in (template.get("metadata") or {}).items()
                    if key in {"labels", "annotations"}
                },
                "creationTimestamp": stamp(self._api.clock.now()),
                "generateName": f"{metadata['name']}-",
                "name": f"{metadata['name']}-{self._jitter.token()}",
                "namespace": metadata["namespace"],
                "ownerReferences": owned_by(daemon_set),
                "uid": str(uuid.uuid4()),
            },
            "spec": {**template["spec"], "nodeName": node},
            "status": {"phase": "Pending"},
        }

    def _run(self, key: Key, pod: Stored) -> None:
        uid, node = pod.obj["metadata"]["uid"], pod.obj["spec"].get("nodeName", "")
        if not node:
            return
        if "deletionTimestamp" in pod.obj["metadata"]:
            self._timers.ensure((uid, "end"), "end", self._durations.graceful_stop, lambda: self._remove(uid))
            return
        if pod.obj["status"].get("phase", "Pending") != "Pending":
            return
        missing = self._images.missing(node, pod.obj)
        for image in missing:
            delay = self._jitter.spread(self._durations.image_pull)
            self._timers.ensure((node, image), "pull", delay, partial(self._pulled, node, image))
        if not missing:
            delay = self._jitter.spread(self._durations.launch)
            self._timers.ensure((uid, "launch"), "launch", delay, lambda: self._launch(key))

    def _pulled(self, node: str, image: str) -> None:
        self._images.add(node, image)
        for pod in self._api.store.each(PODS):
            if pod.obj["spec"].get("nodeName") == node and not _holds_guest(pod.obj):
                self._queue.add((PODS.id, _key(pod)))

    def _launch(self, key: Key) -> None:
        pod = self._api.store.get(PODS, *key)
        if pod is None or "deletionTimestamp" in pod.obj["metadata"]:
            return
        now = self._api.clock.now()
        containers = [
            {
                "name": item["name"],
                "image": item["image"],
                "ready": True,
                "state": {"running": {"startedAt": stamp(now)}},
            }
            for item in pod.obj["spec"]["containers"]
        ]
        status = {
            **pod.obj["status"],
            "phase": "Running",
            "conditions": [make("Ready", True, now)],
            "containerStatuses": containers,
            "startTime": stamp(now),
        }
        self._api.modify(PODS, pod, lambda obj: {**obj, "status": status})

    def _remove(self, uid: str) -> None:
        found = self._api.store.by_uid(uid)
        if found is not None:
            metadata = found[1].obj["metadata"]
            self._api.store.remove(PODS, metadata["namespace"], metadata["name"])


def _holds_guest(pod: Json) -> bool:
    """Launcher pods are the node agent's."""
    return (pod["metadata"].get("labels") or {}).get("kubevirt.io") == "virt-launcher"


def _takes(node: Json, selector: dict[str, str]) -> bool:
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def _key(stored: Stored) -> Key:
    metadata = stored.obj["metadata"]
    return (metadata["namespace"], metadata["name"])
