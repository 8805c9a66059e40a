"""Binds pods to nodes that have room, and says why where none has."""

from collections import Counter

from app.devcluster.api import Api
from app.devcluster.conditions import find
from app.devcluster.durations import Durations, Jitter
from app.devcluster.nodes import Ledger
from app.devcluster.objects import Change, Key, Stored
from app.devcluster.pod_requests import allocatable, pod_requests
from app.devcluster.registry import CLAIMS, NODES, PODS
from app.devcluster.status import Json
from app.devcluster.times import stamp
from app.devcluster.volumes import scheduling_hold
from app.devcluster.work import Timers, WorkQueue

_MISMATCH = "node(s) didn't match Pod's node affinity/selector"


class Scheduler:
    """A pod waits `durations.schedule`, then is bound; one that fits nowhere is tried again when room may have come."""

    def __init__(self, api: Api, ledger: Ledger, durations: Durations, jitter: Jitter) -> None:
        self._api = api
        self._ledger = ledger
        self._durations = durations
        self._jitter = jitter
        self._timers: Timers[str] = Timers(api.clock)
        self._waiting: dict[Key, None] = {}
        self._queue: WorkQueue[Key] = WorkQueue("scheduler", self._visit, api.clock)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(PODS):
            self._consider(stored)

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is NODES or change.resource is CLAIMS:
            self._retry()
        elif change.resource is PODS:
            if change.new is None:
                self._timers.cancel(change.last.obj["metadata"]["uid"])
                self._waiting.pop(change.key, None)
                self._retry()
            elif change.old is None:
                self._consider(change.new)

    def _consider(self, stored: Stored) -> None:
        pod = stored.obj
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        delay = self._jitter.spread(self._durations.schedule)
        self._timers.ensure(pod["metadata"]["uid"], "schedule", delay, lambda: self._queue.add(key))

    def _retry(self) -> None:
        for key in self._waiting:
            self._queue.add(key)

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(PODS, *key)
        self._waiting.pop(key, None)
        if stored is None or stored.obj["spec"].get("nodeName") or "deletionTimestamp" in stored.obj["metadata"]:
            return
        hold = scheduling_hold(self._api.store, stored.obj)
        if hold == "":
            self._waiting[key] = None
            return
        node, refusal = self._choose(stored.obj) if hold is None else (None, self._held(hold))
        if node is None:
            self._waiting[key] = None
            self._api.modify(PODS, stored, lambda pod: self._unschedulable(pod, refusal))
        else:
            self._api.modify(PODS, stored, lambda pod: self._bound(pod, node))

    def _choose(self, pod: Json) -> tuple[str | None, str]:
        asked = pod_requests(pod)
        nodes = [stored.obj for stored in self._api.store.rows(NODES)]
        reasons: Counter[str] = Counter()
        best: tuple[float, str] | None = None
        for node in nodes:
            lacking = _mismatches(node, pod) or self._lacking(node, asked)
            if lacking:
                reasons.update(lacking)
                continue
            name = node["metadata"]["name"]
            used = self._ledger.used(name)
            load = max(used.get(kind, 0) / max(1, allocatable(node, kind)) for kind in ("cpu", "memory"))
            if best is None or (load, name) < best:
                best = (load, name)
        return (best[1] if best else None), _refusal(len(nodes), reasons)

    def _held(self, why: str) -> str:
        nodes = sum(1 for _ in self._api.store.each(NODES))
        return (
            f"0/{nodes} nodes are available: {why}. preemption: 0/{nodes} nodes are available: {nodes} Preemption is not "
            "helpful for scheduling."
        )

    def _lacking(self, node: Json, asked: dict[str, int]) -> list[str]:
        used = self._ledger.used(node["metadata"]["name"])
        return [
            "Too many pods" if name == "pods" else f"Insufficient {name}"
            for name, amount in asked.items()
            if amount and used.get(name, 0) + amount > allocatable(node, name)
        ]

    def _unschedulable(self, pod: Json, refusal: str) -> Json:
        condition = find(pod["status"].get("conditions"), "PodScheduled")
        if condition is not None and condition.get("message") == refusal:
            return pod
        now = stamp(self._api.clock.now())
        failed = {
            "lastProbeTime": None,
            "lastTransitionTime": now,
            "message": refusal,
            "reason": "Unschedulable",
            "status": "False",
            "type": "PodScheduled",
        }
        return {**pod, "status": {**pod["status"], "conditions": [failed]}}

    def _bound(self, pod: Json, node: str) -> Json:
        scheduled = {
            "lastProbeTime": None,
            "lastTransitionTime": stamp(self._api.clock.now()),
            "status": "True",
            "type": "PodScheduled",
        }
        return {
            **pod,
            "spec": {**pod["spec"], "nodeName": node},
            "status": {**pod["status"], "conditions": [scheduled]},
        }


def _mismatches(node: Json, pod: Json) -> list[str]:
    labels = node["metadata"].get("labels") or {}
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return [_MISMATCH]
    if node["spec"].get("unschedulable"):
        return ["node(s) were unschedulable"]
    tolerated = pod["spec"].get("tolerations") or ()
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] in {"NoSchedule", "NoExecute"} and not any(_tolerates(item, taint) for item in tolerated):
            return [f"node(s) had untolerated taint(s) {{{taint['key']}: {taint.get('value', '')}}}"]
    return []


def _tolerates(toleration: Json, taint: Json) -> bool:
    key = toleration.get("key")
    if key and key != taint["key"]:
        return False
    return toleration.get("effect") in {None, "", taint["effect"]}


def _refusal(nodes: int, reasons: Counter[str]) -> str:
    if not nodes:
        return "no nodes available to schedule pods"
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: item[0]))
    return (
        f"0/{nodes} nodes are available: {told}. no new claims to deallocate, preemption: 0/{nodes} nodes are "
        f"available: {nodes} Preemption is not helpful for scheduling."
    )
