"""VirtualMachineRestores and VirtualMachineClones: from a snapshot to a VM with claims of its own (KubeVirt v1.9.0)."""

import json
import uuid

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import find
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.garbage import without_finalizer
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import (
    CLAIMS,
    VIRTUAL_MACHINES,
    VM_CLONES,
    VM_RESTORES,
    VM_SNAPSHOT_CONTENTS,
    VM_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.apiserver.work import WorkQueue
from app.devcluster.durations import Durations
from app.devcluster.kubevirt.admission import Webhooks
from app.devcluster.kubevirt.launcher import OBSERVED, claim_of
from app.devcluster.kubevirt.snapshot_conditions import owned_by, progress, with_finalizer
from app.devcluster.storage.driver import PROTECTION

_PROTECTION = "snapshot.kubevirt.io/vmrestore-protection"
_LAST = "restore.kubevirt.io/lastRestoreUID"
_DOMAIN = "/spec/template/spec/domain"
_Item = tuple[str, Key]


class RestoreController:
    """Restores to a VM that is not there make a halted one; a clone is a restore that forgets identities."""

    def __init__(self, api: Api, durations: Durations) -> None:
        self._api = api
        self._webhooks = Webhooks(api.store)
        self._queue: WorkQueue[_Item] = WorkQueue("restore", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for resource in (VM_RESTORES, VM_CLONES):
            for stored in self._api.store.each(resource):
                self._queue.add((resource.id, _key(stored)))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource in {VM_RESTORES, VM_CLONES}:
            self._queue.add((change.resource.id, change.key))
        if change.resource in {CLAIMS, VM_SNAPSHOTS, VM_RESTORES}:
            for resource in (VM_RESTORES, VM_CLONES):
                for stored in self._api.store.rows(resource, change.key[0]):
                    if not _is_over(stored.obj):
                        self._queue.add((resource.id, _key(stored)))

    def _visit(self, item: _Item) -> None:
        resource_id, key = item
        if resource_id == VM_CLONES.id:
            clone = self._api.store.get(VM_CLONES, *key)
            if clone is not None and "deletionTimestamp" not in clone.obj["metadata"]:
                self._clone(key, clone)
            return
        restore = self._api.store.get(VM_RESTORES, *key)
        if restore is not None:
            self._restore(key, restore)

    # Restores

    def _restore(self, key: Key, stored: Stored) -> None:
        metadata, status = stored.obj["metadata"], stored.obj.get("status") or {}
        if "deletionTimestamp" in metadata:
            gone = (False, "VM restore is deleting")
            self._tell(stored, {}, gone, gone)
            latest = self._api.store.get(VM_RESTORES, *key)
            if latest is not None:
                self._api.modify(VM_RESTORES, latest, lambda obj: without_finalizer(obj, _PROTECTION))
            return
        if status.get("complete"):
            return
        if not status:
            begun = "Initializing VirtualMachineRestore"
            self._tell(stored, {"complete": False}, (True, begun), (False, begun))
        elif _PROTECTION not in metadata.get("finalizers", ()):
            self._api.modify(VM_RESTORES, stored, lambda obj: with_finalizer(obj, _PROTECTION))
        else:
            self._restore_volumes(key, stored)

    def _restore_volumes(self, key: Key, stored: Stored) -> None:
        content = self._content(key[0], stored.obj["spec"]["virtualMachineSnapshotName"])
        if content is None:
            return
        uid = stored.obj["metadata"]["uid"]
        restores = [
            {
                "persistentVolumeClaim": f"restore-{uid}-{backup['volumeName']}",
                "volumeName": backup["volumeName"],
                "volumeSnapshotName": backup["volumeSnapshotName"],
            }
            for backup in content["spec"]["volumeBackups"]
        ]
        claims = [self._claim(stored.obj, content, item) for item in restores]
        if any(claim.obj["status"]["phase"] != "Bound" for claim in claims):
            self._tell(stored, {"restores": restores}, (True, "Creating new PVCs"), (False, "Waiting for new PVCs"))
            return
        told = find(stored.obj["status"].get("conditions"), "Progressing") or {}
        if told.get("reason") != "Updating target spec":
            self._tell(
                stored, {"restores": restores}, (True, "Updating target spec"), (False, "Waiting for target update")
            )
            return
        self._make_target(stored.obj, content["spec"]["source"]["virtualMachine"], restores)
        facts = {"complete": True, "restoreTime": stamp(self._api.clock.now()), "restores": restores}
        self._tell(stored, facts, (False, "Operation complete"), (True, "Operation complete"))

    def _content(self, namespace: str, snapshot_name: str) -> Json | None:
        """The content of a snapshot that is ready."""
        snapshot = self._api.store.get(VM_SNAPSHOTS, namespace, snapshot_name)
        status = (snapshot.obj.get("status") or {}) if snapshot else {}
        if not status.get("readyToUse"):
            return None
        content = self._api.store.get(VM_SNAPSHOT_CONTENTS, namespace, status["virtualMachineSnapshotContentName"])
        return content.obj if content else None

    def _claim(self, restore: Json, content: Json, item: Json) -> Stored:
        metadata = restore["metadata"]
        found = self._api.store.get(CLAIMS, metadata["namespace"], item["persistentVolumeClaim"])
        if found is not None:
            return found
        source = content["spec"]["source"]["virtualMachine"]["metadata"]
        backup = next(one for one in content["spec"]["volumeBackups"] if one["volumeName"] == item["volumeName"])
        given = backup["persistentVolumeClaim"]["spec"]
        origin = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": item["volumeSnapshotName"]}
        claim = {
            "apiVersion": CLAIMS.api_version,
            "kind": CLAIMS.kind,
            "metadata": {
                "name": item["persistentVolumeClaim"],
                "namespace": metadata["namespace"],
                "uid": str(uuid.uuid4()),
                "creationTimestamp": stamp(self._api.clock.now()),
                "labels": {
                    "restore.kubevirt.io/source-vm-name": source["name"],
                    "restore.kubevirt.io/source-vm-namespace": source["namespace"],
                },
                "annotations": {_LAST: _restore_id(restore), "restore.kubevirt.io/name": metadata["name"]},
                "finalizers": [PROTECTION],
            },
            "spec": {
                **{
                    key: value
                    for key, value in given.items()
                    if key not in {"volumeName", "dataSource", "dataSourceRef"}
                },
                "dataSource": origin,
                "dataSourceRef": origin,
            },
            "status": {"phase": "Pending"},
        }
        return self._api.store.put(CLAIMS, claim)

    def _make_target(self, restore: Json, source: Json, restores: list[Json]) -> None:
        namespace, target = restore["metadata"]["namespace"], restore["spec"]["target"]["name"]
        claims = {item["volumeName"]: item["persistentVolumeClaim"] for item in restores}
        spec = _with_claims(source["spec"], claims)
        existing = self._api.store.get(VIRTUAL_MACHINES, namespace, target)
        if existing is not None:
            volumes = _with_claims(existing.obj["spec"], claims)
            self._api.modify(VIRTUAL_MACHINES, existing, lambda obj: _marked({**obj, "spec": volumes}, restore))
            return
        spec = {**spec, "runStrategy": "Halted"}
        spec.pop("running", None)
        machine = {
            "apiVersion": VIRTUAL_MACHINES.api_version,
            "kind": VIRTUAL_MACHINES.kind,
            "metadata": {
                "annotations": dict(OBSERVED),
                "creationTimestamp": stamp(self._api.clock.now()),
                "generation": 1,
                "labels": source["metadata"].get("labels") or {},
                "name": target,
                "namespace": namespace,
                "uid": str(uuid.uuid4()),
            },
            "spec": spec,
        }
        for patch in restore["spec"].get("patches", ()):
            machine = _blanked(machine, json.loads(patch))
        machine = self._webhooks.mutate(VIRTUAL_MACHINES, _marked(machine, restore), None)
        self._api.store.put(VIRTUAL_MACHINES, machine)

    def _tell(self, stored: Stored, facts: Json, progressing: tuple[bool, str], ready: tuple[bool, str]) -> None:
        old = stored.obj.get("status") or {}
        conditions = progress(old.get("conditions"), progressing, ready, self._api.clock.now())
        self._api.modify(VM_RESTORES, stored, lambda obj: {**obj, "status": {**old, **facts, "conditions": conditions}})

    # Clones

    def _clone(self, key: Key, stored: Stored) -> None:
        clone, status = stored.obj, stored.obj.get("status") or {}
        if _is_over(clone):
            return
        uid = clone["metadata"]["uid"]
        source, snapshot_name = clone["spec"]["source"], clone["spec"]["source"]["name"]
        if source["kind"] == "VirtualMachine":
            snapshot_name = f"tmp-snapshot-{uid}"
            if self._api.store.get(VM_SNAPSHOTS, key[0], snapshot_name) is None:
                self._api.store.put(VM_SNAPSHOTS, self._snapshot(clone, snapshot_name))
                self._tell_clone(stored, {"phase": "SnapshotInProgress", "snapshotName": snapshot_name})
                return
        if self._content(key[0], snapshot_name) is None:
            return
        name = f"tmp-restore-{uid}"
        restore = self._api.store.get(VM_RESTORES, key[0], name)
        if restore is None:
            self._api.store.put(VM_RESTORES, self._make_restore(clone, name, snapshot_name))
            self._tell_clone(stored, {"phase": "RestoreInProgress", "restoreName": name})
        elif (restore.obj.get("status") or {}).get("complete"):
            target = restore.obj["spec"]["target"]["name"]
            done = {"phase": "Succeeded", "targetName": target}
            now = self._api.clock.now()
            done["conditions"] = progress(status.get("conditions"), (False, "Ready"), (True, "Ready"), now)
            self._api.modify(VM_CLONES, stored, lambda obj: {**obj, "status": done})
            delete(self._api, VM_RESTORES, key[0], name, DeleteOptions())
            if source["kind"] == "VirtualMachine":
                delete(self._api, VM_SNAPSHOTS, key[0], snapshot_name, DeleteOptions())

    def _snapshot(self, clone: Json, name: str) -> Json:
        return {
            **self._owned(clone, VM_SNAPSHOTS.api_version, VM_SNAPSHOTS.kind, name),
            "spec": {"source": clone["spec"]["source"]},
        }

    def _make_restore(self, clone: Json, name: str, snapshot_name: str) -> Json:
        target = clone["spec"].get("target") or {"apiGroup": "kubevirt.io", "kind": "VirtualMachine"}
        target = {
            **target,
            "name": target.get("name") or f"clone-{clone['spec']['source']['name']}-{clone['metadata']['uid'][:5]}",
        }
        paths = [f"{_DOMAIN}/devices/interfaces/0/macAddress", f"{_DOMAIN}/firmware/serial", f"{_DOMAIN}/firmware/uuid"]
        patches = [json.dumps({"op": "replace", "path": path, "value": ""}, separators=(",", ":")) for path in paths]
        spec = {
            "patches": patches,
            "target": target,
            "targetReadinessPolicy": "WaitGracePeriod",
            "virtualMachineSnapshotName": snapshot_name,
        }
        return {**self._owned(clone, VM_RESTORES.api_version, VM_RESTORES.kind, name), "spec": spec}

    def _owned(self, clone: Json, api_version: str, kind: str, name: str) -> Json:
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "creationTimestamp": stamp(self._api.clock.now()),
                "generation": 1,
                "name": name,
                "namespace": clone["metadata"]["namespace"],
                "ownerReferences": owned_by(clone),
                "uid": str(uuid.uuid4()),
            },
        }

    def _tell_clone(self, stored: Stored, facts: Json) -> None:
        still = "Still processing"
        conditions = progress(
            (stored.obj.get("status") or {}).get("conditions"), (True, still), (False, still), self._api.clock.now()
        )
        self._api.modify(VM_CLONES, stored, lambda obj: {**obj, "status": {**facts, "conditions": conditions}})


def _with_claims(spec: Json, claims: dict[str, str]) -> Json:
    """The VM's spec with the restored volumes on their new claims."""
    template = spec["template"]
    volumes = [
        {"name": volume["name"], "persistentVolumeClaim": {"claimName": claims[volume["name"]]}}
        if claim_of(volume) and volume["name"] in claims
        else volume
        for volume in template["spec"].get("volumes", ())
    ]
    inner = {**template, "spec": {**template["spec"], "volumes": volumes}}
    return {**{key: value for key, value in spec.items() if key != "dataVolumeTemplates"}, "template": inner}


def _blanked(obj: Json, patch: Json) -> Json:
    """Apply a clone's patch: an identity set to the empty text is one to be made anew."""

    def visit(value: object, parts: list[str]) -> object:
        head, rest = parts[0], parts[1:]
        if isinstance(value, list):
            number = int(head)
            return [visit(item, rest) if rest and at == number else item for at, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if not rest:
            kept = {key: item for key, item in value.items() if key != head}
            return {**kept, head: patch["value"]} if patch.get("value") else kept
        return {**value, head: visit(value[head], rest)} if head in value else value

    result = visit(obj, patch["path"].strip("/").split("/"))
    return result if isinstance(result, dict) else obj


def _marked(machine: Json, restore: Json) -> Json:
    metadata = machine["metadata"]
    annotations = {**(metadata.get("annotations") or {}), _LAST: _restore_id(restore)}
    return {**machine, "metadata": {**metadata, "annotations": annotations}}


def _restore_id(restore: Json) -> str:
    return f"{restore['metadata']['name']}-{restore['metadata']['uid']}"


def _is_over(obj: Json) -> bool:
    status = obj.get("status") or {}
    return bool(status.get("complete")) or status.get("phase") in {"Succeeded", "Failed"}


def _key(stored: Stored) -> Key:
    metadata = stored.obj["metadata"]
    return (metadata["namespace"], metadata["name"])
