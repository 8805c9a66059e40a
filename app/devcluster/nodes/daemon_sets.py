"""DaemonSets: one pod for each node on which the template may run; the scheduler binds it there.

This is how images are preloaded for VMs: while the pod runs, its images stay in the cache of the node.
"""

import hashlib
from typing import NamedTuple

import orjson
from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import holds
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import annotations_of, labels_of, new_object, owned_by
from app.devcluster.apiserver.pod_resources import qos_class
from app.devcluster.apiserver.registry import DAEMON_SETS, NODES, PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.durations import Durations, Jitter
from app.devcluster.scheduling.node_terms import matches_node, named_nodes, untolerated

_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
"""The tolerations that the DaemonSet controller adds to every pod (Kubernetes 1.36)."""

_REVISION = "controller-revision-hash"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class _Verdict(NamedTuple):
    runs: bool
    """The node should have a pod."""
    stays: bool
    """A pod that is there already may stay."""


class DaemonSetController(KindController):
    resource = DAEMON_SETS

    def __init__(self, api: Api, durations: Durations, jitter: Jitter) -> None:
        super().__init__(api, durations.reaction)
        self._jitter = jitter

    @override
    def _react(self, change: Change) -> None:
        if change.resource is NODES:
            self.resume()
        elif change.resource is PODS:
            self._queue_owners(change)

    @override
    def _reconcile(self, stored: Stored) -> None:
        if stored.deleting:
            return
        daemon_set = stored.obj
        pods = self._pods(daemon_set)
        verdicts = {node.obj["metadata"]["name"]: _judge(daemon_set, node.obj) for node in self._store.rows(NODES)}
        for name, pod in list(pods.items()):
            verdict = verdicts.get(name)
            if verdict is None or not verdict.stays:
                self._delete(PODS, pod)
                del pods[name]
        self._replace_outdated(daemon_set, pods)
        for name, verdict in verdicts.items():
            if verdict.runs and name not in pods:
                pods[name] = self._store.put(PODS, self._pod(daemon_set, name))
        self._modify_status(stored, _status(daemon_set, pods, verdicts))

    def _replace_outdated(self, daemon_set: Json, pods: dict[str, Stored]) -> None:
        """Delete pods of an old template: at once where they are not ready, else one at a time while all others are ready."""
        strategy = (daemon_set["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate")
        outdated = [name for name, pod in pods.items() if not _is_current(daemon_set, pod.obj)]
        if strategy != "RollingUpdate" or not outdated:
            return
        unready = [name for name in outdated if not _is_ready(pods[name].obj)]
        if not unready and all(_is_ready(pod.obj) for pod in pods.values()):
            unready = outdated[:1]
        for name in unready:
            self._delete(PODS, pods.pop(name))

    def _pods(self, daemon_set: Json) -> dict[str, Stored]:
        """Its pods by the node on which they are, or for which they are meant."""
        found: dict[str, Stored] = {}
        for resource_id, key in self._store.dependents(daemon_set["metadata"]["uid"]):
            pod = self._store.get(PODS, *key) if resource_id == PODS.id else None
            if pod is not None and not pod.deleting:
                node = pod.obj["spec"].get("nodeName") or min(named_nodes(pod.obj) or {""})
                if node in found:
                    self._delete(PODS, pod)
                else:
                    found[node] = pod
        return found

    def _pod(self, daemon_set: Json, node: str) -> Json:
        metadata, template = daemon_set["metadata"], daemon_set["spec"]["template"]
        more: Json = {"annotations": annotations_of(template)} if annotations_of(template) else {}
        pod = new_object(
            PODS,
            f"{metadata['name']}-{self._jitter.token()}",
            metadata["namespace"],
            self._api.clock.now(),
            generateName=f"{metadata['name']}-",
            labels={**labels_of(template), _REVISION: _revision(daemon_set)},
            ownerReferences=owned_by(daemon_set),
            **more,
        )
        status = {"phase": "Pending", "qosClass": qos_class(template["spec"])}
        return {**pod, "spec": _pod_spec(daemon_set, node), "status": status}


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
    """The affinity of the template, with every alternative limited to that node by name."""
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
    return labels_of(pod).get(_REVISION) == _revision(daemon_set)


def _revision(daemon_set: Json) -> str:
    """A hash of the template."""
    text = orjson.dumps(daemon_set["spec"]["template"], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:10]
