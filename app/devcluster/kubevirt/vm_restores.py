"""VirtualMachineRestores: from a snapshot to a VM with claims of its own (KubeVirt v1.9.0)."""

import json

from typing_extensions import override

from app.devcluster.apiserver.conditions import find
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import (
    finalizers_of,
    labels_of,
    new_object,
    phase_of,
    status_of,
    with_annotations,
    with_finalizer,
    with_metadata,
    without_finalizer,
)
from app.devcluster.apiserver.registry import CLAIMS, VIRTUAL_MACHINES, VM_RESTORES, VM_SNAPSHOT_CONTENTS, VM_SNAPSHOTS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Store, Stored
from app.devcluster.kubevirt.admission import with_machine_defaults
from app.devcluster.kubevirt.launcher import OBSERVED
from app.devcluster.kubevirt.snapshot_conditions import progress
from app.devcluster.kubevirt.state_volumes import STATE, state_claim_of, state_volume_name
from app.devcluster.storage.driver import build_claim
from app.devcluster.storage.volumes import claim_of

_PROTECTION = "snapshot.kubevirt.io/vmrestore-protection"
_LAST = "restore.kubevirt.io/lastRestoreUID"


class RestoreController(KindController):
    """A restore to a VM that does not exist creates it, halted."""

    resource = VM_RESTORES

    @override
    def _react(self, change: Change) -> None:
        if change.resource in {CLAIMS, VM_SNAPSHOTS}:
            for stored in self._store.rows(VM_RESTORES, change.key[0]):
                self._queue.add(stored.key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        status = status_of(stored.obj)
        if stored.deleting:
            gone = (False, "VM restore is deleting")
            told = self._tell(stored, {}, gone, gone)
            self._api.modify(VM_RESTORES, told, lambda obj: without_finalizer(obj, _PROTECTION))
        elif status.get("complete"):
            return
        elif not status:
            begun = "Initializing VirtualMachineRestore"
            self._tell(stored, {"complete": False}, (True, begun), (False, begun))
        elif _PROTECTION not in finalizers_of(stored.obj):
            self._api.modify(VM_RESTORES, stored, lambda obj: with_finalizer(obj, _PROTECTION))
        else:
            self._restore_volumes(stored)

    def _restore_volumes(self, stored: Stored) -> None:
        content = content_of(self._store, stored.key[0], stored.obj["spec"]["virtualMachineSnapshotName"])
        if content is None:
            return
        restores = [
            {
                "persistentVolumeClaim": f"restore-{stored.uid}-{backup['volumeName']}",
                "volumeName": backup["volumeName"],
                "volumeSnapshotName": backup["volumeSnapshotName"],
            }
            for backup in content["spec"]["volumeBackups"]
        ]
        claims = [self._claim(stored.obj, content, item) for item in restores]
        if any(phase_of(claim.obj) != "Bound" for claim in claims):
            self._tell(stored, {"restores": restores}, (True, "Creating new PVCs"), (False, "Waiting for new PVCs"))
            return
        told = find(stored.obj["status"].get("conditions"), "Progressing") or {}
        if told.get("reason") != "Updating target spec":
            self._tell(
                stored, {"restores": restores}, (True, "Updating target spec"), (False, "Waiting for target update")
            )
            return
        self._hand_over_state(stored.obj, restores)
        self._make_target(stored.obj, content["spec"]["source"]["virtualMachine"], restores)
        facts = {"complete": True, "restoreTime": self._moment(), "restores": restores}
        self._tell(stored, facts, (False, "Operation complete"), (True, "Operation complete"))

    def _claim(self, restore: Json, content: Json, item: Json) -> Stored:
        found = self._store.get(CLAIMS, restore["metadata"]["namespace"], item["persistentVolumeClaim"])
        if found is not None:
            return found
        source = content["spec"]["source"]["virtualMachine"]["metadata"]
        backup = next(one for one in content["spec"]["volumeBackups"] if one["volumeName"] == item["volumeName"])
        given = backup["persistentVolumeClaim"]["spec"]
        kept = {key: value for key, value in given.items() if key not in {"volumeName", "dataSource", "dataSourceRef"}}
        origin = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": item["volumeSnapshotName"]}
        claim = build_claim(
            item["persistentVolumeClaim"],
            restore,
            {**kept, "dataSource": origin, "dataSourceRef": origin},
            self._api.clock.now(),
            labels={
                "restore.kubevirt.io/source-vm-name": source["name"],
                "restore.kubevirt.io/source-vm-namespace": source["namespace"],
            },
            annotations={_LAST: _restore_id(restore), "restore.kubevirt.io/name": restore["metadata"]["name"]},
        )
        return self._store.put(CLAIMS, claim)

    def _hand_over_state(self, restore: Json, restores: list[Json]) -> None:
        """The restored state of a TPM or EFI becomes the VM's, and that which it had goes."""
        namespace, target = restore["metadata"]["namespace"], restore["spec"]["target"]["name"]
        names = [each["persistentVolumeClaim"] for each in restores if each["volumeName"] == state_volume_name(target)]
        restored = self._store.get(CLAIMS, namespace, names[0]) if names else None
        if restored is None:
            return
        former = state_claim_of(self._store, namespace, target)
        if former is not None and former.key != restored.key:
            self._delete(CLAIMS, former)
        labels = {**labels_of(restored.obj), STATE: target}
        self._api.modify(CLAIMS, restored, lambda obj: with_metadata(obj, labels=labels))

    def _make_target(self, restore: Json, source: Json, restores: list[Json]) -> None:
        namespace, target = restore["metadata"]["namespace"], restore["spec"]["target"]["name"]
        claims = {item["volumeName"]: item["persistentVolumeClaim"] for item in restores}
        mark = {_LAST: _restore_id(restore)}
        existing = self._store.get(VIRTUAL_MACHINES, namespace, target)
        if existing is not None:
            spec = _with_claims(existing.obj["spec"], claims)
            self._api.modify(VIRTUAL_MACHINES, existing, lambda obj: {**with_annotations(obj, mark), "spec": spec})
            return
        machine = new_object(
            VIRTUAL_MACHINES,
            target,
            namespace,
            self._api.clock.now(),
            annotations={**OBSERVED, **mark},
            labels=labels_of(source),
        )
        spec = {**_with_claims(source["spec"], claims), "runStrategy": "Halted"}
        spec.pop("running", None)
        machine = {**machine, "spec": spec}
        for patch in restore["spec"].get("patches", ()):
            machine = _blanked(machine, json.loads(patch))
        self._store.put(VIRTUAL_MACHINES, with_machine_defaults(machine))

    def _tell(self, stored: Stored, facts: Json, progressing: tuple[bool, str], ready: tuple[bool, str]) -> Stored:
        old = status_of(stored.obj)
        conditions = progress(old.get("conditions"), progressing, ready, self._api.clock.now())
        return self._modify_status(stored, {**old, **facts, "conditions": conditions})


def content_of(store: Store, namespace: str, snapshot_name: str) -> Json | None:
    """The content of a snapshot that is ready."""
    snapshot = store.get(VM_SNAPSHOTS, namespace, snapshot_name)
    status = status_of(snapshot.obj) if snapshot else {}
    if not status.get("readyToUse"):
        return None
    content = store.get(VM_SNAPSHOT_CONTENTS, namespace, status["virtualMachineSnapshotContentName"])
    return content.obj if content else None


def _with_claims(spec: Json, claims: dict[str, str]) -> Json:
    """The spec of the VM with its restored volumes on the new claims."""
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
    """Apply a patch of a clone; an identity that it sets to the empty string is removed, so that a new one is made."""

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


def _restore_id(restore: Json) -> str:
    return f"{restore['metadata']['name']}-{restore['metadata']['uid']}"
