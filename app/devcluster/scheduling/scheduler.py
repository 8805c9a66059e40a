"""The scheduler: binds each pod to a node that fits, or says why none does."""

from collections.abc import Callable

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import find, make
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import Key, labels_of, phase_of, with_status
from app.devcluster.apiserver.pod_resources import pod_requests
from app.devcluster.apiserver.registry import CLAIMS, NAMESPACES, NODES, PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.durations import Durations, Jitter
from app.devcluster.scheduling.ledger import Ledger
from app.devcluster.scheduling.node_fit import Refusal, explain, refuse_load, refuse_node
from app.devcluster.scheduling.node_scores import choose_node
from app.devcluster.scheduling.node_terms import named_nodes
from app.devcluster.scheduling.pod_terms import PodTerms, has_pod_terms
from app.devcluster.scheduling.spreading import Spread, rules_of
from app.devcluster.storage.volumes import scheduling_hold

_NAME = "default-scheduler"


class Scheduler(KindController):
    """Binds a pod `durations.schedule` after its creation; one that fits nowhere is tried again when something changes."""

    resource = PODS

    def __init__(self, api: Api, ledger: Ledger, durations: Durations, jitter: Jitter) -> None:
        super().__init__(api)
        self._ledger = ledger
        self._durations = durations
        self._jitter = jitter
        self._waiting: dict[Key, None] = {}

    @override
    def resume(self) -> None:
        for stored in self._store.each(PODS):
            self._consider(stored)

    @override
    def _notice(self, change: Change) -> None:
        if change.resource is NODES or change.resource is CLAIMS:
            self._retry()
        elif change.resource is PODS:
            if change.new is None:
                self._forget(change.last.uid)
                self._waiting.pop(change.key, None)
                self._retry()
            elif change.old is None:
                self._consider(change.new)
            elif _has_ended(change.new.obj) and not _has_ended(change.old.obj):
                self._retry()
            elif _looks_new(change.old.obj, change.new.obj):
                self._retry(only=_looks_at_others)

    def _consider(self, stored: Stored) -> None:
        spec = stored.obj["spec"]
        if spec.get("nodeName") or stored.deleting or spec.get("schedulerName", _NAME) != _NAME:
            return
        delay = self._jitter.spread(self._durations.schedule)
        self._timers.ensure(stored.uid, "schedule", delay, lambda: self._queue.add(stored.key))

    def _retry(self, only: Callable[[Json], bool] | None = None) -> None:
        for key in self._waiting:
            stored = self._store.get(PODS, *key) if only else None
            if only is None or (stored is not None and only(stored.obj)):
                self._queue.add(key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        self._waiting.pop(stored.key, None)
        if stored.obj["spec"].get("nodeName") or stored.deleting:
            return
        hold = scheduling_hold(self._store, stored.obj)
        if hold is None and named_nodes(stored.obj) == set():
            hold = "pod affinity terms conflict"
        if hold == "":
            self._waiting[stored.key] = None
            return
        node, refusal = self._choose(stored.obj) if hold is None else (None, self._held(hold))
        if node is None:
            self._waiting[stored.key] = None
            self._api.modify(PODS, stored, lambda pod: self._unschedulable(pod, refusal))
        else:
            self._api.modify(PODS, stored, lambda pod: self._bound(pod, node))

    def _choose(self, pod: Json) -> tuple[str | None, str]:
        asked = pod_requests(pod)
        nodes = [stored.obj for stored in self._store.rows(NODES)]
        pods_on = self._ledger.pods_on
        relevant = pods_on if has_pod_terms(pod) else self._ledger.pods_with_terms
        placed = ((other, node) for node in nodes for other in relevant(node["metadata"]["name"]))
        terms = PodTerms(pod, placed, self._namespace_labels)
        strict = Spread(pod, "DoNotSchedule", nodes, pods_on)
        fitting: list[Json] = []
        refusals: list[Refusal] = []
        for node in nodes:
            refusal = (
                refuse_node(pod, node)
                or refuse_load(node, asked, self._ledger.used(node["metadata"]["name"]))
                or _refusal(strict.refuse(node) or terms.refuse(node))
            )
            if refusal is None:
                fitting.append(node)
            else:
                refusals.append(refusal)
        if not fitting:
            return None, explain(len(nodes), refusals)
        loose = Spread(pod, "ScheduleAnyway", nodes, pods_on)
        best = choose_node(pod, fitting, asked, self._ledger.used, terms, loose, nodes)
        return str(best["metadata"]["name"]), ""

    def _namespace_labels(self, name: str) -> dict[str, str]:
        stored = self._store.get(NAMESPACES, "", name)
        return labels_of(stored.obj) if stored else {}

    def _held(self, why: str) -> str:
        nodes = sum(1 for _ in self._store.each(NODES))
        return (
            f"0/{nodes} nodes are available: {why}. no new claims to deallocate, preemption: 0/{nodes} nodes are "
            f"available: {nodes} Preemption is not helpful for scheduling."
        )

    def _unschedulable(self, pod: Json, refusal: str) -> Json:
        condition = find(pod["status"].get("conditions"), "PodScheduled")
        if condition is not None and condition.get("message") == refusal:
            return pod
        failed = {
            "lastProbeTime": None,
            "lastTransitionTime": condition["lastTransitionTime"] if condition is not None else self._moment(),
            "message": refusal,
            "reason": "Unschedulable",
            "status": "False",
            "type": "PodScheduled",
        }
        return with_status(pod, conditions=[failed])

    def _bound(self, pod: Json, node: str) -> Json:
        scheduled = make("PodScheduled", True, self._api.clock.now())
        return {**with_status(pod, conditions=[scheduled]), "spec": {**pod["spec"], "nodeName": node}}


def _refusal(found: tuple[str, bool] | None) -> Refusal | None:
    return Refusal((found[0],), resolvable=found[1]) if found else None


def _has_ended(pod: Json) -> bool:
    return phase_of(pod) in {"Succeeded", "Failed"}


def _looks_new(old: Json, new: Json) -> bool:
    """Whether the pod changed for the rules of other pods: it is on a node now, has other labels, or is being deleted."""
    return any(
        old[part].get(name) != new[part].get(name)
        for part, name in (("spec", "nodeName"), ("metadata", "labels"), ("metadata", "deletionTimestamp"))
    )


def _looks_at_others(pod: Json) -> bool:
    return has_pod_terms(pod) or bool(rules_of(pod))
