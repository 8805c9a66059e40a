"""What an observation means for a VM's row, state by state."""

from datetime import UTC, datetime, timedelta

import pytest

from app.domain.health import NO_AGENT_YET, NOT_READY_YET, PAUSED, HealthRules, Verdict, VmFacts, health_problem, judge
from app.domain.observation import Failure, Observation, WarmWhen
from app.domain.states import VmState

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RULES = HealthRules(unready_grace=timedelta(seconds=20), replace_window=timedelta(seconds=60))
BAD_IMAGE = Failure("ErrImagePull", "no such image", transient=True)
CRASHED = Failure("CrashLoopBackOff", "the guest does not start")


def row(state, **given):
    base = {
        "uid": "uid-1",
        "vmi_uid": "vmi-1",
        "node": "node-1",
        "addresses": ("10.0.0.1",),
        "health": None,
        "unhealthy_since": None,
        "claimed_at": NOW - timedelta(seconds=10) if state is VmState.CLAIMED else None,
    }
    return VmFacts(state=state, **{**base, **given})


def seen(**given):
    base = {
        "name": "vm",
        "namespace": "default",
        "uid": "uid-1",
        "vmi_uid": "vmi-1",
        "phase": "Running",
        "ready": True,
        "agent_connected": True,
        "node": "node-1",
        "addresses": ("10.0.0.1",),
    }
    return Observation(**{**base, **given})


def verdict(vm, observation, warm_when=WarmWhen.AGENT, now=NOW):
    return judge(vm, observation, warm_when, RULES, now).verdict


CASES = {
    "created before our create was answered": (VmState.CREATING, {}, Verdict.CREATED),
    "warm": (VmState.BOOTING, {}, Verdict.READY),
    "booting without its agent": (VmState.BOOTING, {"agent_connected": False}, Verdict.NOTED),
    "booting, new address": (VmState.BOOTING, {"ready": False, "addresses": ("10.0.0.9",)}, Verdict.NOTED),
    "booting, paused": (VmState.BOOTING, {"paused": True}, Verdict.NOTED),
    "booting, no instance yet": (
        VmState.BOOTING,
        {"phase": None, "vmi_uid": None, "node": None, "addresses": ()},
        Verdict.NOTED,
    ),
    "booting, may heal": (VmState.BOOTING, {"failure": BAD_IMAGE, "ready": False}, Verdict.NOTED),
    "booting, will not heal": (VmState.BOOTING, {"failure": CRASHED, "ready": False}, Verdict.FAILED),
    "booting, deleted by somebody": (VmState.BOOTING, {"deleting": True}, Verdict.FAILED),
    "booting, another under its name": (VmState.BOOTING, {"uid": "uid-2"}, Verdict.FAILED),
    "ready as before": (VmState.READY, {}, Verdict.NOTHING),
    "ready, moved": (VmState.READY, {"node": "node-2"}, Verdict.NOTED),
    "ready, restarted": (VmState.READY, {"vmi_uid": "vmi-2"}, Verdict.NOTED),
    "ready, lost its agent": (VmState.READY, {"agent_connected": False}, Verdict.UNREADY),
    "ready, lost Ready": (VmState.READY, {"ready": False}, Verdict.UNREADY),
    "ready, paused": (VmState.READY, {"paused": True}, Verdict.UNREADY),
    "ready, instance gone": (VmState.READY, {"phase": None, "vmi_uid": None}, Verdict.UNREADY),
    "ready, may heal": (VmState.READY, {"failure": BAD_IMAGE, "ready": False}, Verdict.UNREADY),
    "ready, will not heal": (VmState.READY, {"failure": CRASHED}, Verdict.FAILED),
    "ready, deleted by somebody": (VmState.READY, {"deleting": True}, Verdict.FAILED),
    "ready, another under its name": (VmState.READY, {"uid": "uid-2"}, Verdict.FAILED),
    "claimed and well": (VmState.CLAIMED, {}, Verdict.NOTHING),
    "claimed, not ready": (VmState.CLAIMED, {"ready": False}, Verdict.NOTED),
    "claimed, without its agent": (VmState.CLAIMED, {"agent_connected": False}, Verdict.NOTHING),
    "claimed, paused by its user": (VmState.CLAIMED, {"paused": True}, Verdict.NOTED),
    "claimed, being deleted": (VmState.CLAIMED, {"deleting": True}, Verdict.DEAD),
    "claimed, instance failed": (VmState.CLAIMED, {"phase": "Failed", "ready": False}, Verdict.DEAD),
    "claimed, instance gone": (VmState.CLAIMED, {"phase": None, "vmi_uid": None}, Verdict.DEAD),
    "claimed, will not heal": (VmState.CLAIMED, {"failure": CRASHED}, Verdict.DEAD),
    "claimed, may heal": (VmState.CLAIMED, {"failure": BAD_IMAGE, "ready": False}, Verdict.NOTED),
    "claimed, another under its name": (VmState.CLAIMED, {"uid": "uid-2"}, Verdict.FAILED),
    "planned": (VmState.PLANNED, {}, Verdict.CREATED),
    "releasing": (VmState.RELEASING, {"deleting": True}, Verdict.NOTHING),
    "releasing, another under its name": (VmState.RELEASING, {"uid": "uid-2"}, Verdict.NOTHING),
    "failed": (VmState.FAILED, {}, Verdict.NOTHING),
    "deleted": (VmState.DELETED, {}, Verdict.NOTHING),
    "lost": (VmState.LOST, {}, Verdict.NOTHING),
}


@pytest.mark.parametrize(("state", "given", "expected"), CASES.values(), ids=CASES)
def test_verdict(state, given, expected):
    assert verdict(row(state), seen(**given)) is expected


@pytest.mark.parametrize("state", list(VmState))
def test_every_verdict_that_ends_a_vm_says_why(state):
    for given in ({"deleting": True}, {"failure": CRASHED}, {"uid": "uid-2"}, {"phase": "Failed"}, {"ready": False}):
        judgement = judge(row(state), seen(**given), WarmWhen.AGENT, RULES, NOW)
        if judgement.verdict in {Verdict.FAILED, Verdict.DEAD, Verdict.UNREADY}:
            assert judgement.reason


@pytest.mark.parametrize(
    ("warm_when", "given", "expected"),
    [
        (WarmWhen.READY, {"agent_connected": False}, Verdict.READY),
        (WarmWhen.READY, {"ready": False}, Verdict.NOTED),
        (WarmWhen.RUNNING, {"ready": False, "agent_connected": False}, Verdict.READY),
        (WarmWhen.RUNNING, {"phase": "Scheduled", "ready": False}, Verdict.NOTHING),
        (WarmWhen.RUNNING, {"paused": True}, Verdict.NOTED),
    ],
)
def test_the_pool_says_what_counts_as_warm(warm_when, given, expected):
    assert verdict(row(VmState.BOOTING), seen(**given), warm_when) is expected


def test_a_claimed_vm_is_its_claimants_once_the_window_is_over():
    old = row(VmState.CLAIMED, claimed_at=NOW - timedelta(seconds=61))
    assert verdict(old, seen(phase="Failed", ready=False)) is Verdict.NOTED
    at_the_edge = row(VmState.CLAIMED, claimed_at=NOW - timedelta(seconds=60))
    assert verdict(at_the_edge, seen(phase="Failed", ready=False)) is Verdict.DEAD


def test_a_ready_vm_that_looks_well_again_loses_its_health_problem():
    judgement = judge(row(VmState.READY, health="it is not ready"), seen(), WarmWhen.AGENT, RULES, NOW)
    assert judgement.verdict is Verdict.NOTED
    assert judgement.reason is None


AILMENTS = {
    "it is being deleted in the cluster": {"deleting": True, "failure": CRASHED},
    "CrashLoopBackOff: the guest does not start": {"failure": CRASHED, "phase": None},
    "it has no running instance": {"phase": None},
    "its instance is Scheduling": {"phase": "Scheduling"},
    "it is paused": {"paused": True, "ready": False},
    "it is not ready": {"ready": False},
    None: {},
}


@pytest.mark.parametrize(("words", "given"), AILMENTS.items())
def test_an_observation_is_described_by_what_is_wrong_with_it(words, given):
    assert health_problem(seen(**given)) == words


class TestDisksMadeAfterTheVm:
    @pytest.mark.parametrize("phase", [None, "Pending"])
    def test_the_cluster_showing_it_is_not_enough(self, phase):
        verdict = judge(row(VmState.CREATING, whole=False), seen(phase=phase), WarmWhen.AGENT, RULES, NOW).verdict
        assert verdict is Verdict.NOTHING

    @pytest.mark.parametrize("phase", ["Scheduling", "Scheduled", "Running"])
    def test_a_pod_proves_that_its_disks_are_there(self, phase):
        verdict = judge(row(VmState.CREATING, whole=False), seen(phase=phase), WarmWhen.AGENT, RULES, NOW).verdict
        assert verdict is Verdict.CREATED


def test_a_vm_that_we_stopped_is_well_without_an_instance():
    stopped = row(VmState.CLAIMED, stopped=True)
    judged = judge(stopped, seen(phase=None, vmi_uid=None, node=None, addresses=()), WarmWhen.AGENT, RULES, NOW)
    assert judged.verdict is Verdict.NOTED
    assert judged.reason is None


class TestWhatKeepsABoot:
    """What a VM that boots suffers from counts until it gets on, also between two attempts of which the cluster says nothing."""

    EARLIER = "import: 404 Not Found"

    @pytest.mark.parametrize("phase", [None, "Pending"])
    def test_a_problem_is_kept_until_there_is_a_pod(self, phase):
        vm = row(VmState.BOOTING, health=self.EARLIER, vmi_uid=None, node=None, addresses=())
        quiet = seen(phase=phase, vmi_uid=None, node=None, addresses=(), ready=False)
        assert verdict(vm, quiet) is Verdict.NOTHING

    @pytest.mark.parametrize("phase", ["Scheduling", "Scheduled", "Running"])
    def test_and_is_over_with_the_pod(self, phase):
        judged = judge(
            row(VmState.BOOTING, health=self.EARLIER), seen(phase=phase, ready=False), WarmWhen.AGENT, RULES, NOW
        )
        assert (judged.verdict, judged.reason) == (Verdict.NOTED, None if phase != "Running" else NOT_READY_YET)

    @pytest.mark.parametrize(
        ("warm_when", "given", "problem"),
        [
            (WarmWhen.AGENT, {}, NO_AGENT_YET),
            (WarmWhen.AGENT, {"phase": "Scheduled"}, None),
            (WarmWhen.AGENT, {"agent_connected": True, "ready": False}, NOT_READY_YET),
            (WarmWhen.AGENT, {"paused": True}, PAUSED),
            (WarmWhen.READY, {"ready": False}, NOT_READY_YET),
            (WarmWhen.READY, {"ready": False, "phase": "Scheduled"}, None),
            (WarmWhen.RUNNING, {"paused": True}, PAUSED),
        ],
    )
    def test_a_guest_that_runs_lacks_what_is_waited_for(self, warm_when, given, problem):
        without = seen(**{"agent_connected": False, **given})
        assert judge(row(VmState.BOOTING), without, warm_when, RULES, NOW).reason == problem

    def test_another_problem_takes_its_place(self):
        judged = judge(
            row(VmState.BOOTING, health=self.EARLIER), seen(phase=None, failure=BAD_IMAGE), WarmWhen.AGENT, RULES, NOW
        )
        assert judged.reason == "ErrImagePull: no such image"

    @pytest.mark.parametrize(
        ("given", "problem"),
        [({"paused": True}, "it is paused"), ({"agent_connected": False}, "its guest agent is not connected")],
    )
    def test_a_vm_that_was_warm_keeps_saying_what_it_lacks(self, given, problem):
        judged = judge(row(VmState.BOOTING, was_ready=True), seen(**given), WarmWhen.AGENT, RULES, NOW)
        assert (judged.verdict, judged.reason) == (Verdict.NOTED, problem)
