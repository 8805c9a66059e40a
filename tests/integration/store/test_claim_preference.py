"""What a claim with a wish reads: the head of the queue and the latest claims, however large the tables are."""

import json

from sqlalchemy import text

from app.domain.states import VmState
from app.store.claims import preference as claim_preference
from app.store.vms import rows as vms
from app.store.vms.rows import LAST_PLACES
from tests.support.query_plans import ROWS, nodes
from tests.support.rows import execute, make_pool, make_vms, request

LOOK = claim_preference.LOOKED_AT


async def explain(tx, statement, **params):
    query = text(f"EXPLAIN (FORMAT JSON, ANALYZE, TIMING off, SUMMARY off) {statement.text}")
    found = (await tx.execute(query, params)).scalar()
    plan = found if isinstance(found, list) else json.loads(found)
    return list(nodes(plan[0]["Plan"]))


def scans(plan):
    return [node for node in plan if "Scan" in node["Node Type"] and node.get("Relation Name")]


async def test_every_statement_walks_an_index_and_reads_no_more_than_it_looks_at(big):
    db, pool = big
    others = await make_pool(db, "other")
    await make_vms(db, others, 1, VmState.READY)
    async with db.begin() as tx:
        places = await claim_preference.head(tx, pool.id, from_seq=ROWS // 2)
        assert len(places) == LOOK
        assert places[0].seq >= ROWS // 2
        asked = {"pool_id": pool.id, "limit": LOOK}
        wanted = request()
        taking = {
            "pool_id": pool.id,
            "seqs": [place.seq for place in places],
            "claim_id": wanted.id,
            "key": None,
            "hash": "",
            "labels": "{}",
            "lease": 60,
        }
        for plan in (
            await explain(tx, claim_preference._HEAD, from_seq=ROWS // 2, last_places=LAST_PLACES, **asked),
            await explain(tx, claim_preference._LATEST, **asked),
            await explain(tx, claim_preference._TAKE, **taking),
        ):
            assert scans(plan)
            assert not [node for node in scans(plan) if node["Node Type"] == "Seq Scan"], plan
            assert max(node["Actual Rows"] * node["Actual Loops"] for node in scans(plan)) <= LOOK


async def test_the_settings_end_with_the_transaction(big):
    db, pool = big
    for _ in range(3):
        async with db.begin() as tx:
            assert (await tx.execute(text("SHOW enable_seqscan"))).scalar() == "on"
            await claim_preference.head(tx, pool.id, from_seq=0)
    await execute(db, "SELECT 1")


async def test_vms_that_stand_last_are_not_looked_at(db):
    pool = await make_pool(db)
    first, second = await make_vms(db, pool, 2)
    async with db.begin() as tx:
        await vms.put_last(tx, [first])
        (place,) = await claim_preference.head(tx, pool.id, from_seq=0)
        assert place.seq < LAST_PLACES
        await vms.put_last(tx, [second])
        assert await claim_preference.head(tx, pool.id, from_seq=0) == []
