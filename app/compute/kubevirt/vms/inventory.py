"""Combines the watch of VMs and the watch of their VMIs into one observation of each VM. Pure.

Of each object the reduced form is kept, and nothing else. Observations are made from it when they are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import overload

from typing_extensions import override

from app.compute.kubevirt.kinds import VMS, Kind, Manifest
from app.compute.kubevirt.vms.observations import ReducedVm, ReducedVmi, observe, reduce_vm, reduce_vmi
from app.compute.vms import Changed, Gone, Listed
from app.domain.observation import Observation

Change = Changed | Gone


class Observations(Sequence[Observation]):
    """Of some VMs with their VMIs, each made when it is asked for."""

    def __init__(self, vms: Sequence[ReducedVm], vmis: Sequence[ReducedVmi | None]) -> None:
        self._vms = vms
        self._vmis = vmis

    @override
    def __len__(self) -> int:
        return len(self._vms)

    @overload
    def __getitem__(self, index: int) -> Observation: ...

    @overload
    def __getitem__(self, index: slice) -> "Observations": ...

    @override
    def __getitem__(self, index: int | slice) -> "Observation | Observations":
        if isinstance(index, slice):
            return Observations(self._vms[index], self._vmis[index])
        return observe(self._vms[index], self._vmis[index])


@dataclass(slots=True)
class Inventory:
    """VMs and VMIs by name. Implements `reflector.Cache`."""

    _vms: dict[str, ReducedVm] = field(default_factory=dict)
    _vmis: dict[str, ReducedVmi] = field(default_factory=dict)

    def key(self, _kind: Kind, item: Manifest) -> str:
        """All are in one namespace."""
        return str(item["metadata"]["name"])

    def put(self, kind: Kind, item: Manifest) -> list[Change]:
        """Empty if the observation is the same as before: most events change nothing that we read."""
        name = self.key(kind, item)
        before = self._observe(name)
        if kind == VMS:
            self._vms[name] = reduce_vm(item)
        else:
            self._vmis[name] = reduce_vmi(item)
        after = self._observe(name)
        if after is None or after == before:
            return []
        if before is not None and before.uid != after.uid:
            return [Gone(name, before.uid), Changed(after)]
        return [Changed(after)]

    def drop(self, kind: Kind, key: str) -> list[Change]:
        """The object was deleted, or lost our label: then it is no longer ours."""
        if kind == VMS:
            gone = self._vms.pop(key, None)
            return [Gone(key, gone.uid)] if gone is not None else []
        before = self._observe(key)
        self._vmis.pop(key, None)
        after = self._observe(key)
        return [Changed(after)] if after is not None and after != before else []

    def report(self, began_at: datetime) -> Listed:
        return Listed(self.observations(), began_at)

    def hide(self, _kind: Kind, _reason: str | None) -> bool:
        """Neither kind may be missing."""
        return False

    def observations(self) -> Observations:
        """Of all VMs, as they are now."""
        return Observations(tuple(self._vms.values()), tuple(self._vmis.get(name) for name in self._vms))

    def _observe(self, name: str) -> Observation | None:
        vm = self._vms.get(name)
        return observe(vm, self._vmis.get(name)) if vm is not None else None
