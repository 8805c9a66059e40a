"""Tables of what one plan does: GIVEN a pool as its rows stand, WHEN it is planned, THEN this is done."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.domain.planning import InFlightVm, PoolSnapshot, ReadyVm, plan, target

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def ready(number, *, current=True, age=timedelta(minutes=1), going=None, last=False):
    return ReadyVm(id=UUID(int=number), ready_at=NOW - age, current=current, going=going, last=last)


def coming(number, *, current=True, asked=False, leased=False, age=timedelta(seconds=10)):
    return InFlightVm(id=UUID(int=number), created_at=NOW - age, current=current, asked=asked, leased=leased)


def pool(**given):
    base = {
        "size": 4,
        "min_available": 0,
        "auto_replenish": True,
        "max_vms": None,
        "max_concurrent_creates": 10,
        "max_ready_age": None,
    }
    return PoolSnapshot(**{**base, **given})


def readies(count, **how):
    return tuple(ready(number, **how) for number in range(1, count + 1))


def comings(count, **how):
    return tuple(coming(number, **how) for number in range(101, count + 101))


CREATES = {
    "an empty pool is filled": (pool(), 4),
    "a full pool is left alone": (pool(ready=readies(4)), 0),
    "what is missing is made": (pool(ready=readies(3)), 1),
    "what is on its way counts": (pool(ready=readies(1), in_flight=comings(2)), 1),
    "what is planned and not asked for counts as well": (pool(in_flight=comings(4)), 0),
    "a claim is backfilled": (pool(ready=readies(3), claimed=1), 1),
    "a claim that waits wants one more": (pool(ready=readies(4), waiting=2), 2),
    "waiting claims make even an empty size grow": (pool(size=0, waiting=3), 3),
    "creates are paced": (pool(size=40, max_concurrent_creates=6), 6),
    "the pace counts what is on its way": (pool(size=40, max_concurrent_creates=6, in_flight=comings(4)), 2),
    "a full pace makes none": (pool(size=40, max_concurrent_creates=4, in_flight=comings(4)), 0),
    "max_vms caps warm and claimed": (pool(max_vms=5, ready=readies(2), claimed=2), 1),
    "what leaves still takes room": (pool(max_vms=5, ready=readies(2), claimed=1, leaving=2), 0),
    "no room, no create": (pool(max_vms=4, claimed=4), 0),
    "no more than the nodes take": (pool(room=3, room_note="full"), 3),
    "the room counts beside all that is on its way": (pool(in_flight=comings(2), room=1, room_note="full"), 1),
    "no room on the nodes, no create": (pool(room=0, room_note="full"), 0),
    "more room than is needed changes nothing": (pool(room=9), 4),
    "one VM finds out whether the cluster takes creates again": (pool(put_off=True), 1),
    "while it takes none, nothing more is planned": (pool(put_off=True, in_flight=comings(1), waiting=50), 0),
    "claims that wait get no more than the nodes take": (pool(size=0, waiting=5, room=2, room_note="full"), 2),
    "more claimed than max_vms after an edit": (pool(max_vms=4, claimed=6), 0),
    "a drained pool is not refilled by itself": (pool(auto_replenish=False, ready=readies(1), drained=3), 0),
    "a VM lost without a claim is replaced all the same": (pool(auto_replenish=False, ready=readies(1), drained=2), 1),
    "after replenish it is filled again": (pool(auto_replenish=False, ready=readies(1), drained=0), 3),
    "more drained than its size": (pool(auto_replenish=False, drained=9), 0),
    "a drained pool makes one for a claim that waits": (pool(auto_replenish=False, drained=4, waiting=1), 1),
    "a paused pool makes none": (pool(paused=True), 0),
    "a stalled pool makes none": (pool(stalled=True), 0),
    "a pool that backs off makes none": (pool(backoff_until=NOW + timedelta(seconds=5)), 0),
    "a backoff that is over is over": (pool(backoff_until=NOW - timedelta(seconds=5)), 4),
    "a pool that is being deleted makes none": (pool(deleting=True, waiting=2), 0),
    "a rotation begins with its surge": (pool(size=8, ready=readies(8, current=False)), 2),
    "a small pool's surge is one": (pool(size=2, ready=readies(2, current=False)), 1),
    "the surge counts what is on its way": (
        pool(size=8, ready=readies(8, current=False), in_flight=comings(2)),
        0,
    ),
    "a rotation may begin while claims wait": (pool(size=4, ready=(), in_flight=comings(4), waiting=1), 1),
}


@pytest.mark.parametrize(("given", "create"), CREATES.values(), ids=CREATES)
def test_the_plan_creates_the_vms_that_are_missing(given, create):
    step = plan(given, NOW)
    assert step.create == create
    assert step.remove == ()


REMOVES = {
    "the oldest above the size": (
        pool(size=2, ready=(ready(1, age=HOUR), ready(2), ready(3, age=2 * HOUR), ready(4))),
        [3, 1],
    ),
    "stale ones before the oldest": (pool(size=2, ready=(ready(1, age=HOUR), ready(2, current=False), ready(3))), [2]),
    "an old template's before the aged": (
        pool(size=1, max_ready_age=HOUR, ready=(ready(1, age=3 * HOUR), ready(2, current=False), ready(3))),
        [2, 1],
    ),
    "down to nothing": (pool(size=0, ready=readies(2, age=HOUR)), [1, 2]),
    "a rotation takes an old one for each fresh one": (
        pool(ready=(*readies(4, current=False), ready(11), ready(12))),
        [1, 2],
    ),
    "a rotation takes none before a fresh one has come": (
        pool(ready=readies(4, current=False), in_flight=comings(1)),
        [],
    ),
    "a stale one goes first where max_vms leaves no room": (
        pool(max_vms=4, min_available=3, ready=readies(4, current=False)),
        [1],
    ),
    "as many as may be made at once": (
        pool(size=8, max_vms=8, max_concurrent_creates=3, ready=readies(8, current=False)),
        [1, 2, 3],
    ),
    "but the floor is kept": (pool(max_vms=4, min_available=4, ready=readies(4, current=False)), []),
    "and none while one is leaving already": (
        pool(max_vms=4, leaving=1, ready=readies(3, current=False)),
        [],
    ),
    "one that is on its way holds nothing back": (
        pool(max_vms=4, in_flight=comings(1), ready=readies(3, current=False)),
        [1, 2, 3],
    ),
    "and none while no new one would come: stalled": (
        pool(max_vms=4, stalled=True, ready=readies(4, current=False)),
        [],
    ),
    "nor while it backs off": (
        pool(max_vms=4, backoff_until=NOW + HOUR, ready=readies(4, current=False)),
        [],
    ),
    "but once the backoff is over": (
        pool(max_vms=4, backoff_until=NOW - HOUR, ready=readies(4, current=False)),
        [1, 2, 3, 4],
    ),
    "an aged one goes first where max_vms leaves no room": (
        pool(max_vms=4, max_ready_age=HOUR, ready=(*readies(3), ready(4, age=HOUR))),
        [4],
    ),
    "a lowered max_vms lets ready ones go": (pool(max_vms=4, claimed=2, ready=readies(4)), [1, 2]),
    "a lowered max_vms keeps the floor": (pool(max_vms=4, min_available=3, claimed=4, ready=readies(4)), [1]),
    "a paused pool keeps all": (pool(size=0, paused=True, ready=readies(3)), []),
    "a deleted pool keeps none, whatever its floor": (
        pool(deleting=True, min_available=4, ready=readies(3)),
        [1, 2, 3],
    ),
    "a claim that waits holds what it will get": (pool(size=2, waiting=1, ready=readies(3)), []),
}


@pytest.mark.parametrize(("given", "removed"), REMOVES.values(), ids=REMOVES)
def test_removes(given, removed):
    assert [vm.int for vm in plan(given, NOW).remove] == removed


CANCELS = {
    "the youngest that nobody has asked for": (
        pool(size=2, in_flight=(coming(1, age=HOUR), coming(2), coming(3, asked=True))),
        [2],
    ),
    "then those that boot, the youngest first": (
        pool(size=0, in_flight=(coming(1, asked=True, age=HOUR), coming(2, asked=True), coming(3))),
        [3, 2, 1],
    ),
    "never one that a worker is at": (pool(size=0, in_flight=(coming(1, leased=True, asked=True), coming(2))), [2]),
    "every one of an old template": (
        pool(in_flight=(coming(1, current=False), coming(2, current=False, asked=True), coming(3))),
        [1, 2],
    ),
    "below the floor one that boots is let through": (
        pool(min_available=1, in_flight=(coming(1, current=False), coming(2, current=False, asked=True))),
        [1],
    ),
    "none while paused": (pool(size=0, paused=True, in_flight=comings(2)), []),
    "all but the leased of a pool that is being deleted": (
        pool(deleting=True, in_flight=(coming(1), coming(2, asked=True, leased=True), coming(3, asked=True))),
        [1, 3],
    ),
    "what a lowered max_vms has no room for": (
        pool(max_vms=4, claimed=3, in_flight=(coming(1, age=HOUR), coming(2))),
        [2],
    ),
}


@pytest.mark.parametrize(("given", "cancelled"), CANCELS.values(), ids=CANCELS)
def test_the_plan_cancels_vms_that_are_not_needed(given, cancelled):
    assert [vm.int for vm in plan(given, NOW).cancel] == cancelled


NOTES = {
    "stalled": (pool(stalled=True), "stalled"),
    "backing off": (pool(backoff_until=NOW + HOUR), "backing off after a failure until 2026-03-01T13:00:00+00:00"),
    "paused": (pool(paused=True), "paused"),
    "deleting": (pool(deleting=True), "being deleted"),
    "paced": (pool(max_concurrent_creates=1), "max_concurrent_creates is 1"),
    "capped": (pool(max_vms=4, claimed=3), "max_vms is 4: 3 claimed, 0 leaving"),
    "capped, and by how much": (pool(max_vms=5, claimed=3), "raise it by 2 for 4 more VMs"),
    "rotating": (pool(ready=readies(4, current=False)), "rotating"),
}


@pytest.mark.parametrize(("given", "said"), NOTES.values(), ids=NOTES)
def test_says_what_keeps_it_from_its_size(given, said):
    assert said in "; ".join(plan(given, NOW).notes)


def test_a_full_pool_has_nothing_to_say():
    step = plan(pool(ready=readies(4), min_available=2), NOW)
    assert step.is_idle
    assert step.notes == ()
    assert not step.urgent
    assert step.floor == 2
    assert step.look_again_at is None


@pytest.mark.parametrize(("count", "urgent"), [(0, True), (1, True), (2, False), (4, False)])
def test_is_urgent_below_the_floor(count, urgent):
    assert plan(pool(min_available=2, ready=readies(count)), NOW).urgent is urgent


def test_is_urgent_below_the_floor_even_while_paused():
    assert plan(pool(min_available=2, paused=True), NOW).urgent


def test_looks_again_when_the_backoff_ends_or_the_next_vm_has_aged():
    backing_off = pool(backoff_until=NOW + timedelta(minutes=5), ready=readies(1))
    assert plan(backing_off, NOW).look_again_at == NOW + timedelta(minutes=5)
    ageing = pool(
        size=2, max_ready_age=HOUR, ready=(ready(1, age=timedelta(minutes=50)), ready(2, age=timedelta(minutes=20)))
    )
    assert plan(ageing, NOW).look_again_at == NOW + timedelta(minutes=10)


def test_a_vm_ages_at_the_moment_it_was_announced_for():
    vm = ready(1, age=timedelta(minutes=50))
    given = pool(size=1, max_ready_age=HOUR, ready=(vm,))
    moment = plan(given, NOW).look_again_at
    assert moment is not None
    assert plan(given, moment - timedelta(microseconds=1)).create == 0
    assert plan(given, moment).create == 1  # its replacement comes before it goes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pool(), 4),
        (pool(waiting=3), 7),
        (pool(auto_replenish=False, drained=1), 3),
        (pool(auto_replenish=False, drained=7, waiting=2), 2),
        (pool(deleting=True, waiting=2), 0),
    ],
)
def test_target(given, expected):
    assert target(given) == expected


def test_what_waits_for_room_says_so_and_wakes_with_it():
    short = plan(pool(room=3, room_note="the nodes are full"), NOW)
    assert (short.waits_for_room, short.notes) == (True, ("the nodes are full",))
    assert not plan(pool(room=4, room_note="the nodes are full"), NOW).waits_for_room
    assert not plan(pool(paused=True, room=0, room_note="the nodes are full"), NOW).waits_for_room
    assert not plan(pool(), NOW).waits_for_room


def test_room_says_nothing_against_the_vms_that_are_there():
    full = plan(pool(size=1, ready=readies(4), room=0, room_note="the nodes are full"), NOW)
    assert (len(full.remove), full.create) == (3, 0)


FULL = {"room": 0, "room_note": "the nodes are full"}
ROLLING = {
    "on full nodes one stale VM makes room": (pool(ready=readies(4, current=False), **FULL), 1),
    "and no second while the first leaves": (pool(ready=readies(3, current=False), leaving=1, **FULL), 0),
    "nor where the next did not fit in its place": (pool(ready=readies(3, current=False), **FULL), 0),
    "nor while the next is on its way": (pool(ready=readies(4, current=False), in_flight=comings(1), **FULL), 0),
    "nor below the floor": (pool(min_available=4, ready=readies(4, current=False), **FULL), 0),
    "nor where the pool is stalled": (pool(stalled=True, ready=readies(4, current=False), **FULL), 0),
    "nor where the next would never fit": (pool(ready=readies(4, current=False), never_fits=True, **FULL), 0),
    "nor where nothing is stale": (pool(ready=readies(4), **FULL), 0),
    "nor where there is room": (pool(ready=readies(4, current=False), room=1, room_note="nearly full"), 0),
    "nor where nobody knows": (pool(ready=readies(4, current=False)), 0),
}


@pytest.mark.parametrize(("given", "removed"), ROLLING.values(), ids=ROLLING)
def test_a_rotation_on_full_nodes_goes_one_by_one(given, removed):
    assert len(plan(given, NOW).remove) == removed


def test_only_the_limit_that_decides_is_told():
    capped = plan(pool(size=2, max_vms=2, ready=readies(2, current=False), max_concurrent_creates=1), NOW)
    assert capped.notes == ("max_vms is 2: 0 claimed, 0 leaving; raise it by 1 for 1 more VM",)


GONE = {"going": "node-1"}
MOVES = {
    "a VM on a node that is going gets a successor first": (pool(size=2, ready=(ready(1), ready(2, **GONE))), 1, []),
    "and goes once that is ready": (pool(size=2, ready=(ready(1, age=HOUR), ready(2, **GONE), ready(3))), 0, [2]),
    "after those of an old template": (
        pool(size=1, ready=(ready(1, age=HOUR, **GONE), ready(2, current=False), ready(3))),
        0,
        [2, 1],
    ),
    "not more at once than a rotation": (pool(size=8, ready=readies(8, **GONE)), 2, []),
    "not where its successor is on its way": (pool(size=2, ready=readies(2, **GONE), in_flight=comings(1)), 0, []),
    "not where the nodes have no room": (pool(size=2, ready=readies(2, **GONE), room=0, room_note="full"), 0, []),
    "not first where max_vms leaves no room": (pool(size=2, max_vms=2, ready=readies(2, **GONE)), 0, []),
    "not below the floor": (pool(size=2, min_available=2, ready=(ready(1, **GONE), ready(2))), 1, []),
    "not while the pool is paused": (pool(size=2, paused=True, ready=readies(2, **GONE)), 0, []),
    "nor while it backs off": (pool(size=2, backoff_until=NOW + HOUR, ready=readies(2, **GONE)), 0, []),
}


@pytest.mark.parametrize(("given", "created", "removed"), MOVES.values(), ids=MOVES)
def test_vms_leave_a_node_that_is_going_one_after_another(given, created, removed):
    step = plan(given, NOW)
    assert (step.create, [vm.int for vm in step.remove]) == (created, removed)


OLD = {"current": False}
HELD = {
    "at the floor and the cap": (
        pool(size=2, min_available=2, max_vms=2, ready=readies(2, **OLD)),
        (
            "2 VMs of the old template: min_available and max_vms leave no room to replace them; "
            "raise max_vms by 1 or lower min_available by 1"
        ),
    ),
    "where claims use the cap": (
        pool(size=2, min_available=2, max_vms=3, claimed=3, ready=readies(1, **OLD)),
        (
            "1 VM of the old template: min_available and max_vms leave no room to replace them; "
            "raise max_vms by 2 or lower min_available by 2"
        ),
    ),
    "too old at the floor and the cap": (
        pool(size=2, min_available=2, max_vms=2, max_ready_age=HOUR, ready=(ready(1), ready(2, age=HOUR))),
        (
            "1 VM older than max_ready_age_seconds: min_available and max_vms leave no room to replace them; "
            "raise max_vms by 1 or lower min_available by 1"
        ),
    ),
    "on a node that is going, at the cap": (
        pool(size=2, max_vms=2, ready=(ready(1), ready(2, **GONE))),
        "1 VM on nodes that are cordoned or going (node-1): max_vms leaves no room to replace them; raise it by 1",
    ),
    "on a node that is going, without room elsewhere": (
        pool(size=1, ready=readies(1, **GONE), room=0, room_note="the nodes are full"),
        "1 VM on nodes that are cordoned or going (node-1): the nodes are full",
    ),
    "of both kinds": (
        pool(
            size=2, min_available=2, ready=(ready(1, **GONE), ready(2, **OLD)), room=0, room_note="the nodes are full"
        ),
        (
            "1 VM of the old template and 1 VM on nodes that are cordoned or going (node-1): the nodes are full; "
            "min_available leaves none to remove first; lower it by 1"
        ),
    ),
    "where the pool backs off": (
        pool(backoff_until=NOW + HOUR, ready=readies(4, **OLD)),
        "4 VMs of the old template: backing off after a failure until 2026-03-01T13:00:00+00:00",
    ),
    "from before a rotation": (
        pool(size=1, min_available=1, max_vms=1, rotated=True, ready=readies(1, **OLD)),
        (
            "1 VM of the old template or from before the rotation: min_available and max_vms leave no room to replace them; "
            "raise max_vms by 1 or lower min_available by 1"
        ),
    ),
    "not where nothing is to be replaced": (pool(size=2, min_available=2, max_vms=2, ready=readies(2)), None),
    "not where the next is created": (pool(ready=readies(4, **OLD)), None),
    "not where the next is on its way": (pool(ready=readies(4, **OLD), in_flight=comings(1)), None),
    "not where one goes first": (pool(max_vms=4, ready=readies(4, **OLD)), None),
    "not while one is leaving": (pool(max_vms=4, leaving=1, ready=readies(3, **OLD)), None),
}


@pytest.mark.parametrize(("given", "held"), HELD.values(), ids=HELD)
def test_vms_that_are_to_be_replaced_and_stay_are_told_with_what_would_help(given, held):
    assert plan(given, NOW).held == held


PLACES = {
    "those on a node that is going go last": ((ready(1), ready(2, **GONE), ready(3, **GONE)), [2, 3], []),
    "but once": ((ready(1), ready(2, **GONE, last=True)), [], []),
    "those whose node stays return": ((ready(1, last=True), ready(2)), [], [1]),
    "others stay where they are": ((ready(1), ready(2)), [], []),
}


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(("vms", "last", "back"), PLACES.values(), ids=PLACES)
def test_vms_on_a_node_that_is_going_are_handed_out_last(vms, last, back, paused):
    step = plan(pool(size=len(vms), ready=vms, paused=paused), NOW)
    assert ([vm.int for vm in step.put_last], [vm.int for vm in step.put_back]) == (last, back)


def test_that_creates_are_put_off_is_no_note_because_the_status_tells_it():
    step = plan(pool(put_off=True, in_flight=comings(1)), NOW)
    assert (step.create, step.notes, step.waits_for_room) == (0, (), False)
