"""What each path took, by shape and over all; and that a long history costs no more than a short one."""

import json

import pytest

from app.domain.paths import StartPath
from app.domain.statistics import BootTimes
from app.store import path_times as paths
from app.store.database import Database
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.rows import execute, make_pool, make_vms


async def boots(db, shape, path, *seconds, queued=0.0):
    """VMs of that shape that started by that path, and were ready so many seconds after they were asked for."""
    pool = await make_pool(db, f"of-{shape}-{path}-{len(seconds)}-{queued:g}".replace(".", "-"))
    ids = await make_vms(db, pool, len(seconds))
    for vm_id, took in zip(ids, seconds, strict=True):
        await execute(
            db,
            """UPDATE vm SET shape = :shape, path = :path, boot_seconds = :took, asked_at = created_at + make_interval(secs => :queued)
            WHERE id = :id""",
            shape=shape,
            path=path,
            took=took,
            queued=queued,
            id=vm_id,
        )
    return pool


async def read(db, function, *args, **kwargs):
    async with db.begin() as tx:
        return await function(tx, *args, **kwargs)


async def test_without_boots_every_path_is_without_times(db):
    times = (await read(db, paths.of_shapes, ["a"]))["a"]
    assert {path: times.of(path) for path in StartPath} == dict.fromkeys(StartPath, BootTimes())
    assert (await read(db, paths.overall)).of(StartPath.COLD) == BootTimes()
    assert await read(db, paths.shapes, after="", limit=10) == []


async def test_each_path_of_each_shape_on_its_own_and_all_together(db):
    await boots(db, "a", "cold", 30.0, 40.0, 50.0)
    await boots(db, "a", "snapshot", 10.0)
    await boots(db, "b", "cold", 60.0)
    found = await read(db, paths.of_shapes, ["a", "b"])
    assert found["a"].of(StartPath.COLD).count == 3
    assert found["a"].of(StartPath.COLD).p50 == pytest.approx(40)
    assert found["a"].of(StartPath.COLD).p95 == pytest.approx(49)
    assert found["a"].of(StartPath.SNAPSHOT).p50 == pytest.approx(10)
    assert found["b"].of(StartPath.SNAPSHOT) == BootTimes()
    assert (await read(db, paths.starts_of_shape, "b")).of(StartPath.COLD).p50 == pytest.approx(60)
    overall = await read(db, paths.overall)
    assert (overall.of(StartPath.COLD).count, overall.of(StartPath.COLD).p50) == (4, pytest.approx(45))


async def test_the_time_until_the_cluster_was_asked_counts(db):
    await boots(db, "a", "cold", 30.0, queued=5.0)
    assert (await read(db, paths.starts_of_shape, "a")).of(StartPath.COLD).p50 == pytest.approx(35)


async def test_only_the_latest_boots_count(db):
    pool = await boots(db, "a", "cold", *([100.0] * 3), *([1.0] * paths.LAST))
    await execute(
        db, "UPDATE vm SET ready_at = now() - interval '1 hour' WHERE boot_seconds = 100 AND pool_id = :id", id=pool.id
    )
    times = (await read(db, paths.starts_of_shape, "a")).of(StartPath.COLD)
    assert (times.count, times.p95) == (paths.LAST, pytest.approx(1))


async def test_claims_of_warm_vms_are_of_the_shape_that_their_vm_had(db):
    pool = await boots(db, "shape-x", "cold", 30.0, 30.0)
    await execute(db, "UPDATE pool SET shape = 'shape-x' WHERE id = :id", id=pool.id)
    waited = [await wait_for_vm(db, pool) for _ in range(2)]
    assert set(await bind(db, pool)) == set(waited)
    await execute(db, "UPDATE claim SET created_at = bound_at - interval '4 seconds' WHERE id = :id", id=waited[0])
    await execute(db, "UPDATE claim SET created_at = bound_at - interval '9 seconds' WHERE id = :id", id=waited[1])
    await execute(db, "UPDATE vm SET shape = 'older' WHERE id = (SELECT vm_id FROM claim WHERE id = :id)", id=waited[1])
    times = (await read(db, paths.of_shapes, ["shape-x"]))["shape-x"].of(StartPath.POOL)
    assert (times.count, times.p50) == (1, pytest.approx(4))
    overall = (await read(db, paths.overall)).of(StartPath.POOL)
    assert (overall.count, overall.p50) == (2, pytest.approx(6.5))


async def test_shapes_are_listed_each_once_and_page_by_page(db):
    for shape in ("c", "a", "b"):
        await boots(db, shape, "cold", 1.0, 2.0)
    await boots(db, "b", "preload", 1.0)
    await boots(db, "d", "snapshot", 1.0)
    assert await read(db, paths.shapes, after="", limit=10) == ["a", "b", "c", "d"]
    assert await read(db, paths.shapes, after="", limit=2) == ["a", "b"]
    assert await read(db, paths.shapes, after="b", limit=2) == ["c", "d"]


ROWS = 8_000
_VMS = f"""
    INSERT INTO vm (id, pool_id, name, state, revision, ready_at, asked_at, boot_seconds, path, shape, ended_at)
    SELECT gen_random_uuid(), :pool, 'vm-' || n, 'deleted', 'r1', now() - make_interval(secs => n), now(), 1, 'cold', 'shape-' || n % 3, now()
    FROM generate_series(1, {ROWS}) n
"""
_CLAIMS = """
    INSERT INTO claim (id, pool_id, vm_id, state, path, lease_seconds, bound_at, ended_at)
    SELECT gen_random_uuid(), :pool, id, 'released', 'pool', 60, now(), now() FROM vm
"""


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.fixture
async def long_history(database_url):
    database = Database(database_url)
    pool = await make_pool(database)
    await execute(database, "UPDATE pool SET shape = 'shape-1' WHERE id = :id", id=pool.id)
    await execute(database, _VMS, pool=pool.id)
    await execute(database, _CLAIMS, pool=pool.id)
    await execute(database, "ANALYZE")
    yield database
    await database.close()


async def test_a_long_history_is_not_walked(long_history):
    """No statement reads more rows of a big table than the last ones that it counts, whatever there is before them."""
    asked = [
        (paths._OF_SHAPES, {"shapes": ["shape-1"], "last": paths.LAST}, 3 * paths.LAST),
        (paths._OVERALL, {"last": paths.LAST}, 3 * paths.LAST),
        (paths._CLAIMED_OF_SHAPES, {"shapes": ["shape-1"], "last": paths.LAST}, 3 * paths.LAST),
        (paths._CLAIMED, {"last": paths.LAST, "looked_at": paths._CLAIMS_LOOKED_AT}, paths._CLAIMS_LOOKED_AT),
        (paths._SHAPES, {"after": "", "limit": 20}, 100),
    ]
    async with long_history.begin() as tx:
        for query, params, most in asked:
            explained = query.text.lstrip()
            text = (
                await tx.execute(type(query)(f"EXPLAIN (FORMAT JSON, ANALYZE, TIMING off) {explained}"), params)
            ).scalar()
            (plan,) = text if isinstance(text, list) else json.loads(text)
            read = [
                node["Actual Rows"] * node["Actual Loops"]
                + node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
                for node in nodes(plan["Plan"])
                if node.get("Relation Name") in {"vm", "claim"}
            ]
            assert sum(read) <= most, explained
