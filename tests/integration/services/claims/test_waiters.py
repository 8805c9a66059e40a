"""Claims that wait: in order of arrival whichever replica they came to, woken by one notice or by none, gone when their client is."""

import asyncio
import contextlib

import asyncpg
import pytest

from app.config import Settings
from app.domain.claims import WarmClaim
from app.domain.states import ClaimState
from app.errors import DatabaseUnavailable, NoWarmVm
from app.services.claims import queue
from app.services.claims.service import ClaimService
from app.services.claims.waiters import Waiters
from app.services.pools.service import delete_pool
from app.store.claims.warm import WarmClaimStore
from tests.support.claim_services import new_claim, stays_connected
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, execute, fetch, make_pool, make_vms, scalar
from tests.support.service import listen
from tests.support.vm_supply import supply, waiting, warm

CROWD = 150
HELD = "SELECT extract(epoch FROM pending_until - now())::float FROM claim"


async def claim(claim_service, pool="web", *, until_disconnected=stays_connected, **how):
    return await claim_service.claim(new_claim(pool, **how), until_disconnected)


async def vms_of(asked):
    answers = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE)
    return [answer.vm_id if isinstance(answer, WarmClaim) else answer.claim.vm_id for answer in answers]


async def test_the_only_waiter_of_one_replica_has_its_turn_among_the_many_of_another(db, make_claim_service):
    pool = await make_pool(db)
    busy, quiet = await make_claim_service(), await make_claim_service()
    asked = []
    for number in range(15):
        asked.append(asyncio.create_task(claim(quiet if number == 7 else busy, wait=60)))
        await waiting(db, pool, number + 1)
    ready = []
    for size in (1, 6, 3, 5):
        ready += await supply(db, pool, size)
        assert await vms_of(asked[: len(ready)]) == ready
        assert not any(each.done() for each in asked[len(ready) :])


async def test_newcomers_of_one_replica_do_not_overtake_the_waiter_of_another(db, make_claim_service):
    pool = await make_pool(db)
    busy, quiet = await make_claim_service(), await make_claim_service()
    patient = asyncio.create_task(claim(quiet, wait=60))
    await waiting(db, pool, 1)
    arrivals = [asyncio.create_task(claim(busy, wait=60)) for _ in range(10)]
    await waiting(db, pool, 11)
    arrivals += [
        asyncio.create_task(claim(busy, wait=60)) for _ in range(30)
    ]  # on their way while the VM becomes ready
    (vm_id,) = await supply(db, pool, 1)
    assert await vms_of([patient]) == [vm_id]
    assert not any(each.done() for each in arrivals)
    for each in arrivals:
        each.cancel()
    await asyncio.wait(arrivals)
    await waiting(db, pool, 0)


async def test_a_batch_of_ready_vms_is_one_notice_and_a_warm_claim_none(db, make_claim_service):
    pool = await make_pool(db)
    claim_service = await make_claim_service()
    asked = [asyncio.create_task(claim(claim_service, wait=60)) for _ in range(40)]
    await waiting(db, pool, 40)
    heard = []
    connection = await asyncpg.connect(db.url)
    await connection.add_listener("emberpool", lambda *notice: heard.append(notice[-1]))
    ready = await supply(db, pool, 40)
    assert set(await vms_of(asked)) == set(ready)
    await connection.execute("SELECT 1")
    (settled,) = [each for each in heard if each.startswith("settled:")]
    assert len(settled.partition(":")[2].split(",")) == 40
    await connection.close()

    await supply(db, pool, 5)
    lone = WarmClaimStore(db.url)
    connection = await asyncpg.connect(db.url)
    heard.clear()
    await connection.add_listener("emberpool", lambda *notice: heard.append(notice[-1]))
    silent = ClaimService(db, lone, Waiters(db, lone), Settings())  # nothing of it runs that tells planners
    for _ in range(5):
        assert isinstance(await claim(silent), WarmClaim)
    await connection.execute("SELECT 1")
    assert heard == []
    await connection.close()
    await lone.close()


async def test_a_lost_notice_costs_a_polling_interval_and_no_more(db):
    """Nobody listens here. The room looks at all who wait now and then."""
    pool = await make_pool(db)
    lane = WarmClaimStore(db.url)
    room = Waiters(db, lane)
    claim_service = ClaimService(db, lane, room, Settings())
    stop = asyncio.Event()
    running = [asyncio.create_task(part.run(stop)) for part in (claim_service, room)]
    asked = []
    for number in range(5):
        asked.append(asyncio.create_task(claim(claim_service, wait=60)))
        await waiting(db, pool, number + 1)
    ready = await supply(db, pool, 5)
    assert await vms_of(asked) == ready
    stop.set()
    await asyncio.gather(*running)
    await lane.close()


async def test_a_room_outlives_a_database_that_is_away(db, monkeypatch):
    pool = await make_pool(db)
    lane = WarmClaimStore(db.url)
    room = Waiters(db, lane)
    claim_service = ClaimService(db, lane, room, Settings())
    stop = asyncio.Event()
    running = asyncio.create_task(room.run(stop))
    asked = asyncio.create_task(claim(claim_service, wait=60))
    await waiting(db, pool, 1)
    away = asyncio.Event()
    read = lane.read

    async def fail_once(ids):
        monkeypatch.setattr(lane, "read", read)
        away.set()
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(lane, "read", fail_once)
    room.wake()
    await asyncio.wait_for(away.wait(), PATIENCE)
    ready = await supply(db, pool, 1)
    assert await vms_of([asked]) == ready
    stop.set()
    await running
    await lane.close()


async def test_a_connection_that_is_closed_frees_its_place_for_the_next(db, make_replica):
    pool = await make_pool(db)
    replica = await make_replica()
    async with listen(replica.app) as client:
        leaves = asyncio.create_task(client.post("/v1/claim", json={"pool": "web", "wait_seconds": 60}))
        await waiting(db, pool, 1)
        stays = asyncio.create_task(
            client.post("/v1/claim", json={"pool": "web", "wait_seconds": 60}, timeout=PATIENCE)
        )
        await waiting(db, pool, 2)
        leaves.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaves
        await waiting(db, pool, 1)
        (vm_id,) = await supply(db, pool, 1)
        answer = await asyncio.wait_for(stays, PATIENCE)
    assert (answer.status_code, answer.json()["vm"]["id"]) == (201, str(vm_id))
    assert [row["state"] for row in await fetch(db, "SELECT state FROM claim ORDER BY id")] == ["failed", "bound"]


async def test_a_connection_with_a_key_that_is_closed_keeps_its_place_for_the_retry(db, make_replica):
    pool = await make_pool(db)
    replicas = [await make_replica(), await make_replica()]
    key = {"Idempotency-Key": "k"}
    body = {"pool": "web", "wait_seconds": 60}
    async with listen(replicas[0].app) as client:
        leaves = asyncio.create_task(client.post("/v1/claim", json=body, headers=key))
        await waiting(db, pool, 1)
        behind = asyncio.create_task(replicas[1].client.post("/v1/claim", json=body, timeout=PATIENCE))
        await waiting(db, pool, 2)
        leaves.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaves

        async def lapses():
            return 0 < await scalar(db, f"{HELD} WHERE idem_key = 'k'") <= 15

        await eventually(lapses)
        retried = asyncio.create_task(replicas[1].client.post("/v1/claim", json=body, headers=key, timeout=PATIENCE))

        async def held():
            return await scalar(db, f"{HELD} WHERE idem_key = 'k'") > 100

        await eventually(held)
        ready = await supply(db, pool, 2)
        answers = await asyncio.wait_for(asyncio.gather(retried, behind), PATIENCE)
    assert [answer.json()["vm"]["id"] for answer in answers] == [str(vm_id) for vm_id in ready]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_who_leaves_after_his_retry_has_come_does_not_take_the_place_from_it(db, make_claim_service, cancelled):
    """The first connection's end is often noticed after the second has asked, by another replica perhaps."""
    pool = await make_pool(db)
    desks = [await make_claim_service(), await make_claim_service()]
    gone = asyncio.Event()
    first = asyncio.create_task(claim(desks[0], wait=60, key="k", until_disconnected=gone.wait))
    await waiting(db, pool, 1)
    before = await scalar(db, "SELECT pending_until FROM claim")
    retried = asyncio.create_task(claim(desks[1], wait=60, key="k"))

    async def held():
        return await scalar(db, "SELECT pending_until FROM claim") > before

    await eventually(held)
    if cancelled:
        first.cancel()
    else:
        gone.set()
    await asyncio.wait([first])
    assert await scalar(db, HELD) > 100
    ready = await supply(db, pool, 1)
    assert await vms_of([retried]) == ready


async def test_who_is_cancelled_while_the_place_is_being_written_leaves_none(db, make_claim_service):
    pool = await make_pool(db)
    claim_service = await make_claim_service()
    for ticks in range(0, 600, 25):
        asked = asyncio.create_task(claim(claim_service, wait=60))
        for _ in range(ticks):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked])
    await waiting(db, pool, 0)


async def test_a_pool_with_a_ready_vm_in_somebodys_hand_is_waited_for(db, make_claim_service):
    """Whoever holds the last VM may let it go again: who is ready to wait is not told that there is none."""
    pool = await make_pool(db, auto_replenish=False)
    (vm_id,) = await make_vms(db, pool, 1)
    claim_service = await make_claim_service()
    async with db.begin() as other:
        await other.exec_driver_sql("SELECT 1 FROM ready_slot FOR UPDATE")
        asked = asyncio.create_task(claim(claim_service, wait=60))
        await waiting(db, pool, 1)
    await warm(db, pool, [])
    assert await vms_of([asked]) == [vm_id]


async def test_the_claims_of_other_pools_are_served_beside_a_crowd_at_an_empty_pool(db, make_replica, monkeypatch):
    """Many times as many claims as may take their places at once. A busy machine may take as long as it needs for them."""
    monkeypatch.setattr(queue, "_TURN_SECONDS", 600.0)
    replica = await make_replica()
    empty, calm = await make_pool(db, "empty"), await make_pool(db, "calm")
    known = await make_vms(db, calm, 60)
    crowd = [asyncio.create_task(claim(replica.services.claim_service, "empty", wait=3600)) for _ in range(CROWD)]
    served = [await replica.claim_one("calm") for _ in range(20)]  # while they take their places
    assert not any(each.done() for each in crowd)
    await waiting(db, empty, CROWD)
    served += [await replica.claim_one("calm") for _ in range(20)]
    await execute(db, "UPDATE pool SET spec = spec || '{\"size\": 0}' WHERE name = 'empty'")
    deleting = asyncio.create_task(delete_pool(db, "empty", force=False))
    served += [await replica.claim_one("calm") for _ in range(20)]  # while all of them are sent away
    await deleting
    outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {NoWarmVm}
    assert [one["vm"]["id"] for one in served] == [str(vm_id) for vm_id in known]


async def test_the_claims_of_other_pools_are_served_beside_a_hot_pool(db, make_replica):
    """Forty clients ask the one without a pause, until the other pool has given out its last. Each has a database connection to
    itself: on a busy machine it would wait too long for one.
    """
    replica = await make_replica(database_pool_size=40)
    hot, calm = await make_pool(db, "hot"), await make_pool(db, "calm")
    await make_vms(db, hot, 40)
    known = await make_vms(db, calm, 20)
    over = asyncio.Event()

    async def insist(key):
        while not over.is_set():
            assert (await replica.claim("hot", headers={"Idempotency-Key": key})).status_code == 201

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(insist(f"k{number}"))
        served = [await replica.claim_one("calm") for _ in range(20)]
        over.set()
    assert [one["vm"]["id"] for one in served] == [str(vm_id) for vm_id in known]
    assert await scalar(db, "SELECT count(DISTINCT vm_id) FROM claim WHERE pool_id = :id", id=hot.id) == 40


async def test_a_pool_whose_statement_is_stuck_does_not_hold_up_another(db, make_replica):
    replica = await make_replica()
    stuck, calm = await make_pool(db, "stuck"), await make_pool(db, "calm")
    await make_vms(db, stuck, 3)
    await make_vms(db, calm, 20)
    async with db.begin() as other:
        await other.exec_driver_sql("SELECT 1 FROM vm WHERE name LIKE 'stuck-%' FOR UPDATE")
        held = [asyncio.create_task(replica.claim_one("stuck")) for _ in range(3)]
        for _ in range(20):
            await replica.claim_one("calm")
        assert not any(each.done() for each in held)
    assert len({one["vm"]["id"] for one in await asyncio.gather(*held)}) == 3


async def test_a_room_keeps_nothing_of_those_that_have_gone(db, make_claim_service):
    await make_pool(db)
    claim_service = await make_claim_service()
    room = claim_service.queue._waiters
    for _ in range(3):
        answer = await claim(claim_service, wait=0.01)
        assert answer.claim.state is ClaimState.PENDING
    assert room._waiters == {}
    room.wake(str(answer.claim.id))
    assert room._named == set()
    lane = WarmClaimStore(db.url)
    assert await Waiters(db, lane).wait(answer.claim.id, 0.01) is None
    await lane.close()
