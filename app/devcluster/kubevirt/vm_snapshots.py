"""VirtualMachineSnapshots: lock the VM, snapshot each claim, tell when all are ready, give up at the deadline.

As KubeVirt v1.9.0: an error of a VolumeSnapshot shows in `status.error` at once, but the phase becomes Failed only when
`spec.failureDeadline` (5 min by default) has passed.
"""

import re

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.garbage import without_finalizer
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import (
    CLAIMS,
    PODS,
    VIRTUAL_MACHINES,
    VM_SNAPSHOT_CONTENTS,
    VM_SNAPSHOTS,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import parse_stamp, stamp
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.durations import Durations
from app.devcluster.faults.faults import FaultBook
from app.devcluster.kubevirt.launcher import claim_of
from app.devcluster.kubevirt.snapshot_conditions import FAILED, progress, with_finalizer
from app.devcluster.kubevirt.snapshot_sources import (
    CONTENT_PROTECTION,
    PARTIAL,
    build_content,
    build_volume_snapshot,
    indications,
    lock_problem,
    told_of,
    volumes_of,
)

_PROTECTION = "snapshot.kubevirt.io/vmsnapshot-protection"
_LOCK = "snapshot.kubevirt.io/snapshot-source-protection"
_OVER = frozenset({"Succeeded", "Failed"})
_TAKING = (True, "Source locked and operation in progress")
_SHORTEST_DEFAULT = 3.0
"""Seconds; on a cluster whose time is shrunk a busy machine must not fail snapshots that name no deadline."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class SnapshotController:
    def __init__(self, api: Api, durations: Durations, faults: FaultBook) -> None:
        self._api = api
        self._durations = durations
        self._faults = faults
        self._timers: Timers[str] = Timers(api.clock)
        self._queue: WorkQueue[Key] = WorkQueue("snapshot", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(VM_SNAPSHOTS):
            self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is VM_SNAPSHOTS:
            if change.new is None:
                self._timers.cancel(change.last.obj["metadata"]["uid"])
            self._queue.add(change.key)
        elif change.resource in {VM_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS, VIRTUAL_MACHINES, CLAIMS} or (
            change.resource is PODS and change.new is None
        ):
            for stored in self._api.store.rows(VM_SNAPSHOTS, change.key[0]):
                if (stored.obj.get("status") or {}).get("phase") != "Succeeded":
                    self._queue.add((change.key[0], stored.obj["metadata"]["name"]))

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(VM_SNAPSHOTS, *key)
        if stored is None:
            return
        snapshot = stored.obj
        if "deletionTimestamp" in snapshot["metadata"]:
            self._let_go(key, stored)
            return
        if _PROTECTION not in snapshot["metadata"].get("finalizers", ()):
            self._api.modify(VM_SNAPSHOTS, stored, lambda obj: with_finalizer(obj, _PROTECTION))
            return
        status = snapshot.get("status") or {}
        if status.get("phase") in _OVER:
            return
        if self._is_late(key, snapshot):
            self._give_up(key, stored)
            return
        machine = self._api.store.get(VIRTUAL_MACHINES, key[0], snapshot["spec"]["source"]["name"])
        if machine is None:
            self._tell(stored, {"phase": "InProgress", "readyToUse": False}, (False, "Source does not exist"))
        elif "sourceUID" not in status:
            facts = {"phase": "InProgress", "readyToUse": False, "sourceUID": machine.obj["metadata"]["uid"]}
            self._tell(stored, {**facts, **indications(self._api.store, machine.obj)}, (False, "Source not locked"))
        elif not _is_locked(machine.obj, key[1]):
            self._lock(stored, machine)
        else:
            self._take(key, stored, machine)

    def _is_late(self, key: Key, snapshot: Json) -> bool:
        """Whether the deadline has passed; where not, it is looked at again then.

        Creation is stamped in whole seconds, cut off: the part of a second that this may have cost is given back.
        """
        given = snapshot["spec"].get("failureDeadline")
        shortest = max(self._durations.snapshot_deadline, _SHORTEST_DEFAULT)
        seconds = shortest if given is None else _seconds(given)
        if not seconds:
            return False
        age = (self._api.clock.now() - parse_stamp(snapshot["metadata"]["creationTimestamp"])).total_seconds()
        left = seconds - max(0.0, age - 1)
        if left <= 0:
            return True
        self._timers.ensure(snapshot["metadata"]["uid"], "deadline", left, lambda: self._queue.add(key))
        return False

    def _give_up(self, key: Key, stored: Stored) -> None:
        facts = {"phase": "Failed", "readyToUse": False}
        self._tell(stored, facts, (False, "Operation failed"), failure=(True, "snapshot deadline exceeded"))
        self._drop_content(key, stored.obj)
        self._unlock_source(key, stored.obj)

    def _lock(self, stored: Stored, machine: Stored) -> None:
        name = stored.obj["metadata"]["name"]
        problem = lock_problem(self._api.store, machine.obj, name)
        if problem:
            self._tell(stored, {}, (False, f"Source not locked {problem}"))
            return

        def lock(vm: Json) -> Json:
            locked = with_finalizer(vm, _LOCK)
            return {**locked, "status": {**(vm.get("status") or {}), "snapshotInProgress": name}}

        self._api.modify(VIRTUAL_MACHINES, machine, lock)
        self._tell(stored, {}, _TAKING)

    def _unlock(self, machine: Stored) -> None:
        def unlock(vm: Json) -> Json:
            status = {key: value for key, value in (vm.get("status") or {}).items() if key != "snapshotInProgress"}
            return {**without_finalizer(vm, _LOCK), "status": status}

        self._api.modify(VIRTUAL_MACHINES, machine, unlock)

    def _take(self, key: Key, stored: Stored, machine: Stored) -> None:
        name = _content_name(stored.obj)
        content = self._api.store.get(VM_SNAPSHOT_CONTENTS, key[0], name)
        moment = stamp(self._api.clock.now())
        if content is None:
            left_out = self._left_out(stored.obj, machine.obj)
            built = build_content(self._api.store, name, stored.obj, machine.obj, left_out, moment)
            content = self._api.store.put(VM_SNAPSHOT_CONTENTS, built)
            for backup in built["spec"]["volumeBackups"]:
                volume_snapshot = build_volume_snapshot(self._api.store, content.obj, backup, moment)
                self._api.store.put(VOLUME_SNAPSHOTS, volume_snapshot)
        told = self._content_status(content.obj, moment)
        self._api.modify(VM_SNAPSHOT_CONTENTS, content, lambda obj: {**obj, "status": told})
        error = {"error": told["error"]} if "error" in told else {}
        if not told["readyToUse"]:
            progressing = (False, "In error state") if error else _TAKING
            self._tell(stored, {"virtualMachineSnapshotContentName": name, **error}, progressing)
            return
        facts = {
            "creationTime": told["creationTime"],
            "phase": "Succeeded",
            "readyToUse": True,
            "virtualMachineSnapshotContentName": name,
            **self._volumes(stored.obj, content.obj, machine.obj),
        }
        self._tell(stored, facts, (False, "Operation complete"), (True, "Ready"))
        self._unlock(machine)

    def _left_out(self, snapshot: Json, vm: Json) -> set[str]:
        """Volumes that an ordered fault keeps out of the snapshot."""
        fault = self._faults.on_object("volume-excluded", VM_SNAPSHOTS.plural, snapshot)
        if fault is None:
            return set()
        named = fault.settings.get("volume")
        return {volume["name"] for volume in volumes_of(vm) if named in {None, volume["name"]}}

    def _content_status(self, content: Json, moment: str) -> Json:
        namespace = content["metadata"]["namespace"]
        statuses: list[Json] = []
        problems: list[str] = []
        missing: list[str] = []
        for backup in content["spec"].get("volumeBackups", ()):
            name = backup["volumeSnapshotName"]
            taken = self._api.store.get(VOLUME_SNAPSHOTS, namespace, name)
            if taken is None:
                missing.append(name)
                continue
            status = taken.obj.get("status") or {}
            known = {part: status[part] for part in ("creationTime", "readyToUse", "error") if part in status}
            statuses.append({**known, "volumeSnapshotName": name})
            if "error" in status:
                problems.append(f"VolumeSnapshot {name} error: {status['error'].get('message', '')}")
        told: Json = {"readyToUse": not missing and all(item.get("readyToUse") for item in statuses)}
        told["volumeSnapshotStatus"] = statuses
        if told["readyToUse"]:
            told["creationTime"] = (content.get("status") or {}).get("creationTime", moment)
        elif missing or problems:
            message = f"VolumeSnapshots ({','.join(missing)}) missing" if missing else problems[0]
            old = (content.get("status") or {}).get("error") or {}
            told["error"] = old if old.get("message") == message else {"message": message, "time": moment}
        return told

    def _volumes(self, snapshot: Json, content: Json, vm: Json) -> Json:
        """Which volumes are in it; one that was left out though it could be is pointed out."""
        included = [item["volumeName"] for item in content["spec"].get("volumeBackups", ())]
        excluded = [item for item in volumes_of(vm) if item["name"] not in included]
        facts: Json = {
            "snapshotVolumes": {
                **({"excludedVolumes": [item["name"] for item in excluded]} if excluded else {}),
                **({"includedVolumes": included} if included else {}),
            }
        }
        if any(claim_of(item) for item in excluded):
            facts |= told_of([*(snapshot.get("status") or {}).get("indications", ()), PARTIAL])
        return facts

    def _tell(
        self,
        stored: Stored,
        facts: Json,
        progressing: tuple[bool, str],
        ready: tuple[bool, str] = (False, "Not ready"),
        failure: tuple[bool, str] | None = None,
    ) -> None:
        old = {key: value for key, value in (stored.obj.get("status") or {}).items() if key != "error" or failure}
        more = {} if failure is None else {FAILED: failure}
        conditions = progress(old.get("conditions"), progressing, ready, self._api.clock.now(), **more)
        self._api.modify(
            VM_SNAPSHOTS, stored, lambda obj: {**obj, "status": {**old, **facts, "conditions": conditions}}
        )

    def _let_go(self, key: Key, stored: Stored) -> None:
        ready = (stored.obj.get("status") or {}).get("readyToUse")
        if stored.obj["spec"].get("deletionPolicy", "Delete") == "Delete" or not ready:
            self._drop_content(key, stored.obj)
        self._unlock_source(key, stored.obj)
        self._api.modify(VM_SNAPSHOTS, stored, lambda obj: without_finalizer(obj, _PROTECTION))

    def _drop_content(self, key: Key, snapshot: Json) -> None:
        name = _content_name(snapshot)
        if self._api.store.get(VM_SNAPSHOT_CONTENTS, key[0], name) is None:
            return
        delete(self._api, VM_SNAPSHOT_CONTENTS, key[0], name, DeleteOptions())
        content = self._api.store.get(VM_SNAPSHOT_CONTENTS, key[0], name)
        if content is not None:
            self._api.modify(VM_SNAPSHOT_CONTENTS, content, lambda obj: without_finalizer(obj, CONTENT_PROTECTION))

    def _unlock_source(self, key: Key, snapshot: Json) -> None:
        machine = self._api.store.get(VIRTUAL_MACHINES, key[0], snapshot["spec"]["source"]["name"])
        if machine is not None and (machine.obj.get("status") or {}).get("snapshotInProgress") == key[1]:
            self._unlock(machine)


def _content_name(snapshot: Json) -> str:
    return f"vmsnapshot-content-{snapshot['metadata']['uid']}"


def _is_locked(vm: Json, snapshot_name: str) -> bool:
    locked_for = (vm.get("status") or {}).get("snapshotInProgress")
    return locked_for == snapshot_name and _LOCK in vm["metadata"].get("finalizers", ())


def _seconds(duration: str) -> float:
    """Seconds of a Go duration such as "1m30s"."""
    return sum(float(amount) * _UNITS[unit] for amount, unit in re.findall(r"([0-9.]+)(ms|h|m|s)", duration))
