"""What to change on the VirtualMachinePool of a pool. Pure.

A VirtualMachinePool is used in one mode only: it creates VMs, and never deletes, updates or heals them (KubeVirt v1.9.0:
`unmanaged`). So `replicas` means "create VMs until you own so many". The rules, strongest first:

1. A claimed VM is never touched, except to detach it: once it has no owner, nothing done to the VirtualMachinePool affects it.
2. `replicas` counts planned VMs and VMs that are owned and kept, but no VM that is claimed or to be removed. It is lowered
   before a VM is detached, because the cluster would replace that VM otherwise, and raised afterwards.
3. What somebody else changed is reported and put back. A pause is left alone: whoever paused it wants it paused.
"""

from dataclasses import dataclass
from enum import StrEnum


class Backing(StrEnum):
    VIRTUAL_MACHINE = "VirtualMachine"
    VIRTUAL_MACHINE_POOL = "VirtualMachinePool"


@dataclass(frozen=True, slots=True)
class VmPoolStatus:
    """A VirtualMachinePool as the cluster shows it.

    `unmanaged`: it only creates VMs. `held`: it carries our finalizer. `labels`: those of its selector, which its template
    must have. `failure`: the cluster's message if its VMs cannot be created.
    """

    name: str
    uid: str
    generation: int
    replicas: int
    paused: bool
    unmanaged: bool
    deleting: bool
    held: bool
    ours: bool
    pool_id: str | None
    labels: dict[str, str]
    finalizers: tuple[str, ...] = ()
    failure: str | None = None
    installation: str | None = None


@dataclass(frozen=True, slots=True)
class DesiredVmPool:
    """What the rows want of a pool's VirtualMachinePool now.

    `planned` VMs do not exist yet; `kept` VMs exist, are owned, and are to stay. `template` is a fingerprint of everything
    that VMs are made from; None: that is not known yet, and no VM must be made.
    """

    planned: int
    kept: int
    paused: bool
    deleting: bool
    template: str | None

    @property
    def replicas(self) -> int:
        if self.deleting or self.paused or self.template is None:
            return self.kept
        return self.planned + self.kept


@dataclass(frozen=True, slots=True)
class Written:
    """What we wrote last. `uid` None: we have not created it yet."""

    uid: str | None
    replicas: int | None
    generation: int | None
    template: str | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What to write to the VirtualMachinePool. None and False: leave that alone. `restore`: its strategies, our labels and our
    finalizer.
    """

    replicas: int | None = None
    paused: bool | None = None
    template: bool = False
    restore: bool = False

    def __bool__(self) -> bool:
        return self.replicas is not None or self.paused is not None or self.template or self.restore


def lower_first(desired: DesiredVmPool, status: VmPoolStatus) -> Change:
    """What must be written before a VM is detached: fewer replicas, and no strategy by which the cluster deletes VMs."""
    fewer = desired.replicas if status.replicas > desired.replicas else None
    return Change(replicas=fewer, restore=not status.unmanaged)


def is_changed_by_others(written: Written, status: VmPoolStatus) -> bool:
    """Whether somebody else wrote to it after us."""
    return written.generation is not None and written.generation != status.generation


def plan_change(desired: DesiredVmPool, written: Written, status: VmPoolStatus, *, others_wrote: bool) -> Change:
    """What to write once all VMs are detached. If `others_wrote`, its template counts as changed."""
    return Change(
        replicas=desired.replicas if desired.replicas != status.replicas else None,
        paused=_pause(desired, written, status),
        template=desired.template is not None and (desired.template != written.template or others_wrote),
        restore=not (status.unmanaged and status.held and status.ours),
    )


def _pause(desired: DesiredVmPool, written: Written, status: VmPoolStatus) -> bool | None:
    if desired.paused and not status.paused:
        return True
    if not desired.paused and status.paused and written.paused:
        return False
    return None


def is_paused_by_others(desired: DesiredVmPool, written: Written, status: VmPoolStatus) -> bool:
    return status.paused and not written.paused and not desired.paused


def name_incidents(desired: DesiredVmPool, written: Written, status: VmPoolStatus) -> tuple[str, ...]:
    """What somebody else changed since we last wrote, one sentence each."""
    if written.uid != status.uid or not is_changed_by_others(written, status):
        return ()
    incidents = []
    if written.replicas is not None and written.replicas != status.replicas:
        incidents.append(f"replicas was set to {status.replicas} in the cluster; the pool's own number is put back")
    if not status.unmanaged:
        incidents.append("its strategies were changed in the cluster, so that it could delete VMs; they are put back")
    if written.paused and desired.paused and not status.paused:
        incidents.append("it was resumed in the cluster, while the pool is paused; it is paused again")
    if not incidents and status.paused == written.paused:
        incidents.append("it was changed in the cluster; its template is written again")
    return tuple(incidents)


def describe_problem(desired: DesiredVmPool, written: Written, status: VmPoolStatus) -> str | None:
    """Why it makes no VMs. None: nothing keeps it from that."""
    if is_paused_by_others(desired, written, status):
        return f"VirtualMachinePool {status.name} is paused by somebody in the cluster, and makes no VMs until it is resumed there"
    if status.failure is not None and desired.planned:
        return f"VirtualMachinePool {status.name} cannot make its VMs: {status.failure}"
    return None
