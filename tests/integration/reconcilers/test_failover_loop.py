"""The loop that moves claims to another path, and retires on-demand pools that nobody needs."""

import pytest

from app.config import Settings
from app.reconcilers.claims import failover as reroute
from app.reconcilers.claims.failover import Reroute
from tests.support.described_claims import Process, make_snapshot
from tests.support.rows import execute, scalar


@pytest.fixture
async def process(db, gateway):
    process = Process(db, gateway)
    yield process
    await process.close()


@pytest.fixture
def worker(db, gateway):
    return Reroute(db, gateway, Settings())


async def test_a_claim_whose_path_came_to_nothing_goes_on(db, process, worker):
    await make_snapshot(db, "snap", process.shape())
    answer = await process.claim()
    assert answer.claim.choice["path"] == "snapshot"
    await process.fail_once()
    await worker.step()
    assert await scalar(db, "SELECT choice->>'path' FROM claim WHERE id = :id", id=answer.claim.id) == "cold"


async def test_idle_on_demand_pools_are_retired_at_intervals(db, process, worker, monkeypatch):
    answer = await process.claim()
    await execute(db, "DELETE FROM claim_queue")
    await execute(db, "DELETE FROM claim")
    await execute(db, "UPDATE pool SET created_at = now() - interval '1 day'")
    await worker.step()
    gone = "SELECT deleted_at IS NOT NULL FROM pool WHERE id = :id"
    assert not await scalar(db, gone, id=answer.claim.pool_id)
    monkeypatch.setattr(reroute, "_RETIRE_EVERY_SECONDS", 0.0)
    await worker.step()
    assert await scalar(db, gone, id=answer.claim.pool_id)
