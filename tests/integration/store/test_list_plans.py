"""The plans of lists on large tables, for every combination of filters: a page reads about as many rows as it shows."""

import itertools

import pytest
from sqlalchemy import text

from app.domain.states import ClaimState, VmState
from app.store import events
from app.store.claims import pages as claim_pages
from app.store.claims.warm import WarmClaimStore
from app.store.vms import pages as vm_pages
from app.store.walks import FIRST
from tests.support.claim_rows import end
from tests.support.query_plans import nodes
from tests.support.rows import execute, make_pool, make_vms, request, scalar

ROWS = 30_000
LIMIT = 20
# The rarest of everything is the oldest, where a walk from the newest comes last.
_CLAIMS = f"""
    INSERT INTO claim (id, pool_id, state, lease_seconds, labels, shape, ended_at)
    SELECT lpad(to_hex(n), 32, '0')::uuid, CASE WHEN n <= 60 THEN CAST(:rare AS uuid) ELSE CAST(:pool AS uuid) END,
        CASE WHEN n % 100 = 1 THEN 'failed' WHEN n % 3 = 0 THEN 'expired' ELSE 'released' END, 60,
        CASE WHEN n <= 60 THEN '{{"team": "old", "all": "x"}}' WHEN n % 2 = 0 THEN '{{"all": "x"}}' ELSE '{{}}' END::jsonb,
        CASE WHEN n <= 60 THEN 'rare' WHEN n % 2 = 0 THEN 'often' END, now() - interval '1 day'
    FROM generate_series(1, {ROWS}) n
"""
_LABELS = """
    INSERT INTO claim_label (claim_id, label, pool_id, shape, state)
    SELECT c.id, l.key || '=' || l.value, c.pool_id, c.shape, c.state FROM claim c CROSS JOIN jsonb_each_text(c.labels) l
"""
_VMS = f"""
    INSERT INTO vm (id, pool_id, name, state, revision, ended_at, lost)
    SELECT lpad(to_hex(n), 32, '0')::uuid, CASE WHEN n <= 60 THEN CAST(:rare AS uuid) ELSE CAST(:pool AS uuid) END, 'vm-' || n,
        CASE WHEN n <= 60 THEN 'lost' ELSE 'deleted' END, 'r1', now(), n <= 60
    FROM generate_series(1, {ROWS}) n
"""
_EVENTS = f"""
    INSERT INTO event (xid, type, pool_id)
    SELECT (3 + n / 50)::text::xid8, CASE WHEN n <= 60 THEN 'pool.changed' WHEN n % 4 = 0 THEN 'claim.bound' ELSE 'vm.ready' END,
        CASE WHEN n <= 60 THEN CAST(:rare AS uuid) ELSE CAST(:pool AS uuid) END
    FROM generate_series(1, {ROWS}) n
"""


@pytest.fixture
async def large(db):
    """Two pools, one of which has nearly all of the history."""
    pool, rare = await make_pool(db, "web"), await make_pool(db, "rare")
    return {"pool": pool.id, "rare": rare.id}


async def walk(db, query, **params):
    """How many rows each scan of the statement read, dropped ones included, with the session that lists have."""
    explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING off, SUMMARY off) {query.text}")
    async with db.begin() as tx:
        await tx.execute(text("SET LOCAL enable_seqscan = off"))
        (plan,) = (await tx.execute(explain, params)).scalar_one()
    found = {}
    for node in nodes(plan["Plan"]):
        if node["Node Type"] in {"Sort", "Incremental Sort"}:
            rows = node["Plans"][0]["Actual Rows"] * node["Plans"][0]["Actual Loops"]
        elif "Relation Name" in node or node["Node Type"] == "Bitmap Index Scan":
            dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            rows = (node["Actual Rows"] + dropped) * node["Actual Loops"]
        else:
            continue
        name = node.get("Index Name") or node.get("Relation Name") or "sort"
        found[name] = max(found.get(name, 0), rows)
    return found


async def test_every_page_of_claims_reads_about_as_many_rows_as_it_shows(db, large):
    await execute(db, _CLAIMS, **large)
    await execute(db, _LABELS)
    for table in ("claim", "claim_label", "pool"):
        await execute(db, f"ANALYZE {table}")
    after = await scalar(db, "SELECT id FROM claim ORDER BY id OFFSET 20000 LIMIT 1")
    pools, shapes, labels = (None, "rare", "pool"), (None, "rare", "often"), (None, ("team", "old"), ("all", "x"))
    seen = set()
    for pool, state, shape, label, beyond in itertools.product(
        pools, (None, *ClaimState), shapes, labels, (None, after)
    ):
        query = claim_pages.statement(
            pool=pool is not None, state=state, shape=shape is not None, label=label is not None
        )
        name, value = label or ("", "")
        given = {"pools": [large[pool]] if pool else None, "shape": shape, "after": beyond or FIRST, "limit": LIMIT}
        given |= {"label": f"{name}={value}", "name": name, "value": value}
        given["states"] = claim_pages._states(state, open_too=shape is not None)
        found = await walk(db, query, **given)
        assert max(found.values(), default=0) <= 6 * LIMIT, (pool, state, shape, label, beyond, found)
        seen |= set(found)
    assert seen >= {
        *("claim_pkey", "claim_pool_idx", "claim_history_idx", "claim_pool_history_idx", "claim_shape_idx"),
        *("claim_pool_shape_idx", "claim_label_idx", "claim_label_pool_idx", "claim_label_shape_idx"),
        *("claim_label_pool_shape_idx", "claim_lease_idx"),
    }


async def test_every_page_of_vms_reads_about_as_many_rows_as_it_shows(db, large):
    await execute(db, _VMS, **large)
    query = """
        INSERT INTO vm (id, pool_id, name, state, revision)
        SELECT gen_random_uuid(), CAST(:pool AS uuid), 'live-' || n, 'planned', 'r1' FROM generate_series(1, 300) n"""
    await execute(db, query, **large)
    for table in ("vm", "pool"):
        await execute(db, f"ANALYZE {table}")
    after = await scalar(db, "SELECT id FROM vm ORDER BY id OFFSET 20000 LIMIT 1")
    seen = set()
    for pool, state, ended, beyond in itertools.product(
        (None, "rare", "pool"), (None, *VmState), (False, True), (None, after)
    ):
        only_ended = state in {VmState.DELETED, VmState.LOST}
        query = vm_pages.statement(pool=pool is not None, state=state, ended=ended or only_ended)
        given = {
            "pools": [large[pool]] if pool else None,
            "state": state and str(state),
            "after": beyond or FIRST,
            "limit": LIMIT,
        }
        found = await walk(db, query, **given)
        alive = 0 if only_ended else 300  # those may be read whole
        assert max(found.values(), default=0) <= 6 * LIMIT + alive, (pool, state, ended, beyond, found)
        seen |= set(found)
    assert seen >= {"vm_pkey", "vm_live_idx", "vm_history_idx", "vm_pool_history_idx"}


async def test_every_page_of_events_reads_about_as_many_rows_as_it_shows(db, large):
    await execute(db, _EVENTS, **large)
    await execute(db, "INSERT INTO bound_event SELECT pool_id, xid, id FROM event WHERE type = 'claim.bound'")
    await execute(db, "INSERT INTO event_reader SELECT 'plan', xid, id FROM event ORDER BY xid DESC, id DESC LIMIT 1")
    for table in ("event", "bound_event", "pool"):
        await execute(db, f"ANALYZE {table}")
    seen = set()
    for pool, kind, forward, xid in itertools.product(
        (None, "rare", "pool"), (None, *events.KINDS), (False, True), ("3", "300", "18446744073709551615")
    ):
        query = events.statement(forward=forward, pool=pool is not None, kind=kind)
        given = {
            "pools": [large[pool]] if pool else None,
            "kind": kind,
            "kinds": [kind] if kind else list(events.KINDS),
        }
        found = await walk(db, query, **given, xid=xid, id=0, limit=LIMIT)
        assert max(found.values(), default=0) <= 10 * LIMIT, (pool, kind, forward, xid, found)
        seen |= set(found)
    assert seen >= {"event_pkey", "event_pool_idx", "event_kind_idx", "bound_event_pkey"}


async def test_labels_of_a_claim_are_listed_before_and_after_it_ends(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1)
    lane = WarmClaimStore(db.url)
    await lane.claim(pool.id, [request(labels={"job": "1", "a": "b=c", "empty": ""})])
    await lane.close()
    claim_id = await scalar(db, "SELECT id FROM claim")

    async def listed(label, state=None):
        async with db.begin() as tx:
            return [claim.id for claim in await claim_pages.page(tx, after=None, limit=9, label=label, state=state)]

    for state in (ClaimState.BOUND, ClaimState.RELEASED):
        for label in (("job", "1"), ("a", "b=c"), ("empty", "")):
            assert await listed(label) == await listed(label, state) == [claim_id]
        assert await listed(("job", "2")) == await listed(("job", "1"), ClaimState.FAILED) == []
        if state is ClaimState.BOUND:
            assert await scalar(db, "SELECT count(*) FROM claim_label") == 0, "they cost a claim of a warm VM nothing"
            await end(db, [claim_id])
