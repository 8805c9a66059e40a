"""Rows of snapshots: what VMs start from, what serves a shape, who works on what, and who uses it."""

import uuid
from datetime import timedelta

import pytest

from app.domain.paths import StartPath
from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import TakeState
from app.domain.states import VmState
from app.errors import IllegalTransition
from app.ids import new_id
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import sources as snapshots
from app.store.snapshots import work as snapshot_work
from app.store.vms import work
from app.store.vms.observed import database_now
from tests.support.rows import execute, fetch, make_pool, make_ready, make_vms, scalar

T = TakeState
WAY = (T.BOOTING, T.STOPPING, T.TAKING, T.READY, T.RETIRING, T.RETIRED)


def disk(name="root", of="vs-1"):
    return {
        "volume": name,
        "volume_snapshot": of,
        "size": "2Gi",
        "storage_class": "fast",
        "access_modes": ["ReadWriteOnce"],
        "volume_mode": None,
    }


async def make_snapshot(db, name="ready", **given):
    snapshot_id = new_id()
    spec = SnapshotSpec(**{"name": name, "source": {"pool": "web"}, **given})
    async with db.begin() as tx:
        assert await snapshot_rows.insert(tx, snapshot_id=snapshot_id, spec=spec)
        return await snapshot_rows.get_by_id(tx, snapshot_id)


async def make_take(db, row, state=T.READY, *, shape="s1"):
    """A take of the snapshot, brought to `state` on the way that takes go."""
    take_id = new_id()
    async with db.begin() as tx:
        await snapshot_rows.insert_take(tx, snapshot_id=row.id, take_id=take_id)
    for target in WAY[: WAY.index(state) + 1] if state in WAY else ():
        written = {"shape": shape} if target is T.BOOTING else {}
        if target is T.READY:
            written = {"disks": [disk(of=f"vs-of-{take_id}")], "bytes": 2}
        await move(db, take_id, target, **written)
    return take_id


async def move(db, take_id, target, **written):
    async with db.begin() as tx:
        take = await snapshot_rows.get_take(tx, take_id)
        assert await snapshot_rows.move_take(tx, take, target, **written)


async def start_of(db, name="ready", **given):
    async with db.begin() as tx:
        return await snapshots.start_of(tx, name, **given)


async def now(db):
    async with db.begin() as tx:
        return await database_now(tx)


class TestStarts:
    async def test_from_the_latest_take_that_is_ready(self, db):
        row = await make_snapshot(db)
        assert await start_of(db) == "snapshot 'ready' is not ready"
        await make_take(db, row, T.TAKING)
        assert await start_of(db) == "snapshot 'ready' is not ready"
        await make_take(db, row)
        latest = await make_take(db, row)
        await make_take(db, row, T.TAKING)
        found = await start_of(db)
        assert found.name == "ready"
        assert found.disks[0].volume_snapshot == f"vs-of-{latest}"
        assert found.disks[0].access_modes == ("ReadWriteOnce",)

    async def test_of_none_that_is_not_there_or_is_going(self, db):
        assert await start_of(db, "nope") is None
        row = await make_snapshot(db)
        await make_take(db, row)
        async with db.begin() as tx:
            assert await snapshot_rows.begin_delete(tx, row.id)
        assert await start_of(db) is None

    async def test_a_vm_that_was_asked_for_before_goes_on_with_the_take_of_then(self, db):
        row = await make_snapshot(db)
        first = await make_take(db, row)
        asked_at = await now(db)
        await make_take(db, row)
        assert (await start_of(db, asked_at=asked_at)).disks[0].volume_snapshot == f"vs-of-{first}"
        await move(db, first, T.RETIRING)
        assert (await start_of(db, asked_at=asked_at)).disks[0].volume_snapshot == f"vs-of-{first}"
        assert (await start_of(db)).disks[0].volume_snapshot != f"vs-of-{first}"
        async with db.begin() as tx:
            await snapshot_rows.begin_delete(tx, row.id)
        assert (await start_of(db, asked_at=asked_at)).disks[0].volume_snapshot == f"vs-of-{first}"

    async def test_one_that_was_asked_for_before_there_was_any_takes_the_first(self, db):
        asked_at = await now(db)
        row = await make_snapshot(db)
        take = await make_take(db, row)
        assert (await start_of(db, asked_at=asked_at)).disks[0].volume_snapshot == f"vs-of-{take}"


class TestShapes:
    async def serving(self, db, shape):
        async with db.begin() as tx:
            return [option.name for option in await snapshots.ready_for_shape(tx, shape)]

    async def test_the_newest_first_and_only_by_their_newest_take(self, db):
        older, newer, changed = [await make_snapshot(db, name) for name in ("older", "newer", "changed")]
        await make_take(db, older)
        await make_take(db, newer)
        await make_take(db, changed)
        await make_take(db, changed, shape="s2")
        assert await self.serving(db, "s1") == ["newer", "older"]
        assert await self.serving(db, "s2") == ["changed"]
        async with db.begin() as tx:
            await snapshot_rows.begin_delete(tx, newer.id)
        assert await self.serving(db, "s1") == ["older"]

    async def test_those_that_are_being_taken(self, db):
        row = await make_snapshot(db)
        await make_take(db, row, T.TAKING)
        async with db.begin() as tx:
            assert await snapshots.under_way_for_shape(tx, "s1") == ["ready"]
            assert await snapshots.under_way_for_shape(tx, "s2") == []


class TestRows:
    async def test_a_name_is_had_once_until_nothing_is_left_of_it(self, db):
        row = await make_snapshot(db)
        take = await make_take(db, row, T.READY)
        async with db.begin() as tx:
            assert not await snapshot_rows.insert(tx, snapshot_id=new_id(), spec=row.spec)
            await snapshot_rows.begin_delete(tx, row.id)
            assert not await snapshot_rows.end_delete(tx, row.id)
        await move(db, take, T.RETIRING)
        await move(db, take, T.RETIRED)
        async with db.begin() as tx:
            assert await snapshot_rows.end_delete(tx, row.id)
            assert await snapshot_rows.get(tx, "ready") is None
        assert (await make_snapshot(db)).id != row.id

    async def test_a_take_moves_once(self, db):
        row = await make_snapshot(db)
        take_id = await make_take(db, row, T.TAKING)
        async with db.begin() as tx:
            take = await snapshot_rows.get_take(tx, take_id)
            assert await snapshot_rows.move_take(tx, take, T.FAILING, reason="no space")
            assert not await snapshot_rows.move_take(tx, take, T.READY)
            with pytest.raises(IllegalTransition):
                await snapshot_rows.move_take(tx, take, T.RETIRED)
        events = await fetch(db, "SELECT type, data FROM event ORDER BY id DESC LIMIT 1")
        assert events[0]["type"] == "snapshot.failing"
        assert events[0]["data"] == {"snapshot": "ready", "take": 1, "from": "taking", "reason": "no space"}

    async def test_of_those_that_are_over_only_the_last_are_told(self, db):
        row = await make_snapshot(db)
        kept = await make_take(db, row)
        for _ in range(12):
            await make_take(db, row, T.RETIRED)
        async with db.begin() as tx:
            found = (await snapshot_rows.takes_of(tx, [row.id]))[row.id]
        assert found[0].id == kept
        assert [take.number for take in found] == [1, *range(4, 14)]

    async def test_pages_are_filtered(self, db):
        pool = await make_snapshot(db, "a")
        await make_take(db, pool)
        await make_snapshot(db, "b", source={"vm": "ubuntu"})

        async def names(after="", limit=10, shape=None, source=None):
            async with db.begin() as tx:
                rows = await snapshot_rows.page(tx, after=after, limit=limit, shape=shape, source=source)
            return [row.name for row in rows]

        assert await names() == ["a", "b"]
        assert await names(limit=1) == ["a"]
        assert await names(after="a") == ["b"]
        assert await names(shape="s1") == ["a"]
        assert await names(source="ubuntu") == ["b"]
        assert await names(source="web") == ["a"]

    async def test_what_is_deleted_is_forgotten_in_time(self, db):
        row = await make_snapshot(db)
        await make_take(db, row, T.RETIRED)
        async with db.begin() as tx:
            await snapshot_rows.begin_delete(tx, row.id)
            await snapshot_rows.end_delete(tx, row.id)
            assert await snapshot_rows.prune(tx, seconds=60) == 0
        await execute(db, "UPDATE snapshot SET deleted_at = now() - interval '2 min'")
        async with db.begin() as tx:
            assert await snapshot_rows.prune(tx, seconds=60) == 1
        assert await scalar(db, "SELECT count(*) FROM snapshot_take") == 0


class TestUse:
    async def test_vms_that_started_from_it_are_counted_and_timed(self, db):
        await make_snapshot(db)
        pool = await make_pool(db, "fed", start_from={"snapshot": "ready"})
        ids = await make_vms(db, pool, 3, VmState.BOOTING)
        await make_ready(db, ids[:2])
        await execute(db, "UPDATE vm SET boot_seconds = 10 WHERE boot_seconds IS NOT NULL")
        async with db.begin() as tx:
            for _ in range(3):
                await snapshot_rows.note_use(tx, "ready")
            use = (await snapshot_rows.use_of(tx, ["ready", "other"]))["ready"]
            assert (use.used, use.boots, use.p50, use.p95) == (3, 2, 10, 10)
            assert (await snapshot_rows.use_of(tx, ["other"]))["other"].used == 0
            assert await snapshot_rows.users_of(tx, ["ready", "other"]) == {"ready": ["fed"], "other": []}
            assert set(await snapshot_rows.pools_using(tx, "ready")) == {"fed"}

    async def test_those_on_their_way_are_waited_for(self, db):
        pool = await make_pool(db, "fed", start_from={"snapshot": "ready"})
        (vm,) = await make_vms(db, pool, 1, VmState.BOOTING)
        later = await now(db) + timedelta(seconds=1)

        async def on_their_way(before):
            async with db.begin() as tx:
                return await snapshot_work.starting_from(tx, "ready", before=before)

        assert await on_their_way(later) == 1
        assert await on_their_way(later - timedelta(minutes=1)) == 0
        await make_ready(db, [vm])
        assert await on_their_way(later) == 0

    async def test_those_that_wait_for_it_are_due_when_it_is_ready(self, db):
        fed = await make_pool(db, "fed", start_from={"snapshot": "ready"})
        other = await make_pool(db, "other", start_from={"snapshot": "another"})
        for pool in (fed, other):
            await make_vms(db, pool, 1, VmState.PLANNED)
        await execute(db, "UPDATE vm SET due_at = now() + interval '1 hour'")
        async with db.begin() as tx:
            await work.source_is_ready(tx, paths=[StartPath.SNAPSHOT], source="ready")
        due = await fetch(db, "SELECT pool_id, due_at <= now() AS due FROM vm")
        assert {row["pool_id"]: row["due"] for row in due} == {fed.id: True, other.id: False}


class TestWork:
    async def take(self, db, token=None, seconds=30):
        async with db.begin() as tx:
            return await snapshot_work.acquire_due(tx, token=token or uuid.uuid4(), limit=10, seconds=seconds)

    async def test_one_worker_holds_it_until_it_is_finished(self, db):
        row = await make_snapshot(db)
        token = uuid.uuid4()
        assert [item.id for item in await self.take(db, token)] == [row.id]
        assert await self.take(db) == []
        async with db.begin() as tx:
            assert await snapshot_work.renew(tx, row.id, token=token, seconds=30)
            assert not await snapshot_work.renew(tx, row.id, token=uuid.uuid4(), seconds=30)
            await snapshot_work.finish(tx, row.id, token=token, seconds=60)
            assert not await snapshot_work.renew(tx, row.id, token=token, seconds=30)
        assert await self.take(db) == []
        await execute(db, "UPDATE snapshot SET due_at = now()")
        assert (await self.take(db))[0].attempts == 1

    async def test_a_wake_meanwhile_is_kept(self, db):
        row = await make_snapshot(db)
        token = uuid.uuid4()
        await self.take(db, token)
        async with db.begin() as tx:
            await snapshot_rows.make_due(tx, row.id)
        assert await self.take(db) == []
        async with db.begin() as tx:
            await snapshot_work.finish(tx, row.id, token=token, seconds=3600, failed=True)
        assert (await self.take(db))[0].attempts == 2

    async def test_what_a_dead_one_had_is_taken_after_the_lease(self, db):
        row = await make_snapshot(db)
        token = uuid.uuid4()
        await self.take(db, token, seconds=-1)
        assert [item.id for item in await self.take(db)] == [row.id]
        async with db.begin() as tx:
            assert not await snapshot_work.renew(tx, row.id, token=token, seconds=30)

    async def test_what_is_released_is_free_at_once(self, db):
        await make_snapshot(db)
        token = uuid.uuid4()
        await self.take(db, token)
        async with db.begin() as tx:
            await snapshot_work.LEASES.release(tx, token=token)
        assert len(await self.take(db)) == 1
