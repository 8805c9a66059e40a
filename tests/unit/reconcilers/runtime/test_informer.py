"""Events that wait to be written: of each object only the last, of lists only the last, and nothing that a list replaced."""

import asyncio
from datetime import UTC, datetime

from app.compute.vms import Broken, Changed, Gone, Listed, Restored
from app.domain.observation import Observation
from app.reconcilers.runtime.informer import Batch, Pending
from tests.support.patience import PATIENCE

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def changed(name: str, **seen) -> Changed:
    return Changed(Observation(name=name, namespace="default", uid=f"uid-{name}", **seen))


def listed(*names: str) -> Listed:
    return Listed(tuple(changed(name).observation for name in names), NOW)


def name_of(event) -> str:
    return event.name if isinstance(event, Gone) else event.observation.name


def filled(*events) -> Pending:
    pending = Pending(Listed, name_of, outlives=lambda event: isinstance(event, Gone))
    for event in events:
        pending.put(event)
    return pending


def test_of_an_object_only_the_last_event_counts_and_it_comes_last():
    pending = filled(changed("a"), changed("b"), changed("a", phase="Running"))

    assert pending.take() == Batch(events=(changed("b"), changed("a", phase="Running")))


def test_an_object_that_is_gone_is_not_reported_as_changed():
    assert filled(changed("a"), Gone("a", "uid-a")).take() == Batch(events=(Gone("a", "uid-a"),))


def test_a_list_replaces_the_events_before_it_except_those_that_outlive_it():
    pending = filled(listed("a"), changed("a"), Gone("b", "uid-b"), listed("a", "c"), changed("c", phase="Running"))

    assert pending.take() == Batch(listed=listed("a", "c"), events=(Gone("b", "uid-b"), changed("c", phase="Running")))


def test_a_list_ends_a_break_before_it_and_not_one_after_it():
    assert filled(Broken("away"), listed("a")).take().broken is None
    assert filled(listed("a"), Broken("away")).take().broken == Broken("away")


def test_a_break_that_is_over_is_told_as_such():
    assert filled(Broken("away"), Restored()).take() == Batch(restored=True)
    assert filled(Restored(), Broken("away")).take() == Batch(broken=Broken("away"))


async def test_a_large_number_of_events_is_taken_in_several_batches():
    pending = filled(*(changed(f"vm-{number}") for number in range(250)))
    sizes = []
    for _ in range(2):
        await asyncio.wait_for(pending.wait(), PATIENCE)
        sizes.append(len(pending.take().events))
    waiting = asyncio.ensure_future(pending.wait())
    await asyncio.sleep(0)

    assert sizes == [200, 50]
    assert not pending
    assert pending.take() == Batch()
    assert not waiting.done()
    pending.put(listed())
    await asyncio.wait_for(waiting, PATIENCE)
