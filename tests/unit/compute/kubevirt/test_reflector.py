"""The stream of lists and watches, over a source that does what each test says."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest

from app.compute.kubevirt import reflector
from app.compute.kubevirt.kinds import VMIS, VMS
from app.compute.kubevirt.reflector import follow
from app.compute.kubevirt.vms.inventory import Inventory
from app.compute.vms import Broken, Changed, Gone, Listed, Restored
from app.errors import ClusterForbidden, ClusterUnavailable, WatchExpired
from tests.support.kubevirt_documents import uid_of, vm, vmi
from tests.support.scripted_source import Naps, ScriptedSource, event, soon

LONG = 3600
KINDS = (VMS, VMIS)


def bookmark(version):
    return event("BOOKMARK", {"metadata": {"resourceVersion": version}})


def scripted(*vms, vmis=([[]],), at="10"):
    """A source with these lists of VMs, each a list of pages."""
    return ScriptedSource({VMS: list(vms), VMIS: list(vmis)}, at=at)


def observing(source, *, relist_seconds=LONG, sleep=None):
    return aclosing(follow(source, Inventory(), KINDS, relist_seconds=relist_seconds, sleep=sleep or Naps()))


@asynccontextmanager
async def following(source, **given):
    """Reads the stream all the time, as the informer does, and gives what was read."""
    told = asyncio.Queue()

    async def read():
        async with observing(source, **given) as events:
            async for told_now in events:
                told.put_nowait(told_now)

    async def give():
        while True:
            yield await told.get()

    reading = asyncio.create_task(read())
    try:
        yield give()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def names(listed):
    assert isinstance(listed, Listed)
    return [seen.name for seen in listed.observations]


async def until(events, wanted):
    while not isinstance(found := await soon(events), wanted):
        pass
    return found


async def test_begins_with_the_list_and_goes_on_with_both_watches():
    source = scripted([[vm("a")]])
    async with observing(source) as events:
        listed = await soon(events)
        assert names(listed) == ["a"]
        assert listed.began_at.tzinfo is not None
        await source.feed(VMS, bookmark("11"), event("ADDED", vm("b")))
        assert (await soon(events)).observation.name == "b"
        await source.feed(VMIS, event("ADDED", vmi("b")))
        assert (await soon(events)).observation.phase == "Running"
        await source.feed(VMS, event("DELETED", vm("b")))
        assert await soon(events) == Gone("b", uid_of("b"))
    assert sorted(source.watched, key=str) == sorted([(VMS, "10"), (VMIS, "10")], key=str)


async def test_nothing_is_told_before_both_kinds_were_listed():
    """A VM without its instance would be taken for one that does not run."""
    held = asyncio.Event()
    source = scripted([[vm("a")]], vmis=[[held, [vmi("a")]]])
    async with observing(source) as events:
        first = asyncio.ensure_future(soon(events))
        await source.feed(VMS, event("ADDED", vm("b", resourceVersion="11")))
        await source.taken(VMS)
        assert not first.done()
        held.set()
        assert sorted(names(await first)) == ["a", "b"]


async def test_an_older_page_of_the_first_list_does_not_overwrite_what_the_watch_told():
    held = asyncio.Event()
    old, new = vm("a", resourceVersion="5"), vm("a", resourceVersion="12", deletionTimestamp="2026-11-23T04:06:36Z")
    source = scripted([held, [old, vm("b", resourceVersion="6")]])
    async with observing(source) as events:
        listing = asyncio.ensure_future(soon(events))
        await source.feed(VMS, event("MODIFIED", new), event("DELETED", vm("b", resourceVersion="13")))
        await source.taken(VMS)
        held.set()
        assert [(seen.name, seen.deleting) for seen in (await listing).observations] == [("a", True)]


class TestWhileAListRuns:
    """The watch goes on beside it, and versions say which is newer."""

    async def test_an_event_is_told_before_the_list_ends(self):
        held = asyncio.Event()
        first, again = [[vm("a", resourceVersion="5")]], [[vm("a", resourceVersion="5")], held]
        source = scripted(first, again)
        async with following(source, relist_seconds=0.01) as events:
            await soon(events)
            await source.until(lambda: source.listed.count(VMS) == 2)
            await source.feed(VMS, event("ADDED", vm("b", resourceVersion="11")))
            assert (await soon(events)).observation.name == "b"
            assert not held.is_set()
            assert source.watched.count((VMS, "10")) == 1, "the watch was not opened again"
            held.set()
            assert names(await soon(events)) == ["a", "b"]

    async def test_an_older_page_does_not_overwrite_what_the_watch_told(self):
        held = asyncio.Event()
        old, new = vm("a", resourceVersion="5"), vm("a", resourceVersion="12", deletionTimestamp="2026-11-23T04:06:36Z")
        source = scripted([[old]], [held, [old]])
        async with following(source, relist_seconds=0.01) as events:
            await soon(events)
            await source.until(lambda: source.listed.count(VMS) == 2)
            await source.feed(VMS, event("MODIFIED", new))
            assert (await soon(events)).observation.deleting
            held.set()
            listed = await soon(events)
            assert [seen.deleting for seen in listed.observations] == [True]

    async def test_a_page_does_not_bring_back_what_the_watch_saw_deleted(self):
        held = asyncio.Event()
        old, last = vm("a", resourceVersion="5"), vm("a", resourceVersion="12")
        source = scripted([[old]], [held, [old]])
        async with following(source, relist_seconds=0.01) as events:
            await soon(events)
            await source.until(lambda: source.listed.count(VMS) == 2)
            await source.feed(VMS, event("DELETED", last))
            assert await soon(events) == Gone("a", uid_of("a"))
            held.set()
            assert names(await soon(events)) == []

    async def test_what_the_watch_missed_is_found(self):
        """A deletion, a new VM, and a change."""
        before = [vm("kept", resourceVersion="5"), vm("deleted", resourceVersion="6")]
        after = [
            vm("kept", resourceVersion="8", deletionTimestamp="2026-11-23T04:06:36Z"),
            vm("new", resourceVersion="9"),
        ]
        source = scripted([before], [after])
        async with following(source, relist_seconds=0.01) as events:
            assert names(await soon(events)) == ["kept", "deleted"]
            told = [await soon(events) for _ in range(4)]
            assert [each.observation.name for each in told[:2]] == ["kept", "new"]
            assert told[2] == Gone("deleted", uid_of("deleted"))
            assert names(told[3]) == ["kept", "new"]

    async def test_what_the_watch_is_about_to_tell_costs_no_list(self):
        new = vm("a", resourceVersion="9")
        source = scripted([[]], [[new]])

        async def tell(_seconds):
            await source.feed(VMS, event("ADDED", new))
            await source.taken(VMS)

        async with following(source, relist_seconds=0.01, sleep=tell) as events:
            await soon(events)
            assert (await soon(events)).observation.name == "a"
            assert names(await soon(events)) == ["a"]
        assert source.listed.count(VMS) == 2

    async def test_what_is_newer_than_the_list_does_not_count_as_missing(self):
        held = asyncio.Event()
        source = scripted([[]], [held, []])
        async with following(source, relist_seconds=0.01) as events:
            await soon(events)
            await source.until(lambda: source.listed.count(VMS) == 2)
            await source.feed(VMS, event("ADDED", vm("young", resourceVersion="11")))
            await soon(events)
            held.set()
            assert names(await until(events, Listed)) == ["young"]

    async def test_a_list_that_expires_between_its_pages_begins_again(self):
        source = scripted([[vm("a", resourceVersion="5")]], WatchExpired("the continue token is too old"), [[]])
        async with following(source, relist_seconds=0.01) as events:
            await soon(events)
            broken = await soon(events)
            assert isinstance(broken, Broken)
            assert "too old" in broken.reason
            assert await soon(events) == Gone("a", uid_of("a"))
            assert await soon(events) == Restored()
            assert names(await soon(events)) == []
        assert source.watched.count((VMS, "10")) == 1

    async def test_a_list_that_fails_leaves_the_watch_alone(self):
        source = scripted([[]], ClusterUnavailable("away"))
        async with following(source, relist_seconds=0.01) as events:
            await soon(events)
            assert await soon(events) == Broken("away")
            await source.feed(VMS, event("ADDED", vm("a")))
            assert (await until(events, Changed)).observation.name == "a"

    async def test_kinds_are_not_listed_again_at_the_same_moment(self):
        source = scripted([[]])
        async with following(source, relist_seconds=0.001) as events:
            await soon(events)
            source.most_at_once = 0
            while len(source.listed) < 20:
                await soon(events)
        assert set(source.listed[2:]) == set(KINDS)
        assert source.most_at_once == 1


class TestAWatchThatEnds:
    @pytest.mark.parametrize(
        "end",
        [ClusterUnavailable("cut"), ClusterForbidden("no"), None],
        ids=["broken", "forbidden", "ended by the server"],
    )
    @pytest.mark.parametrize("kind", KINDS)
    async def test_is_opened_again_where_it_was_and_nothing_is_listed(self, kind, end):
        source, naps = scripted([[vm("a")]]), Naps()
        async with observing(source, sleep=naps) as events:
            await soon(events)
            following = asyncio.ensure_future(soon(events))
            await source.feed(kind, bookmark("17"), end)
            await source.until(lambda: (kind, "17") in source.watched)
            await source.feed(VMS, event("ADDED", vm("b")))
            assert (await following).observation.name == "b"
        assert len(naps.taken) == 1
        assert len(source.listed) == 2

    async def test_after_it_lasted_there_is_no_pause(self, monkeypatch):
        monkeypatch.setattr(reflector, "_SHORT", 0)
        source, naps = scripted([[vm("a")]]), Naps()
        async with observing(source, sleep=naps) as events:
            await soon(events)
            await source.feed(VMS, bookmark("17"), ClusterUnavailable("cut"))
            await source.until(lambda: (VMS, "17") in source.watched)
        assert naps.taken == []

    async def test_and_cannot_be_opened_again_is_told_until_it_is(self):
        source = scripted([[vm("a")]])
        async with observing(source) as events:
            await soon(events)
            source.refused = ClusterUnavailable("connection refused")
            await source.feed(VMS, ClusterUnavailable("cut"))
            assert await soon(events) == Broken("connection refused")
            source.refused = None
            await until(events, Restored)
            await source.feed(VMS, event("ADDED", vm("b")))
            assert (await soon(events)).observation.name == "b"
        assert len(source.listed) == 2

    async def test_because_its_version_is_forgotten_is_followed_by_a_list(self):
        source = scripted([[vm("a")]], [[vm("b")]])
        async with observing(source) as events:
            await soon(events)
            source.at = "20"
            await source.feed(VMS, WatchExpired("too old resource version: 10 (15)"))
            assert isinstance(await soon(events), Broken)
            assert (await soon(events)).observation.name == "b"
            assert await soon(events) == Gone("a", uid_of("a"))
            assert await soon(events) == Restored()
            assert names(await soon(events)) == ["b"]
        assert (VMS, "20") in source.watched
        assert source.listed.count(VMIS) == 1

    async def test_because_its_version_is_forgotten_after_it_lasted_is_listed_again_at_once(self, monkeypatch):
        monkeypatch.setattr(reflector, "_SHORT", 0)
        source, naps = scripted([[vm("a")]]), Naps()
        async with observing(source, sleep=naps) as events:
            await soon(events)
            await source.feed(VMS, WatchExpired("old"))
            assert names(await soon(events)) == ["a"]
        assert naps.taken == []


async def test_a_cluster_that_was_restored_from_a_backup_is_believed():
    """Its versions have gone back, so what it has is not older than what is known."""
    source = scripted([[vm("a", resourceVersion="50")]], [[vm("a", uid=uid_of("b"), resourceVersion="15")]], at="60")
    async with observing(source) as events:
        await soon(events)
        source.at = "20"
        await source.feed(VMS, WatchExpired("too large"))
        assert isinstance(await soon(events), Broken)
        assert await soon(events) == Gone("a", uid_of("a"))
        assert (await soon(events)).observation.uid == uid_of("b")


async def test_a_cluster_that_is_away_is_asked_again_ever_more_rarely():
    source = scripted(*[ClusterUnavailable(f"refused {number}") for number in range(8)], [[vm("a")]])
    naps = Naps()
    async with observing(source, sleep=naps) as events:
        for number in range(8):
            assert await soon(events) == Broken(f"refused {number}")
        assert await soon(events) == Restored()
        assert names(await soon(events)) == ["a"]
    assert all(0.25 <= nap <= 15 for nap in naps.taken)
    assert naps.taken[0] <= 0.5
    assert naps.taken[-1] >= 7.5


async def test_a_list_that_is_forbidden_is_broken_and_asked_for_rarely():
    source, naps = scripted(ClusterForbidden("may not list"), [[]]), Naps()
    async with observing(source, sleep=naps) as events:
        assert await soon(events) == Broken("may not list")
        assert isinstance(await until(events, Listed), Listed)
    assert naps.taken == [60.0]


async def test_a_list_while_another_kind_is_broken_does_not_say_that_all_is_well():
    source = scripted([[]])
    async with observing(source, relist_seconds=0.01) as events:
        await soon(events)
        source.lists[VMIS] = [ClusterUnavailable("away")]
        assert await until(events, Broken) == Broken("away")
        await until(events, Listed)
        assert await soon(events) == Broken("away")


async def test_lists_again_though_events_never_cease():
    class Ceaseless(ScriptedSource):
        def watch(self, kind, version):
            return _Ceaseless()

    class _Ceaseless:
        async def __aenter__(self):
            return self._events()

        async def __aexit__(self, *_):
            pass

        async def _events(self):
            while True:
                yield [event("ADDED", vm("a")), event("DELETED", vm("a"))]

    async with observing(Ceaseless({VMS: [[[]]], VMIS: [[[]]]}), relist_seconds=0.02) as events:
        await until(events, Listed)
        await until(events, Listed)


async def test_closed_it_leaves_no_task_and_no_watch():
    before = asyncio.all_tasks()
    source = scripted([[vm("a")]])
    async with observing(source) as events:
        await soon(events)
        await source.until(lambda: source.open == 2)
    assert source.open == 0
    assert asyncio.all_tasks() == before


async def test_cancelled_it_leaves_no_task_and_no_watch():
    before = asyncio.all_tasks()
    source = scripted([[vm("a")]])

    async def read():
        async with observing(source) as events:
            async for _ in events:
                pass

    task = asyncio.create_task(read())
    await source.until(lambda: source.open == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.open == 0
    assert asyncio.all_tasks() == before


async def test_a_bug_is_not_taken_for_a_break():
    source = scripted([[]])
    async with observing(source) as events:
        await soon(events)
        await source.feed(VMS, ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await soon(events)


async def test_changes_of_the_watch_are_held_back_until_they_are_asked_for():
    source = scripted([[]])
    async with observing(source) as events:
        await soon(events)
        await source.feed(VMS, *(event("ADDED", vm(f"vm-{number}")) for number in range(3000)))
        seen = [await soon(events) for _ in range(3000)]
        assert [change.observation.name for change in seen] == [f"vm-{number}" for number in range(3000)]
        assert all(isinstance(change, Changed) for change in seen)
