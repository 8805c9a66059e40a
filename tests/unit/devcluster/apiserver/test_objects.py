"""The store's past: versions, history, compaction; and what hangs on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.devcluster.apiserver.quantities import Quantity, parse_quantity, whole
from app.devcluster.apiserver.registry import SECRETS
from app.devcluster.apiserver.store import Gone, Store
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.clock import ManualClock


def secret(name, value=""):
    return {"metadata": {"name": name, "namespace": "n", "uid": f"uid-{name}"}, "data": {"v": value}}


def names(rows):
    return {row.obj["metadata"]["name"]: row.obj["data"]["v"] for row in rows}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "remove"])), max_size=30))
def test_every_version_that_is_kept_can_be_listed_as_it_was(steps):
    store, seen = Store(), {}
    for number, (name, what) in enumerate(steps):
        if what == "put":
            store.put(SECRETS, secret(name, str(number)))
        elif store.get(SECRETS, "n", name) is not None:
            store.remove(SECRETS, "n", name)
        seen[store.rv] = names(store.rows(SECRETS, "n"))

    for version, rows in seen.items():
        assert names(store.rows_at(SECRETS, "n", version)) == rows


def test_a_ring_that_is_full_forgets_the_oldest_and_says_so():
    store = Store(history=3)
    first = store.rv
    for number in range(5):
        store.put(SECRETS, secret("a", str(number)))

    with pytest.raises(Gone):
        store.since(SECRETS, first)
    assert [change.new.obj["data"]["v"] for change in store.since(SECRETS, first + 2)] == ["2", "3", "4"]


def test_compaction_leaves_the_present():
    store = Store()
    store.put(SECRETS, secret("a"))
    before = store.rv
    store.put(SECRETS, secret("b"))
    store.forget_history()

    assert set(names(store.rows(SECRETS))) == {"a", "b"}
    with pytest.raises(Gone):
        store.rows_at(SECRETS, "", before)
    assert store.since(SECRETS, store.rv) == []


@pytest.mark.parametrize(
    ("text", "units", "canonical"),
    [
        ("1", 1, "1"),
        ("100m", 1, "100m"),
        ("1.5", 2, "1500m"),
        ("2000", 2000, "2k"),
        ("2048", 2048, "2048"),
        ("1024Mi", 2**30, "1Gi"),
        ("1Ki", 1024, "1Ki"),
        ("0.5Ki", 512, "512"),
        ("1e3", 1000, "1k"),
        ("0", 0, "0"),
    ],
)
def test_quantities_count_up_and_are_written_as_the_api_server_does(text, units, canonical):
    assert (whole(text), str(Quantity.parse(text))) == (units, canonical)


@pytest.mark.parametrize(
    ("one", "other", "total"), [("2Gi", "268Mi", "2316Mi"), ("0", "1Mi", "1Mi"), ("1500M", "1Mi", "1501048576")]
)
def test_a_sum_is_written_as_its_first_part(one, other, total):
    assert str(Quantity.parse(one) + Quantity.parse(other)) == total


@pytest.mark.parametrize("text", ["1Gb", "", "Gi", "ten", "1 Gi", "--1"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="quantity"):
        parse_quantity(text)


async def test_a_queue_handles_a_key_once_for_many_adds_and_again_for_what_it_adds_itself():
    clock, handled = ManualClock(), []

    def handle(key):
        handled.append(key)
        if len(handled) == 2:
            queue.add(key)

    queue = WorkQueue("test", handle, clock, delay=1.0)
    for _ in range(5):
        queue.add("a")
    queue.add("b")
    await clock.advance(0.9)
    assert handled == []
    await clock.advance(0.2)
    assert handled == ["a", "b"]
    await clock.advance(1.0)
    assert handled == ["a", "b", "b"]


async def test_one_key_that_fails_does_not_stop_the_others():
    clock, handled = ManualClock(), []

    def handle(key):
        if key == "bad":
            raise KeyError(key)
        handled.append(key)

    queue = WorkQueue("test", handle, clock)
    for key in ("a", "bad", "b"):
        queue.add(key)
    await clock.settle()
    assert handled == ["a", "b"]


async def test_a_timer_is_kept_for_its_stage_and_replaced_for_another():
    clock, fired = ManualClock(), []
    timers = Timers(clock)
    timers.ensure("k", "one", 10, lambda: fired.append("first"))
    await clock.advance(5)
    timers.ensure("k", "one", 10, lambda: fired.append("again"))
    await clock.advance(5)
    assert fired == ["first"]

    timers.ensure("k", "one", 10, lambda: fired.append("late"))
    timers.ensure("k", "two", 1, lambda: fired.append("second"))
    await clock.advance(20)
    assert fired == ["first", "second"]
