"""VirtualMachineSnapshots: lock the VM, snapshot each claim, tell when all are ready (KubeVirt v1.9.0)."""

import uuid

from app.devcluster.api import Api
from app.devcluster.conditions import holds
from app.devcluster.deletion import DeleteOptions, delete
from app.devcluster.durations import Durations
from app.devcluster.garbage import without_finalizer
from app.devcluster.launcher import claim_of
from app.devcluster.objects import Change, Key, Stored
from app.devcluster.registry import (
    CLAIMS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    VM_SNAPSHOT_CONTENTS,
    VM_SNAPSHOTS,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.snapshot_conditions import owned_by, progress, with_finalizer
from app.devcluster.status import Json
from app.devcluster.storage import SNAPSHOT_CLASS
from app.devcluster.times import stamp
from app.devcluster.work import WorkQueue

_PROTECTION = "snapshot.kubevirt.io/vmsnapshot-protection"
_CONTENT_PROTECTION = "snapshot.kubevirt.io/vmsnapshotcontent-protection"
_LOCK = "snapshot.kubevirt.io/snapshot-source-protection"
_TOLD = {
    "GuestAgent": "Guest agent was active and attempted to quiesce the filesystem for application consistency.",
    "NoGuestAgent": "No guest agent was connected; the filesystem was not quiesced.",
    "Online": "Snapshot taken while the VM was running. Consistency depends on guest-agent quiescing.",
}


class SnapshotController:
    def __init__(self, api: Api, durations: Durations) -> None:
        self._api = api
        self._queue: WorkQueue[Key] = WorkQueue("snapshot", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(VM_SNAPSHOTS):
            self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is VM_SNAPSHOTS:
            self._queue.add(change.key)
        elif change.resource in {VM_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS, VIRTUAL_MACHINES}:
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
        if status.get("phase") in {"Succeeded", "Failed"}:
            return
        machine = self._api.store.get(VIRTUAL_MACHINES, key[0], snapshot["spec"]["source"]["name"])
        if machine is None:
            self._tell(stored, {"phase": "InProgress", "readyToUse": False}, (False, "Source does not exist"))
        elif "sourceUID" not in status:
            facts = {"phase": "InProgress", "readyToUse": False, "sourceUID": machine.obj["metadata"]["uid"]}
            self._tell(stored, {**facts, **self._indications(machine.obj)}, (False, "Source not locked"))
        elif _LOCK not in machine.obj["metadata"].get("finalizers", ()):
            self._lock(stored, machine)
        else:
            self._take(key, stored, machine)

    def _lock(self, stored: Stored, machine: Stored) -> None:
        name = stored.obj["metadata"]["name"]

        def lock(vm: Json) -> Json:
            locked = with_finalizer(vm, _LOCK)
            return {**locked, "status": {**(vm.get("status") or {}), "snapshotInProgress": name}}

        self._api.modify(VIRTUAL_MACHINES, machine, lock)
        self._tell(stored, {}, (True, "Source locked and operation in progress"))

    def _unlock(self, machine: Stored) -> None:
        def unlock(vm: Json) -> Json:
            status = {key: value for key, value in (vm.get("status") or {}).items() if key != "snapshotInProgress"}
            return {**without_finalizer(vm, _LOCK), "status": status}

        self._api.modify(VIRTUAL_MACHINES, machine, unlock)

    def _take(self, key: Key, stored: Stored, machine: Stored) -> None:
        name = f"vmsnapshot-content-{stored.obj['metadata']['uid']}"
        content = self._api.store.get(VM_SNAPSHOT_CONTENTS, key[0], name)
        if content is None:
            content = self._api.store.put(VM_SNAPSHOT_CONTENTS, self._content(name, stored.obj, machine.obj))
            self._snapshot_volumes(content, machine.obj)
        backups = content.obj["spec"].get("volumeBackups", ())
        taken = [self._api.store.get(VOLUME_SNAPSHOTS, key[0], item["volumeSnapshotName"]) for item in backups]
        ready = all(item is not None and (item.obj.get("status") or {}).get("readyToUse") for item in taken)
        now = stamp(self._api.clock.now())
        statuses = [
            {
                **({"creationTime": now, "readyToUse": True} if ready else {}),
                "volumeSnapshotName": item["volumeSnapshotName"],
            }
            for item in backups
        ]
        told: Json = {"readyToUse": ready, "volumeSnapshotStatus": statuses}
        if ready:
            told["creationTime"] = now
        self._api.modify(VM_SNAPSHOT_CONTENTS, content, lambda obj: {**obj, "status": told})
        if not ready:
            self._tell(
                stored,
                {"virtualMachineSnapshotContentName": name},
                (True, "Source locked and operation in progress"),
            )
            return
        included = [item["volumeName"] for item in backups]
        volumes = [item["name"] for item in machine.obj["spec"]["template"]["spec"].get("volumes", ())]
        excluded = [item for item in volumes if item not in included]
        facts: Json = {
            "creationTime": now,
            "phase": "Succeeded",
            "readyToUse": True,
            "snapshotVolumes": {
                **({"excludedVolumes": excluded} if excluded else {}),
                **({"includedVolumes": included} if included else {}),
            },
            "virtualMachineSnapshotContentName": name,
        }
        self._tell(stored, facts, (False, "Operation complete"), (True, "Ready"))
        self._unlock(machine)

    def _content(self, name: str, snapshot: Json, vm: Json) -> Json:
        backups = []
        for volume in vm["spec"]["template"]["spec"].get("volumes", ()):
            claim = self._api.store.get(CLAIMS, vm["metadata"]["namespace"], claim_of(volume))
            if claim is not None:
                copy = {"metadata": claim.obj["metadata"], "spec": claim.obj["spec"]}
                snapshot_name = f"vmsnapshot-{snapshot['metadata']['uid']}-volume-{volume['name']}"
                backups.append(
                    {"persistentVolumeClaim": copy, "volumeName": volume["name"], "volumeSnapshotName": snapshot_name}
                )
        # The copy of the VM is made from what it is asked to be; of its state only this is kept.
        machine = {"metadata": vm["metadata"], "spec": vm["spec"], "status": {"printableStatus": "Stopped"}}
        return {
            "apiVersion": VM_SNAPSHOT_CONTENTS.api_version,
            "kind": VM_SNAPSHOT_CONTENTS.kind,
            "metadata": {
                "creationTimestamp": stamp(self._api.clock.now()),
                "finalizers": [_CONTENT_PROTECTION],
                "generation": 1,
                "name": name,
                "namespace": vm["metadata"]["namespace"],
                "uid": str(uuid.uuid4()),
            },
            "spec": {
                "source": {"virtualMachine": machine},
                "virtualMachineSnapshotName": snapshot["metadata"]["name"],
                "volumeBackups": backups,
            },
        }

    def _snapshot_volumes(self, content: Stored, vm: Json) -> None:
        for backup in content.obj["spec"]["volumeBackups"]:
            claim = backup["persistentVolumeClaim"]["metadata"]["name"]
            volume_snapshot = {
                "apiVersion": VOLUME_SNAPSHOTS.api_version,
                "kind": VOLUME_SNAPSHOTS.kind,
                "metadata": {
                    "creationTimestamp": stamp(self._api.clock.now()),
                    "generation": 1,
                    "labels": {
                        "snapshot.kubevirt.io/source-vm-name": vm["metadata"]["name"],
                        "snapshot.kubevirt.io/source-vm-namespace": vm["metadata"]["namespace"],
                    },
                    "name": backup["volumeSnapshotName"],
                    "namespace": vm["metadata"]["namespace"],
                    "ownerReferences": owned_by(content.obj),
                    "uid": str(uuid.uuid4()),
                },
                "spec": {"source": {"persistentVolumeClaimName": claim}, "volumeSnapshotClassName": SNAPSHOT_CLASS},
            }
            self._api.store.put(VOLUME_SNAPSHOTS, volume_snapshot)

    def _indications(self, vm: Json) -> Json:
        metadata = vm["metadata"]
        vmi = self._api.store.get(VIRTUAL_MACHINE_INSTANCES, metadata["namespace"], metadata["name"])
        if vmi is None:
            return {}
        agent = holds(vmi.obj["status"].get("conditions"), "AgentConnected")
        indications = ["GuestAgent" if agent else "NoGuestAgent", "Online"]
        told = [{"indication": item, "message": _TOLD[item]} for item in indications]
        return {"indications": indications, "sourceIndications": told}

    def _tell(
        self, stored: Stored, facts: Json, progressing: tuple[bool, str], ready: tuple[bool, str] = (False, "Not ready")
    ) -> None:
        old = stored.obj.get("status") or {}
        conditions = progress(old.get("conditions"), progressing, ready, self._api.clock.now())
        self._api.modify(
            VM_SNAPSHOTS, stored, lambda obj: {**obj, "status": {**old, **facts, "conditions": conditions}}
        )

    def _let_go(self, key: Key, stored: Stored) -> None:
        name = f"vmsnapshot-content-{stored.obj['metadata']['uid']}"
        content = self._api.store.get(VM_SNAPSHOT_CONTENTS, key[0], name)
        if content is not None and stored.obj["spec"].get("deletionPolicy", "Delete") == "Delete":
            delete(self._api, VM_SNAPSHOT_CONTENTS, key[0], name, DeleteOptions())
            content = self._api.store.get(VM_SNAPSHOT_CONTENTS, key[0], name)
            if content is not None:
                self._api.modify(VM_SNAPSHOT_CONTENTS, content, lambda obj: without_finalizer(obj, _CONTENT_PROTECTION))
        machine = self._api.store.get(VIRTUAL_MACHINES, key[0], stored.obj["spec"]["source"]["name"])
        if machine is not None and (machine.obj.get("status") or {}).get("snapshotInProgress") == key[1]:
            self._unlock(machine)
        self._api.modify(VM_SNAPSHOTS, stored, lambda obj: without_finalizer(obj, _PROTECTION))
