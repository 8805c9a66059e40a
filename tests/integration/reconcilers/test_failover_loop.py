"""The loop that moves claims on, lets hidden pools go, and gives older pools their shape."""

import pytest

from app.config import Settings
from app.reconcilers.claims import failover as reroute
from app.reconcilers.claims.failover import Reroute
from tests.support.described_claims import Process, make_snapshot
from tests.support.rows import execute, scalar

SPEC = """{"runStrategy": "Always", "template": {"spec": {"domain": {"devices": {}}}}}"""


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


async def test_older_pools_get_their_shape_once(db, process, worker):
    await process.make_pool(size=0)
    await execute(db, "UPDATE pool SET shape = NULL, vm_spec = CAST(:spec AS jsonb)", spec=SPEC)
    assert not await worker.step()
    assert await scalar(db, "SELECT shape FROM pool")
    await execute(db, "UPDATE pool SET shape = NULL")
    await worker.step()
    assert await scalar(db, "SELECT shape IS NULL FROM pool")


async def test_hidden_pools_are_looked_at_now_and_then(db, process, worker, monkeypatch):
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
