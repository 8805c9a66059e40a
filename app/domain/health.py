"""What an observation means for one VM's row: a pure verdict, applied elsewhere under a guard on the state."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from app.domain.observation import Observation, WarmWhen
from app.domain.states import VmState


class Verdict(StrEnum):
    NOTHING = "nothing"
    NOTED = "noted"
    """Only facts changed (node, addresses, health): write them down."""
    CREATED = "created"
    """The cluster has it, though no create of ours was answered: `creating`, or `planned` again, becomes `booting`."""
    READY = "ready"
    UNREADY = "unready"
    """It was warm and is not: out of the queue, with a grace to recover."""
    FAILED = "failed"
    DEAD = "dead"
    """Claimed and beyond help."""


@dataclass(frozen=True, slots=True)
class VmFacts:
    """What a row says of a VM that a verdict needs.

    `whole` False: its disks are made after it, so that the cluster may show it before it can start. `stopped`: we stopped it.
    """

    state: VmState
    uid: str | None
    vmi_uid: str | None
    node: str | None
    addresses: tuple[str, ...]
    health: str | None
    unhealthy_since: datetime | None
    claimed_at: datetime | None
    whole: bool = True
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class HealthRules:
    """`unready_grace`: how long a VM may be unready. `replace_window`: how soon after its claim a dead VM is replaced."""

    unready_grace: timedelta
    replace_window: timedelta


def judge(vm: VmFacts, seen: Observation, warm_when: WarmWhen, rules: HealthRules, now: datetime) -> Judgement:
    """The verdict on one VM. An object of another UID under the VM's name is not the VM: it has been lost."""
    if vm.uid is not None and vm.uid != seen.uid:
        if vm.state in {VmState.BOOTING, VmState.READY, VmState.CLAIMED}:
            return Judgement(Verdict.FAILED, f"another object (uid {seen.uid}) stands under its name")
        return Judgement(Verdict.NOTHING)
    match vm.state:
        case VmState.PLANNED | VmState.CREATING:
            return Judgement(Verdict.CREATED if vm.whole or _has_its_disks(seen) else Verdict.NOTHING)
        case VmState.BOOTING:
            return _judge_booting(vm, seen, warm_when)
        case VmState.READY:
            return _judge_ready(vm, seen, warm_when)
        case VmState.CLAIMED:
            return _judge_claimed(vm, seen, rules, now)
        case _:
            return Judgement(Verdict.NOTHING)


def _has_its_disks(seen: Observation) -> bool:
    """A pod is only given to a VMI whose disks are there (KubeVirt v1.9.0): from then on nothing is missing."""
    return seen.phase in {"Scheduling", "Scheduled", "Running"}


def ailment(seen: Observation) -> str | None:
    """What ails a VM, in words; None: nothing that the cluster tells."""
    if seen.deleting:
        return "it is being deleted in the cluster"
    if seen.failure is not None:
        return f"{seen.failure.reason}: {seen.failure.message}"
    if seen.phase is None:
        return "it has no running instance"
    if seen.phase != "Running":
        return f"its instance is {seen.phase}"
    if seen.paused:
        return "it is paused"
    if not seen.ready:
        return "it is not ready"
    return None


def _judge_booting(vm: VmFacts, seen: Observation, warm_when: WarmWhen) -> Judgement:
    if seen.deleting:
        return Judgement(Verdict.FAILED, "it was deleted in the cluster while it booted")
    if seen.failure is not None and not seen.failure.transient:
        return Judgement(Verdict.FAILED, f"{seen.failure.reason}: {seen.failure.message}")
    if seen.is_warm(warm_when):
        return Judgement(Verdict.READY)
    return _noted(vm, seen, ailment(seen) if seen.failure is not None else None)


def _judge_ready(vm: VmFacts, seen: Observation, warm_when: WarmWhen) -> Judgement:
    if seen.deleting:
        return Judgement(Verdict.FAILED, "it was deleted in the cluster while it waited")
    if seen.failure is not None and not seen.failure.transient:
        return Judgement(Verdict.FAILED, f"{seen.failure.reason}: {seen.failure.message}")
    if not seen.is_warm(warm_when):
        return Judgement(Verdict.UNREADY, ailment(seen) or "its guest agent is not connected")
    return _noted(vm, seen, None)


def _judge_claimed(vm: VmFacts, seen: Observation, rules: HealthRules, now: datetime) -> Judgement:
    """A claimed VM is its claimant's: only within the first moments is it ours to judge, and a pause never is a death."""
    if vm.stopped:
        return _noted(vm, seen, None)
    ails = ailment(seen)
    young = vm.claimed_at is not None and now - vm.claimed_at <= rules.replace_window
    if ails is None or not young or seen.paused:
        return _noted(vm, seen, ails)
    if seen.deleting or (seen.failure is not None and not seen.failure.transient):
        return Judgement(Verdict.DEAD, ails)
    if seen.phase is None or seen.phase in {"Failed", "Succeeded"}:
        return Judgement(Verdict.DEAD, ails)
    return _noted(vm, seen, ails)


def _noted(vm: VmFacts, seen: Observation, ails: str | None) -> Judgement:
    same = (vm.vmi_uid, vm.node, vm.addresses, vm.health) == (seen.vmi_uid, seen.node, seen.addresses, ails)
    return Judgement(Verdict.NOTHING) if same else Judgement(Verdict.NOTED, ails)
