"""What is written to a VirtualMachinePool, as tables."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.pools import PoolSpec
from app.domain.vm_pools import (
    Backing,
    Change,
    DesiredVmPool,
    VmPoolStatus,
    Written,
    describe_problem,
    is_changed_by_others,
    lower_first,
    name_incidents,
    plan_change,
)
from app.ids import new_id, vm_pool_name

SEEN = VmPoolStatus(
    name="web-abc",
    uid="u1",
    generation=4,
    replicas=3,
    paused=False,
    unmanaged=True,
    deleting=False,
    held=True,
    ours=True,
    pool_id="p",
    labels={},
)
WISH = DesiredVmPool(planned=0, kept=3, paused=False, deleting=False, template="t")
WRITTEN = Written(uid="u1", replicas=3, generation=4, template="t", paused=False)


def desired(**given):
    return replace(WISH, **given)


@pytest.mark.parametrize(
    ("given", "replicas"),
    [
        ({"planned": 2}, 5),
        ({"planned": 2, "paused": True}, 3),
        ({"planned": 2, "deleting": True}, 3),
        ({"planned": 2, "template": None}, 3),
    ],
)
def test_only_what_is_to_be_made_now_raises_the_number(given, replicas):
    assert desired(**given).replicas == replicas


@pytest.mark.parametrize(
    ("wanted", "seen", "change"),
    [
        (desired(kept=2), SEEN, Change(replicas=2)),
        (desired(kept=2, planned=1), SEEN, Change()),
        (desired(planned=4), SEEN, Change()),
        (WISH, replace(SEEN, unmanaged=False), Change(restore=True)),
    ],
    ids=["fewer", "a replacement is wanted", "more comes after", "it could delete"],
)
def test_before_vms_are_detached_replicas_are_only_lowered(wanted, seen, change):
    assert lower_first(wanted, seen) == change
    assert bool(lower_first(wanted, seen)) == (change != Change())


@pytest.mark.parametrize(
    ("wanted", "written", "seen", "change"),
    [
        (WISH, WRITTEN, SEEN, Change()),
        (desired(planned=2), WRITTEN, SEEN, Change(replicas=5)),
        (desired(template="t2"), WRITTEN, SEEN, Change(template=True)),
        (desired(template=None), WRITTEN, SEEN, Change()),
        (WISH, WRITTEN, replace(SEEN, generation=5), Change(template=True)),
        (WISH, WRITTEN, replace(SEEN, held=False), Change(restore=True)),
        (WISH, WRITTEN, replace(SEEN, ours=False), Change(restore=True)),
        (desired(paused=True), WRITTEN, SEEN, Change(paused=True)),
        (WISH, replace(WRITTEN, paused=True), replace(SEEN, paused=True), Change(paused=False)),
        (WISH, WRITTEN, replace(SEEN, paused=True), Change()),
        (desired(paused=True), WRITTEN, replace(SEEN, paused=True), Change()),
    ],
    ids=[
        "as it is to be",
        "more",
        "another template",
        "nothing known of the template",
        "somebody wrote to it",
        "it would not wait for us",
        "without our labels",
        "paused here",
        "resumed here",
        "paused there",
        "paused here and there",
    ],
)
def test_what_is_left_to_be_written(wanted, written, seen, change):
    others = is_changed_by_others(written, seen)
    assert plan_change(wanted, written, seen, others_wrote=others) == change


@pytest.mark.parametrize(
    ("wanted", "written", "seen", "words"),
    [
        (WISH, WRITTEN, SEEN, []),
        (WISH, WRITTEN, replace(SEEN, generation=5, replicas=9), ["replicas was set to 9"]),
        (WISH, WRITTEN, replace(SEEN, generation=5, unmanaged=False), ["strategies were changed"]),
        (
            desired(paused=True),
            replace(WRITTEN, paused=True),
            replace(SEEN, generation=5),
            ["it was resumed in the cluster"],
        ),
        (WISH, WRITTEN, replace(SEEN, generation=5), ["its template is written again"]),
        (WISH, WRITTEN, replace(SEEN, generation=5, paused=True), []),
        (WISH, replace(WRITTEN, uid="u0"), replace(SEEN, generation=5), []),
        (WISH, replace(WRITTEN, generation=None), replace(SEEN, replicas=9), []),
    ],
    ids=["nothing", "scaled", "managed", "resumed", "something", "paused", "another object", "not ours before"],
)
def test_what_others_did_is_told(wanted, written, seen, words):
    told = name_incidents(wanted, written, seen)
    assert len(told) == len(words)
    assert all(word in text for word, text in zip(words, told, strict=True))


def test_what_keeps_it_from_making_vms_is_told():
    assert describe_problem(WISH, WRITTEN, SEEN) is None
    assert "paused by somebody" in describe_problem(WISH, WRITTEN, replace(SEEN, paused=True))
    assert describe_problem(desired(paused=True), WRITTEN, replace(SEEN, paused=True)) is None
    failing = replace(SEEN, failure="exceeded quota")
    assert describe_problem(WISH, WRITTEN, failing) is None, "nothing is to be made"
    assert "exceeded quota" in describe_problem(desired(planned=1), WRITTEN, failing)


@given(
    planned=st.integers(0, 9),
    kept=st.integers(0, 9),
    leaving=st.integers(0, 9),
    late=st.integers(0, 3),
    seen=st.integers(0, 30),
)
def test_nothing_more_is_made_than_is_planned(planned, kept, leaving, late, seen):
    """Whatever the number was: down, detached, up, and the controller makes what is missing at any moment between.

    `late` of the planned VMs it had made before, and no row knows them yet.
    """
    late = min(late, planned)
    wanted = desired(planned=planned, kept=kept)
    members = kept + leaving + late
    pool = replace(SEEN, replicas=seen)
    if (change := lower_first(wanted, pool)).replicas is not None:
        pool = replace(pool, replicas=change.replicas)
    for _ in range(leaving):
        members -= 1
        members = max(members, pool.replicas)  # the controller acts
    left = plan_change(wanted, WRITTEN, pool, others_wrote=False)
    pool = replace(pool, replicas=left.replicas if left.replicas is not None else pool.replicas)
    members = max(members, pool.replicas)
    assert members == kept + planned


@pytest.mark.parametrize("pool", ["w", "w" * 63, "a-" * 25 + "b"])
def test_names_leave_room_for_an_index_and_are_of_one_pool(pool):
    first, second = new_id(), new_id()
    names = {vm_pool_name(pool, pool_id, made) for pool_id in (first, second) for made in (1, 2, 11)}
    assert len(names) == 6
    assert all(len(name) <= 57 and name[0].isalpha() and name[-1].isalnum() for name in names)


def test_a_snapshots_disks_are_not_for_a_virtual_machine_pool():
    base = {"size": 1, "template": {}, "backing": Backing.VIRTUAL_MACHINE_POOL}
    with pytest.raises(ValueError, match="cannot start its VMs from a snapshot"):
        PoolSpec(**base, start_from={"snapshot": "ready"})
    assert PoolSpec(**base, start_from={"preload": "ubuntu"}).path == "preload"
    assert PoolSpec(size=1, template={}).backing is Backing.VIRTUAL_MACHINE
