"""What waits to be written down: of each VM the last, of lists the last, and nothing that has been overtaken."""

import asyncio
from datetime import UTC, datetime

from app.compute.vms import Broken, Changed, Gone, Listed
from app.domain.observation import Observation
from app.reconcilers.runtime.backlog import Backlog, Batch
from tests.support.patience import PATIENCE

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def changed(name: str, **seen) -> Changed:
    return Changed(Observation(name=name, namespace="default", uid=f"uid-{name}", **seen))


def listed(*names: str) -> Listed:
    return Listed(tuple(changed(name).observation for name in names), NOW)


def filled(*events) -> Backlog:
    backlog = Backlog()
    for event in events:
        backlog.put(event)
    return backlog


def test_of_a_vm_only_the_last_counts_and_it_comes_last():
    backlog = filled(changed("a"), changed("b"), changed("a", phase="Running"))

    assert backlog.take() == Batch(changes=(changed("b"), changed("a", phase="Running")))


def test_a_vm_that_has_gone_is_not_told_of_as_changed():
    assert filled(changed("a"), Gone("a", "uid-a")).take() == Batch(gone=(Gone("a", "uid-a"),))


def test_a_list_stands_for_all_lists_and_changes_before_it_but_not_for_what_has_gone():
    backlog = filled(listed("a"), changed("a"), Gone("b", "uid-b"), listed("a", "c"), changed("c", phase="Running"))

    assert backlog.take() == Batch(
        listed=listed("a", "c"), changes=(changed("c", phase="Running"),), gone=(Gone("b", "uid-b"),)
    )


def test_a_list_ends_a_break_before_it_and_not_one_after_it():
    assert filled(Broken("away"), listed("a")).take().broken is None
    assert filled(listed("a"), Broken("away")).take().broken == Broken("away")


async def test_it_is_waited_for_until_it_is_empty():
    backlog = filled(*(changed(f"vm-{number}") for number in range(250)))
    sizes = []
    for _ in range(2):
        await asyncio.wait_for(backlog.wait(), PATIENCE)
        sizes.append(len(backlog.take().changes))
    waiting = asyncio.ensure_future(backlog.wait())
    await asyncio.sleep(0)

    assert sizes == [200, 50]
    assert backlog.take() == Batch()
    assert not waiting.done()
    backlog.put(listed())
    await asyncio.wait_for(waiting, PATIENCE)
