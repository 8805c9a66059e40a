"""History goes once it is too old, all of it, in batches."""

import pytest

from app.domain.states import VmState
from app.reconcilers.history import pruner as pruning
from app.reconcilers.history.pruner import HistoryPruner
from app.store import history
from app.store.claims.warm import WarmClaimStore
from app.store.pools import overlooked
from tests.support.claim_rows import end
from tests.support.rows import execute, fetch, make_pool, make_vms, request, scalar


@pytest.fixture
async def ended(db):
    """A pool whose 7 claims with labels and keys, VMs and events are 90 days old."""
    pool = await make_pool(db)
    vms = await make_vms(db, pool, 7)
    lane = WarmClaimStore(db.url)
    await lane.claim(pool.id, [request(f"key-{n}", labels={"job": str(n), "all": "x"}) for n in range(7)])
    await lane.close()
    ids = [row["id"] for row in await fetch(db, "SELECT id FROM claim")]
    await end(db, ids)
    await execute(db, "UPDATE claim SET ended_at = now() - interval '90 days'")
    await execute(db, "UPDATE vm SET state = 'deleted', ended_at = now() - interval '90 days'")
    await execute(db, "UPDATE event SET at = now() - interval '90 days'")
    async with db.begin() as tx:
        await overlooked.begin(tx)
        await overlooked.request_changed(tx, delay_seconds=0, limit=1000)
    assert await scalar(db, "SELECT count(*) FROM bound_event") == len(vms) == 7
    return pool


async def rows_left(db):
    tables = ("claim", "claim_label", "vm", "event", "bound_event", "pool", "pool_plan")
    return {table: await scalar(db, f"SELECT count(*) FROM {table}") for table in tables}


async def test_all_of_it_goes_batch_after_batch_and_the_deleted_pool_last(db, settings, ended, monkeypatch):
    monkeypatch.setattr(pruning, "_BATCH", 3)
    await execute(db, "UPDATE pool SET deleted_at = now() - interval '90 days'")
    pruner = HistoryPruner(db, settings)
    steps = 1
    while await pruner.step():
        steps += 1
        assert (await rows_left(db))["pool"] == 1
    assert await rows_left(db) == dict.fromkeys(
        ("claim", "claim_label", "vm", "event", "bound_event", "pool", "pool_plan"), 0
    )
    assert steps > 7 // 3


async def test_what_is_young_or_has_not_ended_stays(db, settings, ended):
    await make_vms(db, ended, 2)
    (lost,) = await make_vms(db, ended, 1, VmState.BOOTING)
    await execute(db, "UPDATE vm SET state = 'lost', lost = true, ended_at = now() WHERE id = :id", id=lost)
    young = await scalar(db, "SELECT id FROM claim LIMIT 1")
    await execute(db, "UPDATE claim SET ended_at = now() WHERE id = :id", id=young)
    lane = WarmClaimStore(db.url)
    await lane.claim(ended.id, [request()])
    await lane.close()
    events = await scalar(db, "SELECT count(*) FROM event WHERE at > now() - interval '1 day'")
    assert not await HistoryPruner(db, settings).step()
    assert await rows_left(db) == {
        "claim": 2,
        "claim_label": 2,
        "vm": 3,
        "event": events,
        "bound_event": 0,
        "pool": 1,
        "pool_plan": 1,
    }


async def test_a_key_is_free_once_its_claim_is_pruned(db, settings, ended):
    await HistoryPruner(db, settings).step()
    await make_vms(db, ended, 1)
    lane = WarmClaimStore(db.url)
    (outcome,) = await lane.claim(ended.id, [request("key-1")])
    await lane.close()
    assert outcome.claim.request.key == "key-1"


async def test_two_replicas_do_not_wait_for_each_other(db, settings, ended):
    async with db.begin() as tx:
        assert await history.begin(tx)
        assert not await HistoryPruner(db, settings).step()
    assert (await rows_left(db))["claim"] == 7
    await HistoryPruner(db, settings).step()
    assert (await rows_left(db))["claim"] == 0


async def test_old_takes_go_and_the_last_of_each_snapshot_stay(db, settings):
    await execute(db, "INSERT INTO snapshot (id, name, spec) VALUES (gen_random_uuid(), 'golden', '{}')")
    query = """
        INSERT INTO snapshot_take (id, snapshot_id, number, state, ended_at)
        SELECT gen_random_uuid(), s.id, n, 'retired', now() - interval '90 days' FROM snapshot s, generate_series(1, 30) n"""
    await execute(db, query)
    await HistoryPruner(db, settings).step()
    assert [row["number"] for row in await fetch(db, "SELECT number FROM snapshot_take ORDER BY 1")] == list(
        range(21, 31)
    )
