"""Combines the watch of VMs and the watch of their VMIs into one observation of each VM. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.vms.observations import observe_vm, trim
from app.compute.vms import Changed, Gone
from app.domain.observation import Observation

Change = Changed | Gone


@dataclass(slots=True)
class Inventory:
    """VMs and VMIs by name, trimmed, and the last observation of each VM."""

    _vms: dict[str, Manifest] = field(default_factory=dict)
    _vmis: dict[str, Manifest] = field(default_factory=dict)
    _last: dict[str, Observation] = field(default_factory=dict)

    def replace(self, vms: Iterable[Manifest], vmis: Iterable[Manifest]) -> list[Gone]:
        """Replaces everything by a complete list. Returns the known VMs that are not in it."""
        before = self._last
        self._vms = {_name(vm): trim(vm) for vm in vms}
        self._vmis = {_name(vmi): trim(vmi) for vmi in vmis}
        self._last = {name: observe_vm(vm, self._vmis.get(name)) for name, vm in self._vms.items()}
        return [
            Gone(name, old.uid)
            for name, old in before.items()
            if name not in self._last or self._last[name].uid != old.uid
        ]

    def observations(self) -> tuple[Observation, ...]:
        return tuple(self._last.values())

    def apply_vm(self, kind: str, vm: Manifest) -> list[Change]:
        """One watch event of a VM. A VM that lost our label is gone too: it is no longer ours."""
        name = _name(vm)
        changes: list[Change] = []
        known = self._last.get(name)
        uid = vm["metadata"].get("uid")
        if known is not None and (kind == "DELETED" or known.uid != uid):
            changes.append(Gone(name, known.uid))
            del self._vms[name], self._last[name]
        if kind != "DELETED":
            self._vms[name] = trim(vm)
            changes += self._observe(name)
        return changes

    def apply_vmi(self, kind: str, vmi: Manifest) -> list[Change]:
        """One watch event of a VMI. It has no effect as long as its VM is unknown."""
        name = _name(vmi)
        if kind != "DELETED":
            self._vmis[name] = trim(vmi)
        elif (known := self._vmis.get(name)) is not None and known["metadata"].get("uid") == vmi["metadata"].get("uid"):
            del self._vmis[name]
        return self._observe(name) if name in self._vms else []

    def _observe(self, name: str) -> list[Change]:
        """Empty if the observation is the same as before: most events change nothing that we read."""
        observation = observe_vm(self._vms[name], self._vmis.get(name))
        if self._last.get(name) == observation:
            return []
        self._last[name] = observation
        return [Changed(observation)]


def _name(item: Manifest) -> str:
    return str(item["metadata"]["name"])
