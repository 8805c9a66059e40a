"""What an observation means for the row of a VM. Pure: the status writer applies the verdict if the state is still the same."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from app.domain.observation import Observation, WarmWhen
from app.domain.states import VmState

_WITHOUT_POD = (None, "Pending")
PAUSED = "it is paused"
"""The problem of a VM that somebody paused. It is well otherwise."""
_NO_AGENT = "its guest agent is not connected"
_NOT_READY = "it is not ready"
_NO_HELLO = "its guest has not said hello"
NO_AGENT_YET = f"{_NO_AGENT}; for a guest without one, warm_when is to be ready or running"
"""What a VM lacks whose guest runs and has never had an agent."""
NO_HELLO_YET = f"{_NO_HELLO}; its program comes from the identity disk, which the image or its cloud-init has to mount"
"""What a VM lacks whose guest runs and has never used its channel."""
NOT_READY_YET = f"{_NOT_READY}; if its template has a readiness probe, that has not succeeded yet"
"""What a VM lacks whose guest runs and has never been ready."""
PASSING = (NO_AGENT_YET, NOT_READY_YET, NO_HELLO_YET)
"""What every boot passes through, so that it counts only after a while."""

_LACKING = {WarmWhen.HELLO: _NO_HELLO}
_CLOCKS_APART = timedelta(seconds=5)
"""How far the cluster's clock may be ahead of the database's."""


class Verdict(StrEnum):
    NOTHING = "nothing"
    NOTED = "noted"
    """Only facts changed (node, addresses, health): write them."""
    CREATED = "created"
    """The cluster has the VM though our create was not answered: `creating` (or `planned` again) becomes `booting`."""
    READY = "ready"
    UNREADY = "unready"
    """It was warm and is not any more: it leaves the queue and has some time to recover."""
    FAILED = "failed"
    DEAD = "dead"
    """It is claimed, and cannot recover."""


@dataclass(frozen=True, slots=True)
class VmFacts:
    """What a verdict needs of a VM's row.

    `whole` False: its disks are made after it, so that the cluster may show it before it can start. `stopped`: we stopped it.
    `was_ready`: it was warm before. `hello_at`: when its guest last said hello.
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
    was_ready: bool = False
    hello_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class HealthRules:
    """`unready_grace`: how long a VM may be unready. `replace_window`: how long after its claim a failed VM is replaced."""

    unready_grace: timedelta
    replace_window: timedelta


def judge(vm: VmFacts, obs: Observation, warm_when: WarmWhen, rules: HealthRules, now: datetime) -> Judgement:
    """The verdict on one VM. If an object of another UID has the VM's name, the VM itself is lost."""
    if vm.uid is not None and vm.uid != obs.uid:
        if vm.state in {VmState.BOOTING, VmState.READY, VmState.CLAIMED}:
            return Judgement(Verdict.FAILED, f"another object (uid {obs.uid}) has its name")
        return Judgement(Verdict.NOTHING)
    match vm.state:
        case VmState.PLANNED | VmState.CREATING:
            return Judgement(Verdict.CREATED if vm.whole or _has_its_disks(obs) else Verdict.NOTHING)
        case VmState.BOOTING | VmState.READY:
            return _judge_unclaimed(vm, obs, warm_when)
        case VmState.CLAIMED:
            return _judge_claimed(vm, obs, rules, now)
        case _:
            return Judgement(Verdict.NOTHING)


def _has_its_disks(obs: Observation) -> bool:
    """A VMI gets a pod only once its disks exist (KubeVirt v1.9.0)."""
    return obs.phase in {"Scheduling", "Scheduled", "Running"}


def health_problem(obs: Observation) -> str | None:
    """What is wrong with a VM according to the cluster. None: nothing."""
    if obs.deleting:
        return "it is being deleted in the cluster"
    if obs.failure is not None:
        return f"{obs.failure.reason}: {obs.failure.message}"
    if obs.phase is None:
        return "it has no running instance"
    if obs.phase != "Running":
        return f"its instance is {obs.phase}"
    if obs.paused:
        return PAUSED
    if not obs.ready:
        return _NOT_READY
    return None


def why_restarted(vm: VmFacts, obs: Observation) -> str | None:
    """Why what ran a claimed VM is gone, as far as that is known; None: it still runs the VM, or we stopped it."""
    if vm.state is not VmState.CLAIMED or vm.stopped or obs.deleting or vm.vmi_uid in {None, obs.vmi_uid}:
        return None
    return vm.health or health_problem(obs) or "its instance was replaced"


def _judge_unclaimed(vm: VmFacts, obs: Observation, warm_when: WarmWhen) -> Judgement:
    booting = vm.state is VmState.BOOTING
    if obs.deleting:
        return Judgement(Verdict.FAILED, f"it was deleted in the cluster while it {'booted' if booting else 'waited'}")
    if obs.failure is not None and not obs.failure.transient:
        return Judgement(Verdict.FAILED, f"{obs.failure.reason}: {obs.failure.message}")
    if obs.is_warm(warm_when, greeted=_has_greeted(vm, obs)):
        return Judgement(Verdict.READY) if booting else _noted(vm, obs, None)
    if booting:
        return _noted(vm, obs, _boot_problem(vm, obs, warm_when))
    return Judgement(Verdict.UNREADY, health_problem(obs) or _LACKING.get(warm_when, _NO_AGENT))


def _has_greeted(vm: VmFacts, obs: Observation) -> bool:
    """Whether the guest that runs now said hello, and not one that ran before it."""
    if vm.hello_at is None or vm.vmi_uid not in {None, obs.vmi_uid}:
        return False
    return obs.vmi_created_at is None or vm.hello_at >= obs.vmi_created_at - _CLOCKS_APART


def _boot_problem(vm: VmFacts, obs: Observation, warm_when: WarmWhen) -> str | None:
    """What keeps a VM from being warm. A boot that merely takes its time has no problem before its guest runs.

    Before a VM has a pod, a problem counts until it has one: between two attempts to make its disks the cluster reports nothing.
    """
    if obs.failure is not None:
        return health_problem(obs)
    if vm.was_ready:
        return health_problem(obs) or _LACKING.get(warm_when, _NO_AGENT)
    if obs.phase == "Running":
        if obs.paused:
            return PAUSED
        if warm_when is WarmWhen.HELLO:
            return NO_HELLO_YET
        return NO_AGENT_YET if warm_when is WarmWhen.AGENT and not obs.agent_connected else NOT_READY_YET
    return vm.health if obs.phase in _WITHOUT_POD else None


def _judge_claimed(vm: VmFacts, obs: Observation, rules: HealthRules, now: datetime) -> Judgement:
    """A claimed VM belongs to its claimant: it is only judged shortly after the claim, and a paused VM is never dead."""
    if vm.stopped:
        return _noted(vm, obs, None)
    problem = health_problem(obs)
    young = vm.claimed_at is not None and now - vm.claimed_at <= rules.replace_window
    if problem is None or not young or obs.paused:
        return _noted(vm, obs, problem)
    if obs.deleting or (obs.failure is not None and not obs.failure.transient):
        return Judgement(Verdict.DEAD, problem)
    if obs.phase is None or obs.phase in {"Failed", "Succeeded"}:
        return Judgement(Verdict.DEAD, problem)
    return _noted(vm, obs, problem)


def _noted(vm: VmFacts, obs: Observation, problem: str | None) -> Judgement:
    same = (vm.vmi_uid, vm.node, vm.addresses, vm.health) == (obs.vmi_uid, obs.node, obs.addresses, problem)
    return Judgement(Verdict.NOTHING) if same else Judgement(Verdict.NOTED, problem)
