"""Whole replicas side by side on one database: pools come to their size and stay there, whoever works."""

import asyncio

import pytest

from app.errors import ClusterRefused, ClusterUnavailable
from app.services.claims.lifecycle import release_claim
from app.services.pools.service import delete_pool, put_pool
from tests.support import store_invariants as invariants
from tests.support.claim_services import new_claim, run_claim_service, stays_connected
from tests.support.rows import eventually, fetch, scalar, spec
from tests.support.worker_replicas import replicas, settles


@pytest.fixture
def warm_cluster(gateway):
    gateway.boots_at_once = True
    return gateway


async def test_two_replicas_fill_a_pool_once_and_backfill_what_is_claimed(db, warm_cluster, settings):
    async with replicas(db, warm_cluster, settings), run_claim_service(db.url) as claim_service:
        await put_pool(db, warm_cluster, "web", spec(size=6))
        await settles(db, ready=6)
        answers = await asyncio.gather(*(claim_service.claim(new_claim(wait=30), stays_connected) for _ in range(4)))
        await settles(db, ready=6, claimed=4)
        ids = [answer.claim.id for answer in answers]
        for claim_id in ids[:2]:
            await release_claim(db, claim_id)
        await settles(db, ready=6, claimed=2)

        async def labelled():
            return {vm.claim_id for vm in warm_cluster.vms.values()} >= {str(claim_id) for claim_id in ids[2:]}

        await eventually(labelled)
        await invariants.check(db)
        assert len(warm_cluster.vms) == 8
    created = warm_cluster.called("create")
    assert len(created) == len(set(created)), "no VM was asked for twice"
    assert len(created) == await scalar(db, "SELECT count(*) FROM vm")


async def test_a_pool_goes_whole_with_all_its_objects(db, warm_cluster, settings):
    async with replicas(db, warm_cluster, settings), run_claim_service(db.url) as claim_service:
        await put_pool(db, warm_cluster, "web", spec(size=3))
        await settles(db, ready=3)
        await claim_service.claim(new_claim(wait=30), stays_connected)
        await delete_pool(db, "web", force=False)
        await settles(db, claimed=1)
        await delete_pool(db, "web", force=True)

        async def gone():
            return await scalar(db, "SELECT deleted_at FROM pool")

        await eventually(gone)
    assert warm_cluster.vms == {}


async def test_a_new_template_rotates_the_pool_and_keeps_its_floor(db, warm_cluster, settings):
    async with replicas(db, warm_cluster, settings):
        await put_pool(db, warm_cluster, "web", spec(size=4, min_available=3))
        await settles(db, ready=4)
        edited = await put_pool(db, warm_cluster, "web", spec(size=4, min_available=3, template={"image": "new"}))

        async def rotated():
            assert await scalar(db, "SELECT count(*) FROM ready_slot") >= 3
            query = "SELECT count(*) FROM vm WHERE state = 'ready' AND revision = :r"
            return await scalar(db, query, r=edited.pool.revision) == 4

        await eventually(rotated)
        await settles(db, ready=4)


async def test_a_cluster_that_goes_away_and_comes_back_costs_nothing_but_time(db, warm_cluster, settings):
    for call in ("create", "delete"):
        warm_cluster.refuse(call, ClusterUnavailable("away"), times=2)
    async with replicas(db, warm_cluster, settings), run_claim_service(db.url) as claim_service:
        await put_pool(db, warm_cluster, "web", spec(size=3))
        await settles(db, ready=3)
        answer = await claim_service.claim(new_claim(wait=30), stays_connected)
        await release_claim(db, answer.claim.id)
        await settles(db, ready=3)
    assert await scalar(db, "SELECT last_failure FROM pool") is None


async def test_a_template_that_keeps_failing_stalls_its_pool(db, warm_cluster, settings):
    warm_cluster.refuse("create", ClusterRefused("no such instance type"))
    async with replicas(db, warm_cluster, settings):
        await put_pool(db, warm_cluster, "web", spec(size=2))

        async def stalled():
            return await scalar(db, "SELECT stalled_at FROM pool")

        await eventually(stalled)
        await settles(db)
        row = (await fetch(db, "SELECT consecutive_failures, last_failure FROM pool"))[0]
        assert row["last_failure"] == "no such instance type"
        # A VM that was planned while the last failure was being counted counts too.
        assert row["consecutive_failures"] >= settings.breaker_failures
        del warm_cluster.before["create"]
        await put_pool(db, warm_cluster, "web", spec(size=2, template={"image": "mended"}))
        await settles(db, ready=2)


async def test_one_replica_that_dies_leaves_its_work_to_the_other(db, warm_cluster, settings):
    async with replicas(db, warm_cluster, settings) as (first, _):
        await put_pool(db, warm_cluster, "web", spec(size=3))
        first.cancel()
        await asyncio.wait([first])
        await put_pool(db, warm_cluster, "web", spec(size=5))
        await settles(db, ready=5)
    assert len(warm_cluster.vms) == 5
