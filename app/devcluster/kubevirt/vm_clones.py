"""VirtualMachineClones: a restore to a new VM that forgets the identities of the old one (KubeVirt v1.9.0)."""

import json

from typing_extensions import override

from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import Key, new_object, owned_by, phase_of, status_of
from app.devcluster.apiserver.registry import VM_CLONES, VM_RESTORES, VM_SNAPSHOTS, Resource
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.kubevirt.snapshot_conditions import progress
from app.devcluster.kubevirt.vm_restores import content_of

_DOMAIN = "/spec/template/spec/domain"
_IDENTITIES = ("devices/interfaces/0/macAddress", "firmware/serial", "firmware/uuid")


class CloneController(KindController):
    """Takes a snapshot of a source VM, then restores it to the target. Deletes its snapshot and restore when done."""

    resource = VM_CLONES

    @override
    def _react(self, change: Change) -> None:
        if change.resource in {VM_SNAPSHOTS, VM_RESTORES}:
            for stored in self._store.rows(VM_CLONES, change.key[0]):
                self._queue.add(stored.key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        if stored.deleting or phase_of(stored.obj) in {"Succeeded", "Failed"}:
            return
        clone, namespace = stored.obj, stored.key[0]
        source = clone["spec"]["source"]
        snapshot_name = source["name"]
        if source["kind"] == "VirtualMachine":
            snapshot_name = f"tmp-snapshot-{stored.uid}"
            if self._store.get(VM_SNAPSHOTS, namespace, snapshot_name) is None:
                self._make(VM_SNAPSHOTS, snapshot_name, clone, {"source": source})
                self._tell(stored, {"phase": "SnapshotInProgress", "snapshotName": snapshot_name})
                return
        if content_of(self._store, namespace, snapshot_name) is None:
            return
        name = f"tmp-restore-{stored.uid}"
        restore = self._store.get(VM_RESTORES, namespace, name)
        if restore is None:
            self._make(VM_RESTORES, name, clone, _restore_spec(clone, snapshot_name))
            self._tell(stored, {"phase": "RestoreInProgress", "restoreName": name})
        elif status_of(restore.obj).get("complete"):
            done = {"phase": "Succeeded", "targetName": restore.obj["spec"]["target"]["name"]}
            self._tell(stored, done, (False, "Ready"), (True, "Ready"))
            self._delete(VM_RESTORES, restore)
            if source["kind"] == "VirtualMachine":
                self._delete_snapshot((namespace, snapshot_name))

    def _delete_snapshot(self, key: Key) -> None:
        snapshot = self._store.get(VM_SNAPSHOTS, *key)
        if snapshot is not None:
            self._delete(VM_SNAPSHOTS, snapshot)

    def _make(self, resource: Resource, name: str, clone: Json, spec: Json) -> None:
        namespace = clone["metadata"]["namespace"]
        made = new_object(resource, name, namespace, self._api.clock.now(), ownerReferences=owned_by(clone))
        self._store.put(resource, {**made, "spec": spec})

    def _tell(
        self,
        stored: Stored,
        facts: Json,
        progressing: tuple[bool, str] = (True, "Still processing"),
        ready: tuple[bool, str] = (False, "Still processing"),
    ) -> None:
        old = status_of(stored.obj).get("conditions")
        conditions = progress(old, progressing, ready, self._api.clock.now())
        self._modify_status(stored, {**facts, "conditions": conditions})


def _restore_spec(clone: Json, snapshot_name: str) -> Json:
    target = clone["spec"].get("target") or {"apiGroup": "kubevirt.io", "kind": "VirtualMachine"}
    name = target.get("name") or f"clone-{clone['spec']['source']['name']}-{clone['metadata']['uid'][:5]}"
    patches = [{"op": "replace", "path": f"{_DOMAIN}/{path}", "value": ""} for path in _IDENTITIES]
    return {
        "patches": [json.dumps(patch, separators=(",", ":")) for patch in patches],
        "target": {**target, "name": name},
        "targetReadinessPolicy": "WaitGracePeriod",
        "virtualMachineSnapshotName": snapshot_name,
    }
