"""DaemonSets: one pod for each node that the template may run on, bound there by the scheduler.

That is what brings an image near before a VM needs it: the pod's images stay in the node's cache while it runs.
"""

import hashlib
import uuid
from typing import NamedTuple

import orjson

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import holds
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import DAEMON_SETS, NODES, PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.apiserver.work import WorkQueue
from app.devcluster.durations import Durations, Jitter
from app.devcluster.kubevirt.snapshot_conditions import owned_by
from app.devcluster.scheduling.node_terms import matches_node, named_nodes, untolerated
from app.devcluster.scheduling.pod_requests import qos_class

_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
"""What the DaemonSet controller adds to every pod's tolerations (Kubernetes 1.36)."""

_REVISION = "controller-revision-hash"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class _Verdict(NamedTuple):
    runs: bool
    """A pod belongs on the node."""
    stays: bool
    """One that is there already may stay."""


class DaemonSetController:
    def __init__(self, api: Api, durations: Durations, jitter: Jitter) -> None:
        self._api = api
        self._jitter = jitter
        self._queue: WorkQueue[Key] = WorkQueue("daemonset", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(DAEMON_SETS):
            self._queue.add(_key(stored))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is DAEMON_SETS:
            self._queue.add(change.key)
        elif change.resource is NODES:
            self.resume()
        elif change.resource is PODS:
            for reference in change.last.obj["metadata"].get("ownerReferences", ()):
                if reference["kind"] == DAEMON_SETS.kind:
                    self._queue.add((change.key[0], reference["name"]))

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(DAEMON_SETS, *key)
        if stored is None or "deletionTimestamp" in stored.obj["metadata"]:
            return
        daemon_set = stored.obj
        pods = self._pods(daemon_set)
        verdicts = {node.obj["metadata"]["name"]: _judge(daemon_set, node.obj) for node in self._api.store.rows(NODES)}
        for name, pod in list(pods.items()):
            verdict = verdicts.get(name)
            if verdict is None or not verdict.stays:
                self._remove(pod)
                del pods[name]
        self._replace_outdated(daemon_set, pods)
        for name, verdict in verdicts.items():
            if verdict.runs and name not in pods:
                pods[name] = self._api.store.put(PODS, self._pod(daemon_set, name))
        status = _status(daemon_set, pods, verdicts)
        self._api.modify(DAEMON_SETS, stored, lambda obj: {**obj, "status": status})

    def _replace_outdated(self, daemon_set: Json, pods: dict[str, Stored]) -> None:
        """Pods of another template go: at once where they are not ready, else one at a time while all others are."""
        strategy = (daemon_set["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate")
        outdated = [name for name, pod in pods.items() if not _is_current(daemon_set, pod.obj)]
        if strategy != "RollingUpdate" or not outdated:
            return
        unready = [name for name in outdated if not _is_ready(pods[name].obj)]
        if not unready and all(_is_ready(pod.obj) for pod in pods.values()):
            unready = outdated[:1]
        for name in unready:
            self._remove(pods.pop(name))

    def _pods(self, daemon_set: Json) -> dict[str, Stored]:
        """Its pods by the node they are on, or meant for."""
        found: dict[str, Stored] = {}
        for resource_id, key in self._api.store.dependents(daemon_set["metadata"]["uid"]):
            pod = self._api.store.get(PODS, *key) if resource_id == PODS.id else None
            if pod is not None and "deletionTimestamp" not in pod.obj["metadata"]:
                node = pod.obj["spec"].get("nodeName") or min(named_nodes(pod.obj) or {""})
                if node in found:
                    self._remove(pod)
                else:
                    found[node] = pod
        return found

    def _pod(self, daemon_set: Json, node: str) -> Json:
        metadata, template = daemon_set["metadata"], daemon_set["spec"]["template"]
        given = template.get("metadata") or {}
        pod_metadata: Json = {
            "creationTimestamp": stamp(self._api.clock.now()),
            "generateName": f"{metadata['name']}-",
            "labels": {**(given.get("labels") or {}), _REVISION: _revision(daemon_set)},
            "name": f"{metadata['name']}-{self._jitter.token()}",
            "namespace": metadata["namespace"],
            "ownerReferences": owned_by(daemon_set),
            "uid": str(uuid.uuid4()),
        }
        if given.get("annotations"):
            pod_metadata["annotations"] = given["annotations"]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": pod_metadata,
            "spec": _pod_spec(daemon_set, node),
            "status": {"phase": "Pending", "qosClass": qos_class(template["spec"])},
        }

    def _remove(self, pod: Stored) -> None:
        metadata = pod.obj["metadata"]
        delete(self._api, PODS, metadata["namespace"], metadata["name"], DeleteOptions(uid=metadata["uid"]))


def _judge(daemon_set: Json, node: Json) -> _Verdict:
    pod: Json = {"spec": _pod_spec(daemon_set, node["metadata"]["name"])}
    if not matches_node(pod, node):
        return _Verdict(runs=False, stays=False)
    taints = untolerated(pod, node)
    expelled = any(taint["effect"] == "NoExecute" for taint in taints)
    return _Verdict(runs=not taints, stays=not expelled)


def _pod_spec(daemon_set: Json, node: str) -> Json:
    spec = daemon_set["spec"]["template"]["spec"]
    tolerations = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in _TOLERATED]
    return {
        **spec,
        "affinity": _bound_to(spec.get("affinity") or {}, node),
        "tolerations": [*(spec.get("tolerations") or ()), *tolerations],
    }


def _bound_to(affinity: Json, node: str) -> Json:
    """The template's affinity, which every alternative narrows to that node by name."""
    named = {"key": "metadata.name", "operator": "In", "values": [node]}
    nodes = affinity.get("nodeAffinity") or {}
    terms = (nodes.get(_REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    narrowed = [{**term, "matchFields": [*(term.get("matchFields") or ()), named]} for term in terms]
    return {**affinity, "nodeAffinity": {**nodes, _REQUIRED: {"nodeSelectorTerms": narrowed}}}


def _status(daemon_set: Json, pods: dict[str, Stored], verdicts: dict[str, _Verdict]) -> Json:
    wanted = [name for name, verdict in verdicts.items() if verdict.runs]
    scheduled = [pods[name].obj for name in wanted if name in pods]
    ready = sum(1 for pod in scheduled if _is_ready(pod))
    return {
        "currentNumberScheduled": len(scheduled),
        "desiredNumberScheduled": len(wanted),
        "numberAvailable": ready,
        "numberMisscheduled": sum(1 for name in pods if not verdicts[name].runs),
        "numberReady": ready,
        "numberUnavailable": len(wanted) - ready,
        "observedGeneration": daemon_set["metadata"].get("generation", 1),
        "updatedNumberScheduled": sum(1 for pod in scheduled if _is_current(daemon_set, pod)),
    }


def _is_ready(pod: Json) -> bool:
    return holds(pod["status"].get("conditions"), "Ready")


def _is_current(daemon_set: Json, pod: Json) -> bool:
    return bool((pod["metadata"].get("labels") or {}).get(_REVISION) == _revision(daemon_set))


def _revision(daemon_set: Json) -> str:
    """Names the template by its content."""
    text = orjson.dumps(daemon_set["spec"]["template"], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:10]


def _key(stored: Stored) -> Key:
    metadata = stored.obj["metadata"]
    return (metadata["namespace"], metadata["name"])
