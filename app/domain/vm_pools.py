"""What stands behind a pool in the cluster, and what to do about a VirtualMachinePool. Pure.

A VirtualMachinePool is used in one mode alone: it creates what is missing, and never deletes, updates or heals (KubeVirt v1.9.0:
`unmanaged`). So its `replicas` mean "make VMs until you own so many". The rules, strongest first:

1. A claimed VM is never touched, but to detach it: once it has no owner, nothing done to the VirtualMachinePool reaches it.
2. `replicas` counts what the pool wants, VMs that are planned and VMs that it owns and keeps; never what is claimed or to go.
   They are lowered before a VM is detached, or the cluster would replace a VM that nobody wants replaced; and raised after.
3. What somebody else did to it is told, and put back. A pause is left: whoever paused it wants it paused.
"""

from dataclasses import dataclass
from enum import StrEnum


class Backing(StrEnum):
    VIRTUAL_MACHINE = "VirtualMachine"
    VIRTUAL_MACHINE_POOL = "VirtualMachinePool"


@dataclass(frozen=True, slots=True)
class VmPoolSight:
    """A VirtualMachinePool as the cluster shows it.

    `unmanaged`: it only ever creates. `held`: it waits for us where it is deleted. `labels`: those that it selects by, and so
    has in its template. `failure`: why its VMs cannot be made, in the cluster's words.
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


@dataclass(frozen=True, slots=True)
class Wish:
    """What the rows want of a pool's VirtualMachinePool now.

    `planned` VMs are not there yet; `kept` are, are owned, and are to stay. `template` is a fingerprint of all that VMs are
    made from; None: that is not known yet, and nothing is to be made.
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
    """What we wrote last. `uid` None: there is none of ours yet."""

    uid: str | None
    replicas: int | None
    generation: int | None
    template: str | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What to write to the VirtualMachinePool; None and False: leave it. `restore`: its strategies, our labels and finalizer."""

    replicas: int | None = None
    paused: bool | None = None
    template: bool = False
    restore: bool = False

    def __bool__(self) -> bool:
        return self.replicas is not None or self.paused is not None or self.template or self.restore


def lower_first(wish: Wish, seen: VmPoolSight) -> Change:
    """What must be written before any VM is detached: fewer replicas, and no strategy by which the cluster deletes."""
    fewer = wish.replicas if seen.replicas > wish.replicas else None
    return Change(replicas=fewer, restore=not seen.unmanaged)


def is_changed_by_others(written: Written, seen: VmPoolSight) -> bool:
    """Whether somebody wrote to it since we did."""
    return written.generation is not None and written.generation != seen.generation


def bring_about(wish: Wish, written: Written, seen: VmPoolSight, *, others_wrote: bool) -> Change:
    """What is to be written once nothing is left to be detached. Where `others_wrote`, its template counts as changed."""
    return Change(
        replicas=wish.replicas if wish.replicas != seen.replicas else None,
        paused=_pause(wish, written, seen),
        template=wish.template is not None and (wish.template != written.template or others_wrote),
        restore=not (seen.unmanaged and seen.held and seen.ours),
    )


def _pause(wish: Wish, written: Written, seen: VmPoolSight) -> bool | None:
    if wish.paused and not seen.paused:
        return True
    if not wish.paused and seen.paused and written.paused:
        return False
    return None


def is_paused_by_others(wish: Wish, written: Written, seen: VmPoolSight) -> bool:
    return seen.paused and not written.paused and not wish.paused


def name_incidents(wish: Wish, written: Written, seen: VmPoolSight) -> tuple[str, ...]:
    """What somebody else did since we last wrote, in words."""
    if written.uid != seen.uid or not is_changed_by_others(written, seen):
        return ()
    told = []
    if written.replicas is not None and written.replicas != seen.replicas:
        told.append(f"replicas was set to {seen.replicas} in the cluster; the pool's own number is put back")
    if not seen.unmanaged:
        told.append("its strategies were changed in the cluster, so that it could delete VMs; they are put back")
    if written.paused and wish.paused and not seen.paused:
        told.append("it was resumed in the cluster, while the pool is paused; it is paused again")
    if not told and seen.paused == written.paused:
        told.append("it was changed in the cluster; its template is written again")
    return tuple(told)


def tell_state(wish: Wish, written: Written, seen: VmPoolSight) -> str | None:
    """What keeps it from making VMs, in words."""
    if is_paused_by_others(wish, written, seen):
        return f"VirtualMachinePool {seen.name} is paused by somebody in the cluster, and makes no VMs until it is resumed there"
    if seen.failure is not None and wish.planned:
        return f"VirtualMachinePool {seen.name} cannot make its VMs: {seen.failure}"
    return None
