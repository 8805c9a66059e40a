"""Rows of snapshots that keep memory, among those that do not, and rows that an older program wrote."""

import json

import pytest
from sqlalchemy import text

from app.domain.paths import FromSnapshot, StartPath
from app.domain.pools import StartFrom
from app.domain.snapshot_specs import SnapshotSpec
from app.ids import new_id, vm_name
from app.store import migrations, path_times
from app.store.pools import rows as pool_rows
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import sources as snapshots
from app.store.snapshots import work as snapshot_work
from app.store.snapshots.sources import StaleMemory
from tests.support.described_claims import make_snapshot
from tests.support.rows import execute, fetch, make_pool, make_vms, scalar, spec

VM_SPEC = {"template": {"spec": {"domain": {}}}}


async def read(db, function, *args, **kwargs):
    async with db.begin() as tx:
        return await function(tx, *args, **kwargs)


async def take_of(db, name):
    return await scalar(
        db, "SELECT t.id FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id WHERE s.name = :name", name=name
    )


async def test_memory_and_disks_serve_a_shape_apart(db):
    await make_snapshot(db, "disks", "s1")
    await make_snapshot(db, "memory", "s1", memory=VM_SPEC)
    await make_snapshot(db, "coming", "s1", memory=VM_SPEC, state="taking")
    assert [each.name for each in await read(db, snapshots.ready_for_shape, "s1")] == ["disks"]
    assert [each.name for each in await read(db, snapshots.ready_for_shape, "s1", memory=True)] == ["memory"]
    assert await read(db, snapshots.under_way_for_shape, "s1") == []
    assert await read(db, snapshots.under_way_for_shape, "s1", memory=True) == ["coming"]


async def test_a_start_tells_the_memory_by_its_name_in_the_cluster(db):
    await make_snapshot(db, "memory", "s1", memory=VM_SPEC)
    start = await read(db, snapshots.start_of, "memory")
    assert isinstance(start, FromSnapshot)
    assert start.memory.snapshot == vm_name("memory", await take_of(db, "memory"))
    assert start.memory.spec == VM_SPEC
    await make_snapshot(db, "disks", "s1")
    assert (await read(db, snapshots.start_of, "disks")).memory is None


async def test_stale_memory_serves_nobody_and_is_told_once(db):
    await make_snapshot(db, "memory", "s1", memory=VM_SPEC)
    take_id = await take_of(db, "memory")
    assert await read(db, snapshot_rows.mark_stale, take_id, "another QEMU")
    assert not await read(db, snapshot_rows.mark_stale, take_id, "another QEMU")
    assert await read(db, snapshots.ready_for_shape, "s1", memory=True) == []
    assert await read(db, snapshots.start_of, "memory") == StaleMemory("memory", "another QEMU")
    (event,) = await fetch(db, "SELECT data FROM event WHERE type = 'snapshot.stale'")
    assert event["data"] == {"snapshot": "memory", "take": 1, "reason": "another QEMU"}


@pytest.mark.parametrize(("memory", "path"), [(None, StartPath.SNAPSHOT), (VM_SPEC, StartPath.MEMORY)])
async def test_the_snapshot_of_a_pool_says_by_which_path_its_vms_start(db, memory, path):
    await make_snapshot(db, "snap", "s1", memory=memory)
    wanted = spec(size=1, start_from=StartFrom(snapshot="snap"))
    written = {"spec": wanted, "vm_spec": VM_SPEC, "revision": "r1", "shape": "s1"}
    async with db.begin() as tx:
        assert await pool_rows.insert(tx, pool_id=new_id(), name="web", **written)
        pool = await pool_rows.get(tx, "web")
        assert (pool.path, pool.source) == (path, "snap")
        await pool_rows.replace(tx, pool.id, **written)
        assert (await pool_rows.get(tx, "web")).path is path
        assert (await snapshot_rows.users_of(tx, ["snap"]))["snap"] == ["web"]


async def test_starts_from_memory_have_times_of_their_own(db):
    pool = await make_pool(db, "web")
    for vm_id, path in zip(await make_vms(db, pool, 2), ("memory", "snapshot"), strict=True):
        await execute(
            db,
            """UPDATE vm SET shape = 'a', path = CAST(:path AS text), source = 'snap', asked_at = created_at, ready_at = now(),
                boot_seconds = CASE WHEN :path = 'memory' THEN 1 ELSE 9 END WHERE id = :id""",
            id=vm_id,
            path=path,
        )
    times = (await read(db, path_times.of_shapes, ["a"]))["a"]
    assert (times.of(StartPath.MEMORY).p50, times.of(StartPath.SNAPSHOT).p50) == (1, 9)
    assert (await read(db, path_times.overall)).of(StartPath.MEMORY).count == 1
    assert await read(db, path_times.shapes, after="", limit=10) == ["a"]
    await make_snapshot(db, "snap", "a", memory=VM_SPEC)
    assert (await read(db, snapshot_rows.use_of, ["snap"]))["snap"].boots == 2


async def test_a_vm_that_failed_to_start_from_memory_makes_its_snapshot_due(db):
    await make_snapshot(db, "memory", "s1", memory=VM_SPEC)
    pool = await make_pool(db, "web")
    first, second = await make_vms(db, pool, 2)
    await execute(db, "UPDATE snapshot SET due_at = 'infinity'")
    await execute(db, "UPDATE vm SET path = 'memory', source = 'memory' WHERE id = :id", id=first)
    assert not await read(db, snapshot_work.doubt, [second])
    assert await read(db, snapshot_work.doubt, [first])
    assert await scalar(db, "SELECT due_at <= now() FROM snapshot")


async def test_a_row_that_an_older_program_wrote_keeps_no_memory(db):
    await execute(
        db,
        "INSERT INTO snapshot (id, name, spec) VALUES (gen_random_uuid(), 'old', CAST(:spec AS jsonb))",
        spec=json.dumps({"name": "old", "source": {"vm": "v", "pool": None}, "keep": 2}),
    )
    row = await read(db, snapshot_rows.get, "old")
    assert (row.memory, row.spec.memory, row.spec.keep) == (False, False, 2)


async def test_an_older_program_can_read_what_is_written_of_a_spec(db):
    wanted = SnapshotSpec(name="new", source={"pool": "web"}, memory=True)
    async with db.begin() as tx:
        await snapshot_rows.insert(tx, snapshot_id=new_id(), spec=wanted)
        assert (await snapshot_rows.get(tx, "new")).spec == wanted
    assert "memory" not in await scalar(db, "SELECT spec FROM snapshot WHERE name = 'new'")


async def test_what_only_newer_programs_can_read_is_said_of_the_schema(db):
    told = text("SELECT serves_from FROM schema_compat")
    await execute(db, "INSERT INTO schema_compat (revision, serves_from) VALUES ('0015', '0005')")
    async with db.begin() as tx:
        await migrations.require(tx, "0015")
        assert (await tx.execute(told)).scalar_one() == "0015"
        await migrations.require(tx, "0001")
        assert (await tx.execute(told)).scalar_one() == "0015"
