"""What to do for one pool, from a snapshot of its rows and the time. Pure.

The rules, strongest first:

1. A claimed VM is never touched.
2. Nothing voluntary (rotation, ageing, shrinking) leaves fewer ready VMs than the floor, which is `min_available`. Deleting
   the pool is not voluntary in this sense: its owner asked for it.
3. A planned VM counts as capacity, so that planning again never creates twice.
4. `max_vms` counts everything that takes room in the cluster, VMs that are being removed included.
5. A stale VM (of an old template, from before a rotation, or older than `max_ready_age`) is removed once a fresh one is ready, so
   that no claim notices a rotation. Only if `max_vms` leaves no room for a fresh one is a stale one removed first, never below the
   floor.
6. If it is known how many VMs the nodes have room for, no more are created: a VM without a node would only fail at its boot
   timeout. Existing VMs are not affected, but if the nodes are full, stale VMs make room one by one.
7. A VM on a node that is going (see `domain.nodes`) is handed out after all others. It is removed once a VM elsewhere is ready,
   and never before: it still works. If the node stays after all, so do its VMs.
8. While the cluster takes no creates, no more than one VM is planned: what waits grows by nothing that could not be created.
9. Where a VM is to be replaced and cannot be, the plan says why, and what would help.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from app.domain.statistics import count_of

_SURGE_SHARE = 0.25
_TOLD = 5


@dataclass(frozen=True, slots=True)
class ReadyVm:
    """A VM that waits to be claimed. `current`: made from the pool's present template, and since the last rotation that was
    requested. `going`: the name of its node, if that node is going. `last`: it stands behind all others in the queue.
    """

    id: UUID
    ready_at: datetime
    current: bool
    going: str | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class InFlightVm:
    """A VM that is planned, creating or booting. `asked`: the cluster may have it already. `leased`: a worker is creating it now."""

    id: UUID
    created_at: datetime
    current: bool
    asked: bool
    leased: bool = False


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One pool as its rows say. `waiting` counts claims in its queue, `drained` VMs that were claimed since it was last filled.

    `rotated`: a rotation was requested. `ready` and `in_flight` hold every such VM of the pool. `room`: how many more VMs the nodes
    have room for now, in words `room_note`; None: that is not known. `never_fits`: no node could take one, even if it were empty.
    `put_off`: the cluster takes no creates at the moment.
    """

    size: int
    min_available: int
    auto_replenish: bool
    max_vms: int | None
    max_concurrent_creates: int
    max_ready_age: timedelta | None
    ready: tuple[ReadyVm, ...] = ()
    in_flight: tuple[InFlightVm, ...] = ()
    claimed: int = 0
    leaving: int = 0
    waiting: int = 0
    drained: int = 0
    paused: bool = False
    deleting: bool = False
    stalled: bool = False
    rotated: bool = False
    backoff_until: datetime | None = None
    room: int | None = None
    room_note: str = ""
    never_fits: bool = False
    put_off: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """`create` so many VMs, `cancel` those in flight, `remove` those that are ready, in the order given and not below `floor`.

    `put_last`: these go to the end of the queue of ready VMs, `put_back`: these stand there and return among the others.
    `urgent`: the pool is below its floor, and its creates go first. `notes` tell people what keeps the pool from its size.
    `held`: why VMs that are to be replaced are not, and what would help. `look_again_at`: the plan changes then by time alone.
    `waits_for_room`: more VMs would be created if the nodes had room.
    """

    create: int = 0
    cancel: tuple[UUID, ...] = ()
    remove: tuple[UUID, ...] = ()
    floor: int = 0
    put_last: tuple[UUID, ...] = ()
    put_back: tuple[UUID, ...] = ()
    urgent: bool = False
    notes: tuple[str, ...] = ()
    held: str | None = None
    look_again_at: datetime | None = None
    waits_for_room: bool = False

    @property
    def is_idle(self) -> bool:
        return not (self.create or self.cancel or self.remove)


def target(pool: PoolSnapshot) -> int:
    """How many unclaimed VMs the pool is to have, ready or in flight: its size, and one more for each claim in its queue."""
    if pool.deleting:
        return 0
    size = pool.size if pool.auto_replenish else max(0, pool.size - pool.drained)
    return size + pool.waiting


def surge_of(size: int) -> int:
    """By how many VMs a pool may exceed its size while it replaces some, so that a new template does not double the pool."""
    return max(1, int(size * _SURGE_SHARE))


def plan(pool: PoolSnapshot, now: datetime) -> Plan:
    """The next step of one pool. Carrying it out and planning again converges on the target, unless VMs fail."""
    if pool.deleting:
        return Plan(
            cancel=_ids(vm for vm in pool.in_flight if not vm.leased),
            remove=_ids(pool.ready),
            notes=("the pool is being deleted",),
        )
    step = Plan(
        floor=pool.min_available,
        put_last=_ids(vm for vm in pool.ready if vm.going is not None and not vm.last),
        put_back=_ids(vm for vm in pool.ready if vm.going is None and vm.last),
        urgent=len(pool.ready) < pool.min_available,
    )
    if pool.paused:
        return replace(step, notes=("paused: nothing is created or removed until resume",))

    want = target(pool)
    keep = _cap(pool, want)
    stale = _stale(pool, now)
    going = _going(pool, stale)
    fresh_ready = len(pool.ready) - len(stale) - len(going)
    cancel = _cancel(pool, keep=keep, fresh_ready=fresh_ready, urgent=step.urgent)
    staying = [vm for vm in pool.in_flight if vm.id not in set(cancel)]
    coming = sum(vm.current for vm in staying)
    fresh = fresh_ready + coming
    create, notes = _create(pool, now, want=want, fresh=fresh, staying=len(staying))
    remove = _remove(pool, now, keep=keep, stale=stale, going=going, room_needed=want - fresh - create)
    moves = create or coming or remove or pool.leaving
    return replace(
        step,
        create=create,
        cancel=cancel,
        remove=remove,
        notes=notes,
        held=None if moves else _why_held(pool, stale, going, notes),
        look_again_at=_look_again_at(pool, now),
        waits_for_room=bool(pool.room_note) and pool.room_note in notes,
    )


def _cap(pool: PoolSnapshot, want: int) -> int:
    """How many unclaimed VMs may stay. If `max_vms` was lowered, some of those that exist may not."""
    return want if pool.max_vms is None else min(want, max(0, pool.max_vms - pool.claimed))


def _stale(pool: PoolSnapshot, now: datetime) -> list[ReadyVm]:
    """Ready VMs that must be replaced: those of an old template first, then the oldest."""
    old = [vm for vm in pool.ready if not vm.current or _is_aged(pool, vm, now)]
    return sorted(old, key=lambda vm: (vm.current, vm.ready_at))


def _is_aged(pool: PoolSnapshot, vm: ReadyVm, now: datetime) -> bool:
    return pool.max_ready_age is not None and now - vm.ready_at >= pool.max_ready_age


def _going(pool: PoolSnapshot, stale: list[ReadyVm]) -> list[ReadyVm]:
    """Ready VMs on nodes that are going, and that need not be replaced otherwise, the oldest first."""
    replaced = {vm.id for vm in stale}
    found = (vm for vm in pool.ready if vm.going is not None and vm.id not in replaced)
    return sorted(found, key=lambda vm: vm.ready_at)


def _cancel(pool: PoolSnapshot, *, keep: int, fresh_ready: int, urgent: bool) -> tuple[UUID, ...]:
    """VMs in flight that are no longer needed, the youngest first. A VM that a worker is creating now is not cancelled.

    Below the floor, a VM of an old template that is booting already goes on: it will be ready soonest.
    """
    old = [vm for vm in pool.in_flight if not vm.current and not vm.leased and not (urgent and vm.asked)]
    current = [vm for vm in pool.in_flight if vm.current]
    surplus = max(0, fresh_ready + len(current) - keep)
    youngest = sorted((vm for vm in current if not vm.leased), key=lambda vm: (vm.asked, -vm.created_at.timestamp()))
    return _ids([*old, *youngest[: min(surplus, len(current))]])


def _create(pool: PoolSnapshot, now: datetime, *, want: int, fresh: int, staying: int) -> tuple[int, tuple[str, ...]]:
    missing = want - fresh
    if missing <= 0:
        return 0, ()
    if pool.stalled:
        return 0, ("stalled: too many VMs failed in a row; edit or resume the pool",)
    if backoff_until := _backoff(pool, now):
        return 0, (f"backing off after a failure until {backoff_until.isoformat(timespec='seconds')}",)
    pace = f"{count_of(staying, 'VM')} on the way; max_concurrent_creates is {pool.max_concurrent_creates}"
    limits = [
        (pool.max_concurrent_creates - staying, pace),
        (
            want + surge_of(pool.size) - len(pool.ready) - staying,
            "rotating: more VMs are created once these are ready",
        ),
    ]
    if pool.max_vms is not None:
        room = _room_below_cap(pool, pool.max_vms)
        full = f"max_vms is {pool.max_vms}: {pool.claimed} claimed, {pool.leaving} leaving"
        enough = min(missing, *(limit for limit, _ in limits))
        limits.append((room, f"{full}; raise it by {enough - room} for {count_of(enough, 'more VM')}"))
    if pool.room is not None:
        limits.append((pool.room, pool.room_note))
    if pool.put_off:
        limits.append((1 - staying, ""))  # one VM is enough to find out that it has passed; the pool's status says why
    lowest = min(limit for limit, _ in limits)
    # Only what decides is told: the next limit may be gone by the time that it would count.
    notes = tuple(note for limit, note in limits if note and limit == lowest < missing)
    return max(0, min(missing, lowest)), notes


def _room_below_cap(pool: PoolSnapshot, max_vms: int) -> int:
    """How many more VMs `max_vms` allows; below zero after it was lowered. A cancelled VM counts until the cluster has removed it."""
    return max_vms - pool.claimed - pool.leaving - len(pool.ready) - len(pool.in_flight)


def _remove(
    pool: PoolSnapshot,
    now: datetime,
    *,
    keep: int,
    stale: list[ReadyVm],
    going: list[ReadyVm],
    room_needed: int,
) -> tuple[UUID, ...]:
    """Ready VMs to remove: those that may not stay, stale ones first, then those on nodes that are going; if `max_vms` or the
    nodes leave no room, stale ones.
    """
    outdated = {vm.id for vm in (*stale, *going)}
    oldest = sorted((vm for vm in pool.ready if vm.id not in outdated), key=lambda vm: vm.ready_at)
    surplus = max(0, len(pool.ready) - keep)
    above_floor = max(0, len(pool.ready) - pool.min_available)
    count = min(surplus, above_floor)
    if stale and room_needed > 0 and _is_blocked_by_cap(pool, now):
        count = min(max(count, min(room_needed, len(stale), pool.max_concurrent_creates)), above_floor)
    if stale and _is_blocked_by_nodes(pool, now, keep):
        count = min(max(count, 1), above_floor)
    return _ids([*stale, *going, *oldest][:count])


def _is_blocked_by_cap(pool: PoolSnapshot, now: datetime) -> bool:
    """Whether only `max_vms` keeps a new VM from being created, and no VM is being removed that would make room."""
    if pool.max_vms is None or pool.leaving or pool.stalled or _backoff(pool, now):
        return False
    return pool.claimed + len(pool.ready) + len(pool.in_flight) >= pool.max_vms


def _is_blocked_by_nodes(pool: PoolSnapshot, now: datetime, keep: int) -> bool:
    """Whether no node has room for a fresh VM, while the pool has all its VMs. Then one stale VM may be removed, and no other
    before it is known whether a fresh one fits in its place.
    """
    if pool.room is None or pool.room > 0 or pool.never_fits:
        return False
    if pool.leaving or pool.in_flight or pool.stalled or _backoff(pool, now):
        return False
    return len(pool.ready) >= keep


def _why_held(pool: PoolSnapshot, stale: list[ReadyVm], going: list[ReadyVm], notes: tuple[str, ...]) -> str | None:
    """Why the VMs that are to be replaced stay as they are. None: there are none."""
    if not stale and not going:
        return None
    old = sum(not vm.current for vm in stale)
    nodes = sorted({vm.going for vm in going if vm.going is not None})
    told = f"{', '.join(nodes[:_TOLD])}{' and more' if len(nodes) > _TOLD else ''}"
    subjects = [
        f"{count_of(number, 'VM')} {which}"
        for number, which in (
            (old, "of the old template or from before the rotation" if pool.rotated else "of the old template"),
            (len(stale) - old, "older than max_ready_age_seconds"),
            (len(going), f"on nodes that are cordoned or going ({told})"),
        )
        if number
    ]
    return f"{' and '.join(subjects)}: {_what_holds(pool, spare=bool(stale), notes=notes)}"


def _what_holds(pool: PoolSnapshot, *, spare: bool, notes: tuple[str, ...]) -> str:
    """`spare`: some of them may be removed before their successors are ready, if the floor allows it."""
    room = _room_below_cap(pool, pool.max_vms) if pool.max_vms is not None else 1
    lower = pool.min_available - len(pool.ready) + 1
    at_floor = spare and lower > 0
    if room <= 0 and at_floor:
        helps = f"raise max_vms by {1 - room} or lower min_available by {lower}"
        return f"min_available and max_vms leave no room to replace them; {helps}"
    if room <= 0 and not spare:
        return f"max_vms leaves no room to replace them; raise it by {1 - room}"
    reasons = [*notes]
    if at_floor and (pool.room == 0 or not notes):
        reasons.append(f"min_available leaves none to remove first; lower it by {lower}")
    return "; ".join(reasons) or "the next plan replaces them"


def _backoff(pool: PoolSnapshot, now: datetime) -> datetime | None:
    """Until when no VM is created after a failure; None: it is over."""
    return pool.backoff_until if pool.backoff_until is not None and pool.backoff_until > now else None


def _look_again_at(pool: PoolSnapshot, now: datetime) -> datetime | None:
    moments = [moment for moment in (_backoff(pool, now),) if moment]
    if pool.max_ready_age is not None:
        moments += [vm.ready_at + pool.max_ready_age for vm in pool.ready if not _is_aged(pool, vm, now)]
    return min(moments, default=None)


def _ids(vms: Iterable[ReadyVm | InFlightVm]) -> tuple[UUID, ...]:
    return tuple(vm.id for vm in vms)
