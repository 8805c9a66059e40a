"""Whose the objects in the cluster are, and what happens to those that the database does not know. Pure.

An installation is one database. Its id is carried by all objects that it makes and by its Lease. See docs/adr/0008-installation.md.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.states import VmState

FRESH_SECONDS = 60.0
"""How long the word of the leading worker counts for a process that cannot reach the cluster."""
_SHOWN = 5


class Word(StrEnum):
    """What an operator may decide. `adopt`: the objects are this installation's. `disown`: they are not, and are left alone."""

    ADOPT = "adopt"
    DISOWN = "disown"


@dataclass(frozen=True, slots=True)
class Identity:
    """`adopted`: ids of other installations whose objects are ours by an operator's word. `disowned` are left alone, as are the
    objects with the UIDs `left_alone`. Those of `given_up` may be removed, however many they are and whatever they carry.
    """

    id: str
    adopted: frozenset[str] = frozenset()
    disowned: frozenset[str] = frozenset()
    left_alone: frozenset[str] = frozenset()
    given_up: frozenset[str] = frozenset()

    def owns(self, installation: str | None) -> bool:
        """Whether objects that carry this id are ours. None: they carry none, and are if a row knows them."""
        return installation == self.id or installation in self.adopted

    def is_foreign(self, installation: str | None) -> bool:
        return installation is not None and not self.owns(installation)

    def is_unsigned(self, installation: str | None) -> bool:
        """Whether an object of ours is to get our id: it was made by an earlier version, or by an installation that was adopted."""
        return installation is None or installation in self.adopted


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The Lease of an installation in the namespace. `holder`: the installation's id. `sequence` rises with each renewal, and
    `writer` made that renewal. `version`: what a write that replaces this one names. `replica`: what people call the process.
    """

    name: str
    holder: str
    sequence: int
    writer: str | None
    renewed_at: datetime | None
    seconds: int
    version: str
    replica: str = "unknown"

    def is_alive(self, now: datetime) -> bool:
        return self.renewed_at is not None and now < self.renewed_at + timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the database says that the installation's Lease has come. `at_home`: the database is the one that wrote that, and no copy."""

    sequence: int
    writer: str | None
    at_home: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why it is not certain whose the objects in the cluster are. `is_copy`: the database is not the one that made the last of them,
    but an older state or a copy of it. `alive`: another service works with them now. `adoptable`: an operator can say that they are ours.
    """

    reason: str
    is_copy: bool = False
    alive: bool = False
    adoptable: bool = True


def instance_trouble(before: tuple[str | None, str | None], now: tuple[str, str]) -> Trouble | None:
    """Whether the database was used in the same namespace with another instance. Both are (namespace, instance)."""
    namespace, instance = before
    if instance is None or namespace != now[0] or instance == now[1]:
        return None
    return Trouble(
        f"this database was last used with EMBERPOOL_INSTANCE {instance!r} in this namespace, and now with {now[1]!r}, so that its VMs "
        f"are not found. Set it back to {instance!r}; or, if this database is a copy, disown what it knows",
        is_copy=True,
        adoptable=False,
    )


def lease_trouble(identity: Identity, progress: Progress, lease: LeaseRecord | None, now: datetime) -> Trouble | None:
    """Whether the Lease says that the objects in the cluster may be somebody else's."""
    if lease is None:
        return None
    alive = lease.is_alive(now)
    since = f"{max(0.0, (now - lease.renewed_at).total_seconds()):.0f} s ago" if lease.renewed_at else "never"
    if lease.holder != identity.id:
        if not alive:
            return None  # what it left behind tells
        return Trouble(
            f"Lease {lease.name} is held by installation {lease.holder}, whose process {lease.replica} renewed it {since}: another service with another "
            "database works here. Stop it, or give this service an EMBERPOOL_INSTANCE of its own",
            alive=True,
        )
    newer = (lease.sequence, lease.writer) != (progress.sequence, progress.writer) and (
        lease.sequence >= progress.sequence
    )
    if alive and (newer or not progress.at_home):
        return Trouble(
            f"Lease {lease.name} was renewed {since} by process {lease.replica} on another copy of this database. Stop that service and wait until "
            f"the Lease expires ({lease.seconds} s), or, if this database is the copy, give this service an EMBERPOOL_INSTANCE of its own",
            is_copy=True,
            alive=True,
        )
    if newer:
        return Trouble(
            f"the database is older than the cluster: Lease {lease.name} was renewed {lease.sequence} times, and the database knows "
            f"of {progress.sequence}. It was restored from a backup",
            is_copy=True,
        )
    return None


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """What a claimed VM carries of its claim, so that the claim can be rebuilt from it. `bound_at`: when the claim got the VM."""

    lease_seconds: int
    lease_expires_at: datetime
    bound_at: datetime
    path: str | None = None
    shape: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "lease_seconds": self.lease_seconds,
            "lease_expires_at": self.lease_expires_at.isoformat(),
            "bound_at": self.bound_at.isoformat(),
            "path": self.path,
            "shape": self.shape,
            "labels": dict(self.labels),
        }
        return {key: value for key, value in found.items() if value}

    @classmethod
    def read(cls, found: Any) -> "ClaimRecord | None":
        """None if it is not what we wrote: anybody may write to the object that carries it."""
        try:
            labels = found.get("labels") or {}
            record = cls(
                lease_seconds=int(found["lease_seconds"]),
                lease_expires_at=datetime.fromisoformat(found["lease_expires_at"]),
                bound_at=datetime.fromisoformat(found["bound_at"]),
                path=_text(found.get("path")),
                shape=_text(found.get("shape")),
                labels={str(key): str(value) for key, value in labels.items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        aware = record.lease_expires_at.tzinfo is not None and record.bound_at.tzinfo is not None
        return record if aware and record.lease_seconds > 0 else None


@dataclass(frozen=True, slots=True)
class FoundVm:
    """A VM of the cluster that carries this service's labels, whoever made it. `claim_id` and `record`: the claim that it carries.
    `owner`: the UID of the VirtualMachinePool that owns it.
    """

    name: str
    uid: str
    installation: str | None = None
    vm_id: UUID | None = None
    pool: str | None = None
    pool_id: UUID | None = None
    claim_id: UUID | None = None
    record: ClaimRecord | None = None
    owner: str | None = None
    created_at: datetime | None = None
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class KnownVm:
    """What rows say of a found VM. `claim_id`: the claim in the VM's row."""

    id: UUID
    name: str
    uid: str | None
    state: VmState
    claim_id: UUID | None

    def is_of(self, found: FoundVm) -> bool:
        """Whether the row is of this object, and not of one that had its id or its name before."""
        return self.name == found.name and self.uid in {None, found.uid}


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of the VMs that were found: their rows by object (UID), the ids of all rows, and those of the claims that they
    carry. `confirmed_at`: when the leading worker last wrote that the objects are ours. `missing`: how many rows tell of a VM that was
    not found.
    """

    rows: Mapping[str, KnownVm]
    ids: Collection[UUID]
    claims: Collection[UUID]
    confirmed_at: datetime | None
    missing: int = 0

    def knows(self, vm: FoundVm) -> bool:
        """Whether any row is of the VM, also one that has ended."""
        return vm.uid in self.rows or vm.vm_id in self.ids


def survey_trouble(identity: Identity, found: Iterable[FoundVm], known: Known) -> Trouble | None:
    """Whether the VMs in the cluster say that they may be somebody else's, or that the database is older than they are."""
    vms = [vm for vm in found if not vm.deleting and vm.uid not in identity.left_alone]
    foreign = [vm for vm in vms if identity.is_foreign(vm.installation) and vm.installation not in identity.disowned]
    if foreign:
        others = ", ".join(sorted({str(vm.installation) for vm in foreign}))
        return Trouble(
            f"VMs carry the id of another installation ({others}), of which no service is alive: {_name(foreign)}"
        )
    ours = [vm for vm in vms if identity.owns(vm.installation)]
    forgotten = [vm for vm in ours if vm.claim_id is not None and vm.claim_id not in known.claims]
    if forgotten:
        reason = f"VMs carry claims that the database does not know: {_name(forgotten)}. It was restored from a backup"
        return Trouble(reason, is_copy=True)
    newer = [vm for vm in ours if vm.owner is None and not known.knows(vm) and _is_newer(vm, known.confirmed_at)]
    if newer:
        reason = f"VMs of this installation are newer than the database: {_name(newer)}. It was restored from a backup"
        return Trouble(reason, is_copy=True)
    unsigned = [vm for vm in vms if vm.installation is None]
    if unsigned and not any(known.knows(vm) for vm in unsigned):
        return Trouble(
            "VMs carry the label of this EMBERPOOL_INSTANCE and no installation's id, and the database knows none of them: "
            f"{_name(unsigned)}. A service of an earlier version made them with another database"
        )
    return None


@dataclass(frozen=True, slots=True)
class Orphan:
    """An object with our labels of which no row is alive. `has_row`: one was. `claim_id`: the claim that it carries. `precious`: what it
    holds cannot be made again.
    """

    name: str
    uid: str
    installation: str | None
    has_row: bool = False
    claim_id: str | None = None
    precious: bool = False


@dataclass(frozen=True, slots=True)
class Orphans:
    """`removable` ones are removed; `held` ones stay until an operator decides, by the reason. `foreign`: how many are another
    installation's, which are nothing to us.
    """

    removable: tuple[Orphan, ...] = ()
    held: Mapping[str, tuple[Orphan, ...]] = field(default_factory=dict)
    foreign: int = 0

    @property
    def held_count(self) -> int:
        return sum(map(len, self.held.values()))

    def tell_held(self) -> str | None:
        """What is held and why, in words; None: nothing is."""
        return "; ".join(f"{len(each)} {why} ({_name(each)})" for why, each in self.held.items()) or None

    @property
    def held_uids(self) -> list[str]:
        return sorted(each.uid for group in self.held.values() for each in group)


def sort_orphans(identity: Identity, found: Iterable[Orphan], *, listed: int, most: int, share: float) -> Orphans:
    """`listed`: how many objects of their kind there are. No more than `most` of them, or that `share`, are removed at once."""
    known = [each for each in found if each.uid not in identity.left_alone]
    ours = [each for each in known if not identity.is_foreign(each.installation)]
    held: dict[str, list[Orphan]] = {}
    given: list[Orphan] = []
    removable: list[Orphan] = []
    for each in ours:
        if each.uid in identity.given_up:
            given.append(each)
        elif (why := _why_held(each)) is not None:
            held.setdefault(why, []).append(each)
        else:
            removable.append(each)
    bound = max(most, int(share * listed))
    if len(removable) > bound:
        held[f"more than the {bound} that are removed at once"], removable = removable, []
    reasons = {why: tuple(group) for why, group in held.items()}
    return Orphans((*given, *removable), reasons, foreign=len(known) - len(ours))


def _why_held(orphan: Orphan) -> str | None:
    if orphan.claim_id is not None:
        return "with a claim that no row knows"
    if orphan.installation is None and not orphan.has_row:
        return "without an installation's id"
    if orphan.precious and not orphan.has_row:
        return "that may be the only copy of somebody's disks"
    return None


def _is_newer(vm: FoundVm, confirmed_at: datetime | None) -> bool:
    return confirmed_at is None or (vm.created_at is not None and vm.created_at > confirmed_at)


def _name(vms: Sequence[FoundVm] | Sequence[Orphan]) -> str:
    more = f" and {len(vms) - _SHOWN} more" if len(vms) > _SHOWN else ""
    return ", ".join(sorted(vm.name for vm in vms)[:_SHOWN]) + more


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
