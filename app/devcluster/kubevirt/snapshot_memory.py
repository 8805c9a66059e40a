"""Keeps the memory of VMs for VirtualMachineSnapshots that ask for it: memory and disks of one moment, or nothing of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.objects import with_annotations
from app.devcluster.apiserver.registry import CLAIMS, VM_SNAPSHOT_CONTENTS, VM_SNAPSHOTS, VOLUME_SNAPSHOTS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Stored
from app.devcluster.faults.book import FaultBook
from app.devcluster.guests.memory import MemoryOutcome
from app.devcluster.guests.runtime import Guest, GuestRuntime
from app.devcluster.kubevirt.memory import BYTES, FINGERPRINT, asks_for_memory, has_memory, running_instance
from app.devcluster.kubevirt.vmi_controller import pod_of
from app.devcluster.storage.volumes import content_name, volume_name

NOT_KEPT = "MemoryNotKept"
_ORDERED = "ordered by a fault"


@dataclass(frozen=True, slots=True)
class SnapshotParts:
    """What a VirtualMachineSnapshot is made of, not stored yet."""

    content: Json
    volume_snapshots: Sequence[Json]


class SnapshotMemory:
    def __init__(self, api: Api, guests: GuestRuntime | None, faults: FaultBook) -> None:
        """`guests` None: no memory is kept, as in KubeVirt."""
        self._api = api
        self._guests = guests
        self._faults = faults
        self._saving: set[str] = set()

    def is_wanted(self, snapshot: Json) -> bool:
        return self._guests is not None and asks_for_memory(snapshot)

    def save(self, stored: Stored, machine: Json, parts: SnapshotParts, failed: Callable[[str], None]) -> None:
        """Begins to save, unless that is under way; the parts are stored once the memory is kept. `failed` is told why it cannot be."""
        snapshot = stored.obj
        if stored.uid in self._saving or self._strikes("memory-save-hangs", snapshot) is not None:
            return
        if (message := self._strikes("memory-save-fails", snapshot)) is not None:
            failed(f"{NOT_KEPT}: {message}")
        elif has_memory(snapshot):
            failed(f"{NOT_KEPT}: the disks of its moment were deleted")
        elif self._guests is None or (guest := self._running(machine)) is None:
            failed(f"{NOT_KEPT}: the VM does not run, so it has no memory")
        else:
            self._saving.add(stored.uid)
            disks = {self._volume_of(each): content_name(each) for each in parts.volume_snapshots}
            self._guests.save_memory(
                guest, stored.uid, disks, lambda outcome: self._end(stored, parts, outcome, failed)
            )

    def store(self, parts: SnapshotParts) -> Stored:
        """The content, as it was stored."""
        content = self._api.store.put(VM_SNAPSHOT_CONTENTS, parts.content)
        for each in parts.volume_snapshots:
            self._api.store.put(VOLUME_SNAPSHOTS, each)
        return content

    def remove(self, snapshot: Json) -> None:
        if self._guests is not None and asks_for_memory(snapshot):
            self._guests.remove_memory(snapshot["metadata"]["uid"])

    def _end(self, stored: Stored, parts: SnapshotParts, outcome: MemoryOutcome, failed: Callable[[str], None]) -> None:
        self._saving.discard(stored.uid)
        latest = self._api.store.get(VM_SNAPSHOTS, *stored.key)
        is_wanted = latest is not None and latest.uid == stored.uid and not latest.deleting
        over = latest is not None and (latest.obj.get("status") or {}).get("phase") == "Failed"
        if latest is None or not is_wanted or over:
            self.remove(stored.obj)
        elif outcome.error:
            failed(f"{NOT_KEPT}: {outcome.error}")
        else:
            self.store(parts)
            told = {BYTES: str(outcome.bytes), FINGERPRINT: outcome.fingerprint}
            self._api.modify(VM_SNAPSHOTS, latest, lambda obj: with_annotations(obj, told))

    def _running(self, machine: Json) -> Guest | None:
        instance = running_instance(self._api.store, machine)
        pod = pod_of(self._api, instance.obj) if instance is not None else None
        return Guest(instance.key, instance.obj, pod.obj) if instance is not None and pod is not None else None

    def _strikes(self, kind: str, snapshot: Json) -> str | None:
        fault = self._faults.on_object(kind, VM_SNAPSHOTS.plural, snapshot)
        return str(fault.settings.get("message", _ORDERED)) if fault is not None else None

    def _volume_of(self, volume_snapshot: Json) -> str:
        source = volume_snapshot["spec"]["source"]["persistentVolumeClaimName"]
        claim = self._api.store.get(CLAIMS, volume_snapshot["metadata"]["namespace"], source)
        return volume_name(claim.obj) if claim is not None else ""
