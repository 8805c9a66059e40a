"""Which path a claim that describes its VM takes, and what it is told of the others."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.path_selection import ENOUGH, Choice, NoChoice, PathOption, Record, choose, estimate
from app.domain.paths import StartPath
from app.domain.pools import StartFrom
from app.domain.statistics import BootTimes

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ALL = tuple(StartPath)


def times(p50, *, count=10, p95=None):
    return BootTimes(count, p50, p95 if p95 is not None else 1.2 * p50)


def pool(wait=None, *, count=10, **given):
    own = times(wait, count=count) if wait is not None else BootTimes()
    return PathOption(StartPath.POOL, "web", own=own, basis="the pool's boots", **given)


def no_pool():
    return PathOption(StartPath.POOL, available=False, why="no pool has this shape")


def snapshot(p50=None, **given):
    return PathOption(StartPath.SNAPSHOT, "snap", **({"own": times(p50)} if p50 else {}), **given)


def preload(p50=None, **given):
    return PathOption(StartPath.PRELOAD, "image", **({"own": times(p50)} if p50 else {}), **given)


def cold(p50=None, **given):
    return PathOption(StartPath.COLD, **({"own": times(p50)} if p50 else {}), **given)


def closed(option):
    return PathOption(option.path, option.source, available=False, why=f"{option.path} is closed")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(
            [no_pool(), snapshot(), preload(), cold()], StartPath.SNAPSHOT, id="a snapshot before all that is slower"
        ),
        pytest.param([no_pool(), closed(snapshot()), preload(), cold()], StartPath.PRELOAD, id="then a preload"),
        pytest.param([no_pool(), closed(snapshot()), closed(preload()), cold()], StartPath.COLD, id="then cold"),
        pytest.param(
            [no_pool(), snapshot(30), preload(20), cold(40)], StartPath.PRELOAD, id="unless it was measured slower"
        ),
        pytest.param([no_pool(), snapshot(30), preload(20), cold(10)], StartPath.COLD, id="whatever is fastest"),
        pytest.param(
            [no_pool(), snapshot(30), PathOption(StartPath.PRELOAD, "image", own=times(20, count=ENOUGH - 1)), cold()],
            StartPath.SNAPSHOT,
            id="but not by too few measurements",
        ),
        pytest.param(
            [
                no_pool(),
                PathOption(StartPath.SNAPSHOT, "s", overall=times(30)),
                PathOption(StartPath.PRELOAD, "p", overall=times(1)),
                cold(),
            ],
            StartPath.SNAPSHOT,
            id="nor by those of other shapes",
        ),
        pytest.param(
            [pool(5, on_its_way=True), snapshot(12), preload(), cold(40)], StartPath.POOL, id="a pool that is sooner"
        ),
        pytest.param(
            [pool(20, on_its_way=True), snapshot(12), preload(), cold(40)], StartPath.SNAPSHOT, id="one that is later"
        ),
        pytest.param(
            [pool(20, on_its_way=True), closed(snapshot()), closed(preload()), cold(40)], StartPath.POOL, id="than cold"
        ),
        pytest.param(
            [pool(on_its_way=True), closed(snapshot()), closed(preload()), cold()],
            StartPath.POOL,
            id="by its start alone",
        ),
        pytest.param(
            [pool(on_its_way=True), snapshot(), closed(preload()), cold()],
            StartPath.SNAPSHOT,
            id="not before a snapshot",
        ),
        pytest.param(
            [pool(20), closed(snapshot()), closed(preload()), cold()], StartPath.COLD, id="nor without a start"
        ),
        pytest.param(
            [pool(), closed(snapshot()), closed(preload()), closed(cold())], StartPath.POOL, id="but where it is alone"
        ),
    ],
)
def test_the_path_that_is_taken(options, expected):
    choice = choose(options, ALL)
    assert isinstance(choice, Choice)
    assert choice.path is expected
    assert [each.path for each in choice.considered if each.why is None] == [expected]


def test_only_allowed_paths_are_taken_and_the_others_say_so():
    choice = choose([no_pool(), snapshot(), preload(), cold()], [StartPath.PRELOAD])
    assert choice.path is StartPath.PRELOAD
    by_path = {each.path: each for each in choice.considered}
    assert by_path[StartPath.SNAPSHOT].why == by_path[StartPath.COLD].why == "not among the paths that the claim allows"
    assert not by_path[StartPath.COLD].available


def test_where_nothing_is_open_every_reason_is_told():
    refusal = choose([no_pool(), closed(snapshot()), closed(preload()), cold()], [StartPath.POOL, StartPath.SNAPSHOT])
    assert isinstance(refusal, NoChoice)
    assert not refusal.too_slow
    assert refusal.reason == (
        "pool: no pool has this shape; snapshot: snapshot is closed; preload: not among the paths that the claim allows; "
        "cold: not among the paths that the claim allows"
    )


@pytest.mark.parametrize(
    ("options", "deadline", "expected"),
    [
        pytest.param([no_pool(), snapshot(10), preload(20), cold(40)], 5, None, id="all measured to be slower"),
        pytest.param(
            [no_pool(), closed(snapshot()), closed(preload()), cold(40)], 45, None, id="it is the p95 that counts"
        ),
        pytest.param([no_pool(), closed(snapshot()), closed(preload()), cold(40)], 50, StartPath.COLD, id="which fits"),
        pytest.param(
            [no_pool(), snapshot(10), preload(20), cold()], 5, StartPath.COLD, id="one without data is not refused"
        ),
        pytest.param(
            [no_pool(), PathOption(StartPath.SNAPSHOT, "s", own=times(4, p95=60)), preload(9), cold()],
            20,
            StartPath.PRELOAD,
            id="a slower one that fits",
        ),
        pytest.param(
            [no_pool(), closed(snapshot()), closed(preload()), PathOption(StartPath.COLD, overall=times(40))],
            5,
            StartPath.COLD,
            id="other shapes say nothing of this one",
        ),
        pytest.param(
            [pool(20), closed(snapshot()), closed(preload()), closed(cold())], 5, None, id="a pool that is late"
        ),
    ],
)
def test_a_deadline_refuses_by_what_was_measured_for_this_shape(options, deadline, expected):
    choice = choose(options, ALL, deadline)
    if expected is None:
        assert isinstance(choice, NoChoice)
        assert choice.too_slow
        assert "beyond the deadline of" in choice.reason
    else:
        assert choice.path is expected


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (snapshot(12), (12, "measured for this shape 10 times")),
        (PathOption(StartPath.COLD, own=times(9, count=1), overall=times(4)), (9, "measured for this shape once")),
        (PathOption(StartPath.COLD, overall=times(4)), (4, "measured for this path 10 times, over all shapes")),
        (cold(), (None, "no data")),
        (pool(3), (3, "the pool's boots")),
    ],
)
def test_an_estimate_says_what_it_is_based_on(option, told):
    found = estimate(option)
    assert (found.p50, found.basis) == told


def test_a_choice_is_kept_and_followed_by_another():
    first = choose([no_pool(), snapshot(12), preload(), cold()], ALL)
    forced = StartFrom(snapshot="snap")
    record = Record.of(first, now=NOW, deadline_seconds=30, start_from=forced)
    stored = record.as_json()
    assert stored["deadline_at"] == "2026-03-01T12:00:30Z"
    assert [each["path"] for each in stored["considered"]] == ["pool", "snapshot", "preload", "cold"]

    later = NOW + timedelta(seconds=7)
    moved = Record.read(stored).gave_up("a VM failed: no room", later)
    second = choose([no_pool(), closed(snapshot()), preload(), cold()], ALL)
    again = Record.read(moved.followed_by(second, later).as_json())
    assert (again.path, again.source, again.at) == (StartPath.PRELOAD, "image", later)
    assert (again.deadline_at, again.start_from) == (record.deadline_at, forced)
    assert [(each.path, each.source, each.reason, each.at) for each in again.tried] == [
        (StartPath.SNAPSHOT, "snap", "a VM failed: no room", later)
    ]


SECONDS = st.none() | st.floats(0.1, 1000)


@st.composite
def options(draw):
    found = []
    for path in StartPath:
        p50 = draw(SECONDS)
        own = BootTimes() if p50 is None else times(p50, count=draw(st.integers(1, 20)))
        overall = draw(SECONDS)
        found.append(
            PathOption(
                path,
                "a" if path is not StartPath.COLD else None,
                available=draw(st.booleans()),
                why="closed",
                own=own,
                overall=BootTimes() if overall is None else times(overall),
                on_its_way=draw(st.booleans()),
            )
        )
    return found


@given(
    options=options(),
    allowed=st.sets(st.sampled_from(StartPath), min_size=1),
    deadline=st.none() | st.floats(0.1, 1000),
)
def test_whatever_there_is(options, allowed, deadline):
    """What is taken is open, allowed and in time; nothing is refused while such a path is there; each other says why not."""
    choice = choose(options, allowed, deadline)
    by_path = {option.path: option for option in options}
    usable = [option for option in options if option.available and option.path in allowed]
    in_time = [option for option in usable if deadline is None or not option.own.count or option.own.p95 <= deadline]
    assert isinstance(choice, Choice) == bool(in_time)
    assert [each.path for each in choice.considered] == list(StartPath)
    if isinstance(choice, NoChoice):
        assert choice.too_slow == bool(usable)
        assert all(each.why for each in choice.considered)
        return
    taken = by_path[choice.path]
    assert taken in in_time
    assert [each.path for each in choice.considered if not each.why] == [choice.path]
    for other in in_time:
        if StartPath.POOL in {choice.path, other.path} or min(taken.own.count, other.own.count) < ENOUGH:
            continue
        before = list(StartPath).index(other.path) < list(StartPath).index(choice.path)
        assert not before or other.own.p50 > taken.own.p50
