"""VirtualMachineSnapshots: lock the VM, snapshot each claim, succeed when all are ready, fail at the deadline.

As in KubeVirt v1.9.0, an error of a VolumeSnapshot appears in `status.error` at once, but the phase becomes Failed only
after `spec.failureDeadline` (default: 5 min).
"""

import re

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import (
    finalizers_of,
    phase_of,
    status_of,
    with_finalizer,
    with_status,
    without_finalizer,
)
from app.devcluster.apiserver.registry import (
    CLAIMS,
    PODS,
    VIRTUAL_MACHINES,
    VM_SNAPSHOT_CONTENTS,
    VM_SNAPSHOTS,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.apiserver.times import parse_stamp
from app.devcluster.durations import Durations
from app.devcluster.faults.book import FaultBook
from app.devcluster.kubevirt.snapshot_conditions import progress
from app.devcluster.kubevirt.snapshot_memory import SnapshotMemory, SnapshotParts
from app.devcluster.kubevirt.snapshot_sources import (
    CONTENT_PROTECTION,
    PARTIAL,
    build_content,
    build_volume_snapshot,
    indication_facts,
    indications,
    lock_problem,
)
from app.devcluster.kubevirt.state_volumes import snapshotted_volumes
from app.devcluster.storage.volumes import claim_of

_PROTECTION = "snapshot.kubevirt.io/vmsnapshot-protection"
_LOCK = "snapshot.kubevirt.io/snapshot-source-protection"
_OVER = frozenset({"Succeeded", "Failed"})
_TAKING = (True, "Source locked and operation in progress")
_SHORTEST_DEFAULT = 3.0
"""Seconds. Where durations are scaled down, a busy machine must not fail snapshots that name no deadline."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class SnapshotController(KindController):
    resource = VM_SNAPSHOTS

    def __init__(self, api: Api, durations: Durations, faults: FaultBook, memory: SnapshotMemory) -> None:
        super().__init__(api, durations.reaction)
        self._durations = durations
        self._faults = faults
        self._memory = memory
        faults.listen(self.resume)

    @override
    def _react(self, change: Change) -> None:
        if change.resource in {VM_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS, VIRTUAL_MACHINES, CLAIMS} or (
            change.resource is PODS and change.new is None
        ):
            for stored in self._store.rows(VM_SNAPSHOTS, change.key[0]):
                if phase_of(stored.obj) != "Succeeded":
                    self._queue.add(stored.key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        snapshot = stored.obj
        if stored.deleting:
            self._let_go(stored)
        elif _PROTECTION not in finalizers_of(snapshot):
            self._api.modify(VM_SNAPSHOTS, stored, lambda obj: with_finalizer(obj, _PROTECTION))
        elif phase_of(snapshot) in _OVER:
            return
        elif self._is_late(stored):
            self._give_up(stored, "snapshot deadline exceeded")
        else:
            self._advance(stored)

    def _advance(self, stored: Stored) -> None:
        namespace, name = stored.key
        machine = self._store.get(VIRTUAL_MACHINES, namespace, stored.obj["spec"]["source"]["name"])
        if machine is None:
            self._tell(stored, {"phase": "InProgress", "readyToUse": False}, (False, "Source does not exist"))
        elif "sourceUID" not in status_of(stored.obj):
            facts = {"phase": "InProgress", "readyToUse": False, "sourceUID": machine.uid}
            self._tell(stored, {**facts, **indications(self._store, machine.obj)}, (False, "Source not locked"))
        elif not _is_locked(machine.obj, name):
            self._lock(stored, machine)
        else:
            self._take(stored, machine)

    def _is_late(self, stored: Stored) -> bool:
        """Whether the deadline has passed. Where not, the snapshot is reconciled again at the deadline.

        The creation stamp is cut to whole seconds, so one second is added to the deadline.
        """
        given = stored.obj["spec"].get("failureDeadline")
        shortest = max(self._durations.snapshot_deadline, _SHORTEST_DEFAULT)
        seconds = shortest if given is None else _seconds(given)
        if not seconds:
            return False
        age = (self._api.clock.now() - parse_stamp(stored.obj["metadata"]["creationTimestamp"])).total_seconds()
        left = seconds - max(0.0, age - 1)
        if left <= 0:
            return True
        self._timers.ensure(stored.uid, "deadline", left, lambda: self._queue.add(stored.key))
        return False

    def _give_up(self, stored: Stored, reason: str) -> None:
        facts = {"phase": "Failed", "readyToUse": False}
        self._tell(stored, facts, (False, "Operation failed"), failure=(True, reason))
        self._drop_content(stored)
        self._unlock_source(stored)

    def _lock(self, stored: Stored, machine: Stored) -> None:
        name = stored.obj["metadata"]["name"]
        problem = lock_problem(self._store, machine.obj, name)
        if problem:
            self._tell(stored, {}, (False, f"Source not locked {problem}"))
            return

        def lock(vm: Json) -> Json:
            return with_status(with_finalizer(vm, _LOCK), snapshotInProgress=name)

        self._api.modify(VIRTUAL_MACHINES, machine, lock)
        self._tell(stored, {}, _TAKING)

    def _unlock(self, machine: Stored) -> None:
        def unlock(vm: Json) -> Json:
            status = {key: value for key, value in status_of(vm).items() if key != "snapshotInProgress"}
            return {**without_finalizer(vm, _LOCK), "status": status}

        self._api.modify(VIRTUAL_MACHINES, machine, unlock)

    def _take(self, stored: Stored, machine: Stored) -> None:
        name = _content_name(stored.obj)
        content = self._store.get(VM_SNAPSHOT_CONTENTS, stored.key[0], name)
        if content is None:
            parts = self._build(name, stored.obj, machine.obj)
            if self._memory.is_wanted(stored.obj):
                self._memory.save(stored, machine.obj, parts, lambda why: self._fail(stored, why))
                return
            content = self._memory.store(parts)
        told = self._content_status(content.obj, self._moment())
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

    def _build(self, name: str, snapshot: Json, vm: Json) -> SnapshotParts:
        now = self._api.clock.now()
        content = build_content(self._store, name, snapshot, vm, self._left_out(snapshot, vm), now)
        backups = content["spec"]["volumeBackups"]
        return SnapshotParts(content, [build_volume_snapshot(self._store, content, each, now) for each in backups])

    def _fail(self, stored: Stored, reason: str) -> None:
        latest = self._store.get(VM_SNAPSHOTS, *stored.key)
        if latest is not None and latest.uid == stored.uid and phase_of(latest.obj) not in _OVER:
            self._give_up(latest, reason)

    def _left_out(self, snapshot: Json, vm: Json) -> set[str]:
        """The volumes that a fault excludes from the snapshot."""
        fault = self._faults.on_object("volume-excluded", VM_SNAPSHOTS.plural, snapshot)
        if fault is None:
            return set()
        named = fault.settings.get("volume")
        volumes = snapshotted_volumes(self._store, vm)
        return {volume["name"] for volume in volumes if named in {None, volume["name"]}}

    def _content_status(self, content: Json, moment: str) -> Json:
        namespace = content["metadata"]["namespace"]
        statuses: list[Json] = []
        problems: list[str] = []
        missing: list[str] = []
        for backup in content["spec"].get("volumeBackups", ()):
            name = backup["volumeSnapshotName"]
            taken = self._store.get(VOLUME_SNAPSHOTS, namespace, name)
            if taken is None:
                missing.append(name)
                continue
            status = status_of(taken.obj)
            known: Json = {part: status[part] for part in ("creationTime", "readyToUse", "error") if part in status}
            statuses.append({**known, "volumeSnapshotName": name})
            if "error" in status:
                problems.append(f"VolumeSnapshot {name} error: {status['error'].get('message', '')}")
        told: Json = {"readyToUse": not missing and all(item.get("readyToUse") for item in statuses)}
        told["volumeSnapshotStatus"] = statuses
        if told["readyToUse"]:
            told["creationTime"] = status_of(content).get("creationTime", moment)
        elif missing or problems:
            message = f"VolumeSnapshots ({','.join(missing)}) missing" if missing else problems[0]
            old = status_of(content).get("error") or {}
            told["error"] = old if old.get("message") == message else {"message": message, "time": moment}
        return told

    def _volumes(self, snapshot: Json, content: Json, vm: Json) -> Json:
        """The included and excluded volumes, with an indication where one is excluded that could be included."""
        included = [item["volumeName"] for item in content["spec"].get("volumeBackups", ())]
        excluded = [item for item in snapshotted_volumes(self._store, vm) if item["name"] not in included]
        facts: Json = {
            "snapshotVolumes": {
                **({"excludedVolumes": [item["name"] for item in excluded]} if excluded else {}),
                **({"includedVolumes": included} if included else {}),
            }
        }
        if any(claim_of(item) for item in excluded):
            facts |= indication_facts([*status_of(snapshot).get("indications", ()), PARTIAL])
        return facts

    def _tell(
        self,
        stored: Stored,
        facts: Json,
        progressing: tuple[bool, str],
        ready: tuple[bool, str] = (False, "Not ready"),
        failure: tuple[bool, str] | None = None,
    ) -> None:
        old = {key: value for key, value in status_of(stored.obj).items() if key != "error" or failure}
        more = {} if failure is None else {"Failure": failure}
        conditions = progress(old.get("conditions"), progressing, ready, self._api.clock.now(), **more)
        self._modify_status(stored, {**old, **facts, "conditions": conditions})

    def _let_go(self, stored: Stored) -> None:
        if stored.obj["spec"].get("deletionPolicy", "Delete") == "Delete" or not status_of(stored.obj).get(
            "readyToUse"
        ):
            self._drop_content(stored)
            self._memory.remove(stored.obj)
        self._unlock_source(stored)
        self._api.modify(VM_SNAPSHOTS, stored, lambda obj: without_finalizer(obj, _PROTECTION))

    def _drop_content(self, stored: Stored) -> None:
        key = (stored.key[0], _content_name(stored.obj))
        content = self._store.get(VM_SNAPSHOT_CONTENTS, *key)
        if content is not None:
            self._delete(VM_SNAPSHOT_CONTENTS, content)
            content = self._store.get(VM_SNAPSHOT_CONTENTS, *key)
        if content is not None:
            self._api.modify(VM_SNAPSHOT_CONTENTS, content, lambda obj: without_finalizer(obj, CONTENT_PROTECTION))

    def _unlock_source(self, stored: Stored) -> None:
        machine = self._store.get(VIRTUAL_MACHINES, stored.key[0], stored.obj["spec"]["source"]["name"])
        if machine is not None and status_of(machine.obj).get("snapshotInProgress") == stored.key[1]:
            self._unlock(machine)


def _content_name(snapshot: Json) -> str:
    return f"vmsnapshot-content-{snapshot['metadata']['uid']}"


def _is_locked(vm: Json, snapshot_name: str) -> bool:
    locked_for = status_of(vm).get("snapshotInProgress")
    return locked_for == snapshot_name and _LOCK in finalizers_of(vm)


def _seconds(duration: str) -> float:
    """Seconds of a Go duration such as "1m30s"."""
    return sum(float(amount) * _UNITS[unit] for amount, unit in re.findall(r"([0-9.]+)(ms|h|m|s)", duration))
