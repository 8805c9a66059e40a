"""What follows from a preload's row and from what the cluster shows, as tables; and how long it will take."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.preload_lifecycle import (
    PRELOAD_TRANSITIONS,
    Estimate,
    Facts,
    NodePull,
    ObjectKind,
    OnNodes,
    PreloadObject,
    PreloadState,
    Present,
    PullState,
    Rules,
    Serving,
    Status,
    Volume,
    check_preload_transition,
    estimate,
    is_usable,
    next_step,
)
from app.domain.preloads import PreloadSpec
from app.errors import IllegalTransition

NOW = datetime(2026, 1, 12, 9, 0, tzinfo=UTC)
ID = UUID(int=7)
RULES = Rules(stall_seconds=600)
S = PreloadState
DISK = PreloadSpec.model_validate({"image": {"http": {"url": "https://images.example/a.qcow2"}}, "size": "10Gi"})
ALWAYS = DISK.model_copy(update={"policy": "Always"})
NEVER = DISK.model_copy(update={"policy": "Never"})
IMAGE = PreloadSpec.model_validate({"image": {"container": "registry.example/a:1"}})
VOLUME = Volume("pre-1", "12Gi", "fast", ("ReadWriteOnce",), "Block")
ABSENT = Present(None, "there is nothing")


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def facts(spec=ALWAYS, state=S.IMPORTING, generation=2, *, deleting=False, **status):
    return Facts(spec, generation, state, deleting, Status(**status))


def volume(generation=2, **shown):
    return PreloadObject(ObjectKind.VOLUME, f"pre-{generation}", f"uid-{generation}", ID, generation, **shown)


def finished(generation=2):
    return volume(generation, phase="Succeeded", volume=replace(VOLUME, claim=f"pre-{generation}"))


def daemon_set(generation=2, wanted=2, **nodes):
    told = tuple(
        NodePull(node, PullState(how)) if how in list(PullState) else NodePull(node, PullState.FAILED, how)
        for node, how in nodes.items()
    )
    return PreloadObject(
        ObjectKind.NODES, f"set-{generation}", f"uid-{generation}", ID, generation, nodes=told, wanted=wanted
    )


def serves(generation, *, adopted=False):
    return Serving(replace(VOLUME, claim=f"pre-{generation}"), generation, adopted, ago(1000))


def decide(facts, *seen, present=None):
    return next_step(facts, seen, present, RULES, NOW)


class TestAVolume:
    def test_a_planned_one_is_made(self):
        step = decide(facts(state=S.PLANNED))
        assert (step.state, step.make, step.begin_anew) == (S.IMPORTING, True, False)

    def test_what_was_made_before_the_row_could_say_so_is_found(self):
        step = decide(facts(state=S.PLANNED), volume(phase="ImportInProgress", progress=10.0))
        assert (step.state, step.make) == (S.IMPORTING, False)

    def test_its_progress_is_followed(self):
        before = {"phase": "ImportInProgress", "samples": ((ago(10), 20.0),), "moved_at": ago(10)}
        step = decide(facts(**before), volume(phase="ImportInProgress", progress=30.0))
        assert step.status.samples == ((ago(10), 20.0), (NOW, 30.0))
        assert step.status.moved_at == NOW

    def test_progress_that_stands_still_does_not_move_it(self):
        before = {"phase": "ImportInProgress", "samples": ((ago(10), 20.0),), "moved_at": ago(10)}
        step = decide(facts(**before), volume(phase="ImportInProgress", progress=20.0))
        assert step.status.moved_at == ago(10)

    def test_an_importer_that_begins_again_leaves_its_old_pace_behind(self):
        before = {"phase": "ImportInProgress", "samples": ((ago(10), 60.0),), "moved_at": ago(10)}
        step = decide(facts(**before), volume(phase="ImportInProgress", progress=5.0))
        assert step.status.samples == ((NOW, 5.0),)

    def test_a_complete_one_serves(self):
        step = decide(facts(), finished())
        assert step.state is S.READY
        assert step.status.serving == Serving(replace(VOLUME, claim="pre-2"), 2, adopted=False, since=NOW)

    def test_since_when_it_serves_does_not_change_with_each_look(self):
        step = decide(facts(state=S.READY, serving=serves(2)), finished())
        assert step.status.serving == serves(2)

    @pytest.mark.parametrize(
        ("shown", "words"),
        [
            ({"phase": "Failed", "failed": True, "trouble": "ChecksumError: x"}, "failed at 60 %: ChecksumError: x"),
            ({"restarts": 3, "trouble": "Error: 404"}, "3 restarts did not help: Error: 404"),
            (
                {"phase": "ImportInProgress", "progress": 60.0},
                "made no progress at 60 % in phase ImportInProgress for 700 s",
            ),
        ],
    )
    def test_a_failed_import_is_given_up_with_its_reason_and_removed(self, shown, words):
        status = {"phase": "ImportInProgress", "samples": ((ago(700), 60.0),), "moved_at": ago(700)}
        shown = {"phase": "ImportInProgress", "progress": 60.0, **shown}
        step = decide(facts(**status), volume(**shown))
        assert (step.state, step.paces) == (S.FAILED, True)
        assert [each.generation for each in step.remove] == [2]
        assert words in step.reason
        assert step.status.failure == step.reason

    def test_one_that_never_binds_is_given_up_too(self):
        trouble = "Pending: PVC pre-2 Pending"
        step = decide(facts(phase="Pending", moved_at=ago(700)), volume(phase="Pending", trouble=trouble))
        assert step.state is S.FAILED
        assert trouble in step.reason

    def test_restarts_alone_are_no_failure(self):
        assert decide(facts(), volume(phase="ImportInProgress", restarts=9)).state is S.IMPORTING

    def test_after_a_failure_what_is_left_is_removed_again_and_does_not_count_twice(self):
        step = decide(facts(state=S.FAILED, failure="it broke"), volume(phase="ImportInProgress", progress=70.0))
        assert (step.state, step.reason, step.paces) == (S.FAILED, "it broke", False)
        assert len(step.remove) == 1

    def test_a_failed_one_that_is_going_is_waited_for(self):
        step = decide(facts(state=S.FAILED, failure="it broke"), volume(deleting=True))
        assert (step.state, step.remove, step.begin_anew) == (S.FAILED, (), False)

    def test_a_failed_one_that_is_gone_is_begun_anew_under_the_next_generation(self):
        step = decide(facts(state=S.FAILED, failure="it broke"))
        assert (step.state, step.begin_anew, step.make) == (S.PLANNED, True, False)
        assert step.status.failure == "it broke"

    @pytest.mark.parametrize("state", [S.IMPORTING, S.READY])
    @pytest.mark.parametrize("seen", [(), (volume(deleting=True),)], ids=["gone", "going"])
    def test_one_that_others_remove_never_gives_its_name_to_another(self, state, seen):
        step = decide(facts(state=state, serving=serves(2)), *seen)
        assert (step.state, step.begin_anew, step.make) == (S.PLANNED, True, False)
        assert step.status.serving is None

    def test_a_volume_that_lost_its_claim_serves_no_more(self):
        step = decide(facts(state=S.READY, serving=serves(2)), volume(phase="Succeeded"))
        assert step.state is S.IMPORTING
        assert step.status.serving is None


class TestARefresh:
    def test_the_old_one_serves_until_the_new_one_is_there(self):
        step = decide(facts(serving=serves(1)), finished(1), volume(phase="ImportInProgress"))
        assert step.status.serving == serves(1)
        assert (step.remove, step.superseded) == ((), ())

    def test_then_it_is_superseded(self):
        step = decide(facts(serving=serves(1)), finished(1), finished(2))
        assert step.status.serving.generation == 2
        assert [each.generation for each in step.superseded] == [1]
        assert step.remove == ()

    def test_half_made_ones_of_before_go_at_once(self):
        step = decide(facts(generation=3, serving=serves(1)), finished(1), volume(2), volume(3))
        assert [each.generation for each in step.remove] == [2]
        assert step.superseded == ()

    def test_a_complete_one_that_serves_no_more_waits_for_its_clones(self):
        step = decide(facts(state=S.PLANNED), finished(1))
        assert [each.generation for each in step.superseded] == [1]
        assert step.make

    def test_a_failing_refresh_leaves_what_serves(self):
        seen = (finished(1), volume(phase="Failed", failed=True))
        step = decide(facts(serving=serves(1)), *seen)
        assert step.state is S.FAILED
        assert step.status.serving == serves(1)
        assert [each.generation for each in step.remove] == [2]
        assert is_usable(ALWAYS, step.status)

    def test_what_was_adopted_serves_on_while_always_imports(self):
        step = decide(facts(state=S.PLANNED, serving=serves(1, adopted=True)))
        assert step.make
        assert step.status.serving.adopted


class TestWhatStandsThereAlready:
    def test_a_complete_volume_is_used_and_nothing_imported(self):
        step = decide(facts(DISK, S.PLANNED), present=Present(VOLUME, "it was there"))
        assert (step.state, step.make, step.reason) == (S.READY, False, "it was there")
        assert step.status.serving.adopted

    def test_where_there_is_none_it_is_imported(self):
        assert decide(facts(DISK, S.PLANNED), present=ABSENT).make

    def test_never_imports_nothing_and_says_so(self):
        step = decide(facts(NEVER, S.PLANNED), present=ABSENT)
        assert (step.state, step.make, step.reason) == (S.ABSENT, False, "there is nothing")

    def test_never_takes_it_when_it_comes(self):
        assert decide(facts(NEVER, S.ABSENT), present=Present(VOLUME, "")).state is S.READY

    def test_one_that_goes_is_imported(self):
        step = decide(facts(DISK, S.READY, serving=serves(2, adopted=True)), present=ABSENT)
        assert (step.state, step.begin_anew) == (S.PLANNED, True)
        assert step.status.serving is None

    def test_never_is_absent_when_it_goes(self):
        step = decide(facts(NEVER, S.READY, serving=serves(2, adopted=True)), present=ABSENT)
        assert step.state is S.ABSENT
        assert not is_usable(NEVER, step.status)


class TestNodes:
    def test_a_planned_one_is_made(self):
        assert decide(facts(IMAGE, S.PLANNED)).make

    @pytest.mark.parametrize(
        ("nodes", "wanted", "state"),
        [
            ({}, -1, S.PULLING),
            ({"a": "pulling", "b": "pulling"}, 2, S.PULLING),
            ({"a": "pulled", "b": "pulling"}, 2, S.PULLING),
            ({"a": "pulled", "b": "ErrImagePull: gone"}, 2, S.FAILED),
            ({"a": "pulled"}, 2, S.PULLING),
            ({"a": "pulled", "b": "pulled"}, 2, S.READY),
            ({}, 0, S.PULLING),
        ],
    )
    def test_it_stands_as_its_nodes_do(self, nodes, wanted, state):
        step = decide(facts(IMAGE, S.PULLING), daemon_set(wanted=wanted, **nodes))
        assert (step.state, step.remove, step.begin_anew) == (state, (), False)

    def test_a_failure_names_the_node_and_the_kubelets_reason(self):
        step = decide(facts(IMAGE, S.PULLING), daemon_set(a="pulled", b="ErrImagePull: no such image"))
        assert step.reason == "pulled on 1 of 2 nodes; b: ErrImagePull: no such image"

    def test_it_is_usable_once_it_is_on_one_node(self):
        step = decide(facts(IMAGE, S.PULLING), daemon_set(a="pulled", b="pulling"))
        assert step.status.on == OnNodes(2, 1, 2)
        assert step.status.progress == 50
        assert is_usable(IMAGE, step.status)

    def test_nodes_that_recover_make_a_failed_one_ready(self):
        step = decide(facts(IMAGE, S.FAILED, failure="x"), daemon_set(a="pulled", b="pulled"))
        assert (step.state, step.status.failure) == (S.READY, None)

    def test_no_node_for_it_is_told(self):
        assert "node selector" in decide(facts(IMAGE, S.PULLING), daemon_set(wanted=0)).reason

    def test_a_refresh_keeps_the_old_pods_until_the_new_ones_have_the_image(self):
        old = daemon_set(1, a="pulled", b="pulled")
        step = decide(facts(IMAGE, S.PULLING), old, daemon_set(2, a="pulling", b="pulling"))
        assert step.status.on.generation == 1
        assert step.remove == ()
        step = decide(facts(IMAGE, S.PULLING), old, daemon_set(2, a="pulled", b="pulled"))
        assert [each.generation for each in step.remove] == [1]

    @pytest.mark.parametrize("state", [S.PULLING, S.READY, S.FAILED])
    def test_one_that_is_gone_is_made_anew(self, state):
        step = decide(facts(IMAGE, state))
        assert (step.state, step.begin_anew, step.make) == (S.PLANNED, True, False)


class TestItsEnd:
    def test_everything_goes(self):
        seen = (finished(1), volume(2, deleting=True), daemon_set(3))
        step = decide(facts(deleting=True, serving=serves(1)), *seen)
        assert step.state is S.DELETING
        assert [each.generation for each in step.remove] == [3]
        assert [each.generation for each in step.superseded] == [1]

    def test_it_is_over_when_nothing_is_left(self):
        assert decide(facts(deleting=True)).state is S.DELETED


IMPORTS = [S.PLANNED, S.IMPORTING, S.READY, S.FAILED, S.DELETING]
REACHED = [
    (ALWAYS, IMPORTS),
    (DISK, IMPORTS),
    (NEVER, [*IMPORTS, S.ABSENT]),
    (IMAGE, [S.PLANNED, S.PULLING, S.READY, S.FAILED, S.DELETING]),
]
PROGRESS = st.none() | st.floats(0, 100)
SEEN = st.builds(
    volume,
    st.integers(1, 3),
    phase=st.sampled_from(["", "Pending", "ImportInProgress", "Succeeded", "Failed"]),
    progress=PROGRESS,
    restarts=st.integers(0, 4),
    failed=st.booleans(),
    deleting=st.booleans(),
    trouble=st.none() | st.just("Error: x"),
    volume=st.none() | st.just(VOLUME),
)
ANY = st.lists(SEEN | st.builds(daemon_set, st.integers(1, 3), st.integers(-1, 2)), max_size=3)


@given(
    found=st.sampled_from([(spec, state) for spec, states in REACHED for state in states]),
    serving=st.none() | st.builds(serves, st.integers(1, 2), adopted=st.booleans()),
    seen=ANY,
    there=st.booleans(),
)
def test_no_name_comes_back_and_nothing_that_serves_is_removed(found, serving, seen, there):
    spec, state = found
    seen = tuple({(each.kind, each.generation): each for each in seen}.values())
    asks = spec.policy != "Always" and not spec.is_container
    present = Present(VOLUME if there else None, "") if asks else None
    deleting = state is S.DELETING
    step = next_step(facts(spec, state, deleting=deleting, serving=serving), seen, present, RULES, NOW)
    check_preload_transition(state, step.state)
    kind = ObjectKind.NODES if spec.is_container else ObjectKind.VOLUME
    current = [each for each in seen if each.kind is kind and each.generation == 2]
    assert not (step.make and (current or step.begin_anew or state is not S.PLANNED))
    kept = step.status.serving
    if kept is not None and not kept.adopted and not deleting and not spec.is_container:
        going = {each.generation for each in (*step.remove, *step.superseded) if each.kind is ObjectKind.VOLUME}
        assert kept.generation not in going


def test_a_transition_outside_the_table_raises():
    with pytest.raises(IllegalTransition):
        check_preload_transition(S.DELETED, S.PLANNED)
    with pytest.raises(IllegalTransition):
        check_preload_transition(S.DELETING, S.READY)
    assert set(PRELOAD_TRANSITIONS) == set(S)


class TestEstimates:
    def test_nothing_is_known_at_first(self):
        assert estimate((), 100, NOW) == Estimate()

    def test_pace_and_end_follow_from_the_last_minute(self):
        samples = ((ago(300), 1.0), (ago(40), 20.0), (NOW, 40.0))
        found = estimate(samples, 1000, NOW)
        assert (found.percent, found.bytes_done) == (40.0, 400)
        assert found.bytes_per_second == pytest.approx(5.0)
        assert found.ends_at == NOW + timedelta(seconds=120)

    def test_a_pace_that_stands_still_slows_down_with_each_look(self):
        samples = ((ago(80), 20.0), (ago(40), 40.0))
        assert estimate(samples, 1000, NOW).bytes_per_second == pytest.approx(2.5)

    def test_one_sample_is_no_pace(self):
        assert estimate(((NOW, 40.0),), 1000, NOW) == Estimate(40.0, 400)

    def test_without_a_size_there_are_no_bytes(self):
        assert estimate(((ago(10), 10.0), (NOW, 20.0)), None, NOW).bytes_per_second is None
