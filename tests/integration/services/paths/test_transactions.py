"""How many transactions a claim that describes its VM costs, and what it does where its choice is outdated."""

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest

from app.domain.paths import StartPath
from app.domain.states import ClaimState
from app.errors import NoPath
from tests.support.described_claims import make_preload, make_snapshot
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, execute, scalar

CLAIMING = ContextVar("CLAIMING", default=False)
"""Set in the context of a claim, and in that of the tasks that it starts."""


class Counted:
    """Counts the transactions of claims, and how many of them are open."""

    def __init__(self, db, monkeypatch):
        self.begun = self.open = 0
        begin = db.begin

        @asynccontextmanager
        async def counting():
            self.begun += CLAIMING.get()
            self.open += 1
            try:
                async with begin() as tx:
                    yield tx
            finally:
                self.open -= 1

        monkeypatch.setattr(db, "begin", counting)


@pytest.fixture
def counted(db, monkeypatch):
    return Counted(db, monkeypatch)


async def claim(process, **given):
    CLAIMING.set(True)
    try:
        return await process.claim(**given)
    finally:
        CLAIMING.set(False)


@pytest.mark.parametrize("given", [{}, {"key": "k", "request_hash": "h"}], ids=["no key", "a key"])
@pytest.mark.parametrize("pools", [0, 1], ids=["no pool", "an empty pool"])
async def test_a_claim_that_ends_cold_takes_at_most_four_transactions(counted, process, given, pools):
    for _ in range(pools):
        await process.make_pool(size=0, auto_replenish=False)
    answer = await claim(process, **given)
    assert (answer.claim.choice["path"], answer.claim.state) == ("cold", ClaimState.PENDING)
    assert counted.begun <= 4


async def test_a_claim_that_waits_until_it_is_bound_takes_at_most_four_transactions(counted, db, process):
    """Waiting costs none: one query serves all claims that wait."""
    stop = asyncio.Event()
    running = asyncio.create_task(process.waiters.run(stop))
    asked = asyncio.create_task(claim(process, wait_seconds=60))

    async def queued():
        return await scalar(db, "SELECT count(*) FROM claim_queue")

    await eventually(queued)
    await process.serve()
    answer = await asyncio.wait_for(asked, PATIENCE)
    stop.set()
    await running
    assert answer.claim.state is ClaimState.BOUND
    assert counted.begun <= 4


async def test_the_cluster_checks_a_template_with_no_transaction_open(counted, gateway, process):
    check, open_then = gateway.check, []

    async def checked(template):
        open_then.append(counted.open)
        return await check(template)

    gateway.check = checked
    await process.claim()
    assert open_then == [0]


async def test_a_claim_is_decided_again_where_its_snapshot_has_gone_meanwhile(db, gateway, process):
    await make_snapshot(db, "golden", process.shape())
    check = gateway.check

    async def checked(template):
        await execute(db, "DELETE FROM snapshot_take")
        await execute(db, "DELETE FROM snapshot")
        return await check(template)

    gateway.check = checked
    answer = await process.claim()
    assert answer.claim.choice["path"] == "cold"
    assert await scalar(db, "SELECT count(*) FROM claim") == 1


async def test_a_claim_is_decided_a_bounded_number_of_times_and_checked_once(db, gateway, process):
    """Its preload goes each time before its place is written, and another one comes."""
    queue, check = process.claim_service.queue, gateway.check
    enter, entered, checked = queue.enter, [], []

    async def enter_too_late(chosen, *others):
        entered.append(chosen.choice.source)
        await execute(db, "DELETE FROM preload")
        try:
            return await enter(chosen, *others)
        finally:
            await make_preload(db, f"another-{len(entered)}")

    async def count_checks(template):
        checked.append(template)
        return await check(template)

    await make_preload(db, "near")
    queue.enter, gateway.check = enter_too_late, count_checks
    with pytest.raises(NoPath, match="at the same moment; try again"):
        await process.claim()
    assert entered == ["near", "another-1", "another-2"]
    assert len(checked) == 1
    assert await scalar(db, "SELECT count(*) FROM claim") == 0


async def test_requests_that_are_refused_at_the_same_moment_are_decided_once(counted, process):
    """Clients that ignore `Retry-After` take no connections from the others."""

    async def refused():
        with pytest.raises(NoPath):
            await claim(process, paths=(StartPath.SNAPSHOT,))

    await asyncio.gather(*(refused() for _ in range(50)))
    decisions = counted.begun - 1  # one read of the pools of the shape, for all
    assert decisions <= 2


async def test_requests_that_allow_different_paths_get_a_decision_each(process):
    refused, answer = await asyncio.gather(
        claim(process, paths=(StartPath.SNAPSHOT,)), claim(process, paths=(StartPath.COLD,)), return_exceptions=True
    )
    assert isinstance(refused, NoPath)
    assert answer.claim.choice["path"] == "cold"
