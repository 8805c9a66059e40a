"""The stream of lists and watches, over a source that does what each test says."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import pytest

from app.compute.kubevirt.kinds import VMIS, VMS
from app.compute.kubevirt.vms.watch import Listing, observe
from app.compute.vms import Broken, Changed, Gone, Listed
from app.errors import ClusterForbidden, ClusterUnavailable, WatchExpired
from tests.support.kubevirt_documents import uid_of, vm, vmi
from tests.support.patience import PATIENCE

LONG = 3600
BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}


class ScriptedSource:
    """Answers each list with the next of `lists`, and feeds its watches with what the test puts into them."""

    def __init__(self, *lists):
        self.lists = list(lists)
        self.feeds = []
        self.open = 0
        self.opened = asyncio.Event()

    async def listing(self):
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(answer, Exception):
            raise answer
        vms, vmis = answer
        return Listing(vms, vmis, "5", "6", datetime(2026, 11, 23, tzinfo=UTC))

    async def watch(self, plural, resource_version):
        assert resource_version == {VMS: "5", VMIS: "6"}[plural]
        feed = asyncio.Queue()
        self.feeds.append((plural, feed))
        self.open += 1
        self.opened.set()
        try:
            while (item := await feed.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.open -= 1

    async def feed(self, plural, *items):
        """Into the newest watch of the kind, once it is there."""
        async with asyncio.timeout(PATIENCE):
            while not (feeds := [feed for kind, feed in self.feeds if kind == plural]):
                self.opened.clear()
                await self.opened.wait()
        for item in items:
            feeds[-1].put_nowait(item)


class Naps:
    """Stands for sleeping: remembers how long, and takes no time."""

    def __init__(self):
        self.taken = []

    async def __call__(self, seconds):
        self.taken.append(seconds)
        await asyncio.sleep(0)


def event(kind, item):
    return {"type": kind, "object": item}


async def soon(events):
    async with asyncio.timeout(PATIENCE):
        return await anext(events)


async def test_begins_with_the_list_and_goes_on_with_both_watches():
    source = ScriptedSource(([vm("a")], []))
    async with aclosing(observe(source, relist_seconds=LONG)) as events:
        listed = await soon(events)
        assert isinstance(listed, Listed)
        assert [seen.name for seen in listed.observations] == ["a"]
        assert listed.began_at == datetime(2026, 11, 23, tzinfo=UTC)
        following = asyncio.ensure_future(soon(events))
        await source.feed(VMS, BOOKMARK, event("ADDED", vm("b")))
        assert (await following).observation.name == "b"
        await source.feed(VMIS, event("ADDED", vmi("b")))
        assert (await soon(events)).observation.phase == "Running"
        await source.feed(VMS, event("DELETED", vm("b")))
        assert await soon(events) == Gone("b", uid_of("b"))


@pytest.mark.parametrize(
    "end",
    [WatchExpired("too old resource version: 1 (2)"), ClusterUnavailable("cut"), ClusterForbidden("no"), None],
    ids=["410", "broken", "forbidden", "ended by the server"],
)
@pytest.mark.parametrize("plural", [VMS, VMIS])
async def test_a_watch_that_ends_soon_is_told_and_listed_again(plural, end):
    source, naps = ScriptedSource(([vm("a"), vm("b")], []), ([vm("b")], [])), Naps()
    async with aclosing(observe(source, relist_seconds=LONG, sleep=naps)) as events:
        await soon(events)
        following = asyncio.ensure_future(soon(events))
        await source.feed(plural, end)
        broken = await following
        assert isinstance(broken, Broken)
        assert broken.reason
        assert await soon(events) == Gone("a", uid_of("a"))
        listed = await soon(events)
        assert [seen.name for seen in listed.observations] == ["b"]
        assert len(naps.taken) == 1


async def test_a_watch_that_lasted_is_listed_again_at_once(monkeypatch):
    monkeypatch.setattr("app.compute.kubevirt.rounds._SHORT_ROUND", 0)
    source, naps = ScriptedSource(([vm("a")], [])), Naps()
    async with aclosing(observe(source, relist_seconds=LONG, sleep=naps)) as events:
        await soon(events)
        following = asyncio.ensure_future(soon(events))
        await source.feed(VMS, WatchExpired("old"))
        assert isinstance(await following, Listed)
    assert naps.taken == []


async def test_lists_again_at_its_interval_though_the_watches_are_well():
    source, naps = ScriptedSource(([vm("a")], []), ([vm("a")], [vmi("a")])), Naps()
    async with aclosing(observe(source, relist_seconds=0.01, sleep=naps)) as events:
        first, second = await soon(events), await soon(events)
        assert [seen.phase for seen in first.observations] == [None]
        assert [seen.phase for seen in second.observations] == ["Running"]
        assert source.open <= 2
    assert naps.taken == []


async def test_lists_again_though_events_never_cease():
    class Ceaseless(ScriptedSource):
        async def watch(self, plural, resource_version):
            while True:
                yield event("ADDED", vm("a"))
                yield event("DELETED", vm("a"))

    async with aclosing(observe(Ceaseless(([], [])), relist_seconds=0.02)) as events:
        await soon(events)
        async with asyncio.timeout(PATIENCE):
            while not isinstance(await anext(events), Listed):
                pass


async def test_a_cluster_that_is_away_is_asked_again_ever_more_rarely():
    source = ScriptedSource(*[ClusterUnavailable(f"refused {number}") for number in range(8)], ([vm("a")], []))
    naps = Naps()
    async with aclosing(observe(source, relist_seconds=LONG, sleep=naps)) as events:
        for number in range(8):
            assert await soon(events) == Broken(f"refused {number}")
        assert isinstance(await soon(events), Listed)
    assert all(0.25 <= nap <= 15 for nap in naps.taken)
    assert naps.taken[0] <= 0.5
    assert naps.taken[-1] >= 7.5


async def test_a_list_that_is_forbidden_is_broken_too():
    source = ScriptedSource(ClusterForbidden("may not list"), ([], []))
    async with aclosing(observe(source, relist_seconds=LONG, sleep=Naps())) as events:
        assert await soon(events) == Broken("may not list")
        assert isinstance(await soon(events), Listed)


async def test_closed_it_leaves_no_task_and_no_watch():
    before = asyncio.all_tasks()
    source = ScriptedSource(([vm("a")], []))
    events = observe(source, relist_seconds=LONG)
    await soon(events)
    following = asyncio.ensure_future(soon(events))
    await source.feed(VMS, event("ADDED", vm("b")))
    await source.feed(VMIS, event("ADDED", vmi("b")))
    await following
    assert source.open == 2
    await events.aclose()
    assert source.open == 0
    assert asyncio.all_tasks() == before


async def test_cancelled_it_leaves_no_task_and_no_watch():
    before = asyncio.all_tasks()
    source = ScriptedSource(([vm("a")], []))

    async def follow():
        async with aclosing(observe(source, relist_seconds=LONG)) as events:
            async for _ in events:
                pass

    task = asyncio.create_task(follow())
    await source.feed(VMS)
    await source.feed(VMIS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.open == 0
    assert asyncio.all_tasks() == before


async def test_a_bug_is_not_taken_for_a_break():
    source = ScriptedSource(([], []))
    async with aclosing(observe(source, relist_seconds=LONG)) as events:
        await soon(events)
        following = asyncio.ensure_future(soon(events))
        await source.feed(VMS, ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await following


async def test_changes_of_the_watch_are_held_back_until_they_are_asked_for():
    source = ScriptedSource(([], []))
    async with aclosing(observe(source, relist_seconds=LONG)) as events:
        await soon(events)
        following = asyncio.ensure_future(soon(events))
        await source.feed(VMS, *(event("ADDED", vm(f"vm-{number}")) for number in range(3000)))
        seen = [await following] + [await soon(events) for _ in range(2999)]
        assert [change.observation.name for change in seen] == [f"vm-{number}" for number in range(3000)]
        assert all(isinstance(change, Changed) for change in seen)
