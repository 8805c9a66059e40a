"""Drawn schedules of everything that meets on a pool: claims of two processes, keys, clients that leave, late commits, others' rollbacks.

A schedule says what begins and ends in which order; how far each thing gets in between is up to Postgres. What must hold
afterwards holds for every one of them.
"""

import asyncio
from collections import defaultdict
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.claims import WarmClaim
from app.domain.states import VmState
from app.errors import NoWarmVm
from app.services.claims.lifecycle import release_claim
from app.store.vms import rows as vms
from tests.support import store_invariants as invariants
from tests.support.claim_services import new_claim, stays_connected
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, fetch, make_pool, make_vms, request, scalar
from tests.support.vm_supply import warm

VMS = 8
KEYS = st.sampled_from([None, None, "a", "b"])
_QUIET = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
ARRIVE = st.tuples(st.just("arrive"), st.integers(0, 1), KEYS, st.sampled_from([0, 0, 60]))
SINGLE = st.one_of(
    ARRIVE,
    ARRIVE,
    ARRIVE,
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("ready"), st.integers(1, 2)),
    st.tuples(st.just("ready"), st.integers(1, 2)),
    st.tuples(st.just("late"), st.integers(1, 2), st.booleans()),
    st.tuples(st.just("grab"), st.integers(1, 3)),
    st.tuples(st.just("stall")),
    st.tuples(st.just("end"), st.integers(0, 3)),
    st.tuples(st.just("release"), st.integers(0, 20)),
    st.tuples(st.just("go_on")),
    st.tuples(st.just("go_on")),
    st.tuples(st.just("go_on")),
)
# What seldom comes about by chance: one key in two statements at once, and a VM that is seen below one that was claimed.
MEET = [("ready", 2), ("stall",), ("arrive", 0, "a", 0), ("arrive", 1, "a", 0), ("go_on",)]
OVERTAKE = [("late", 1, True), ("ready", 1), ("arrive", 0, None, 0), ("go_on",), ("end", 0)]
STEPS = st.lists(
    st.one_of(*[SINGLE.map(lambda step: [step])] * 8, st.just(MEET), st.just(OVERTAKE)), min_size=5, max_size=20
).map(lambda parts: [step for part in parts for step in part])
_MOMENT = 0.015  # what is held up by another is given no longer to go on
_numbers = count()


class Schedule:
    """One pool with two processes' desks, and all that is under way in it."""

    def __init__(self, db, desks, pool, booting):
        self.db = db
        self.desks = desks
        self.pool = pool
        self.booting = booting
        self.asked = []
        self.never_began = set()
        self._began = set()
        self._held = []
        self._others = []

    async def run(self, steps):
        for name, *how in steps:
            await getattr(self, name)(*how)
        await self.finish()

    async def arrive(self, claim_service, key, wait):
        number = len(self.asked)
        mine = new_claim(self.pool.name, wait=wait, key=key and f"{key}-{self.pool.name}", labels={"n": str(number)})
        body = f"{key}"  # whoever has the key sends the same body, whatever its labels tell this test

        async def ask():
            self._began.add(number)
            return await self.desks[claim_service].claim(mine._replace(request_hash=body), stays_connected)

        self.asked.append((key, asyncio.create_task(ask())))

    async def cancel(self, number):
        if self.asked:
            number %= len(self.asked)
            task = self.asked[number][1]
            task.cancel()
            if number not in self._began:
                self.never_began.add(str(number))

    async def ready(self, n):
        self._others.append(asyncio.create_task(warm(self.db, self.pool, self._take(n))))
        await self.go_on()

    async def late(self, n, commits):
        """Ready VMs whose sequence numbers are given out now and seen later, if ever."""
        ids = self._take(n)

        async def enqueue(tx):
            await vms.move(tx, ids, VmState.READY, sources=[VmState.BOOTING])

        await self._hold(enqueue, commits=commits, undone=lambda: self.booting.extend(ids))

    async def grab(self, n):
        """Another process has some in hand, and will let them go."""
        query = (
            f"SELECT 1 FROM ready_slot WHERE pool_id = '{self.pool.id}' ORDER BY seq LIMIT {n} FOR UPDATE SKIP LOCKED"
        )
        await self._hold(lambda tx: tx.exec_driver_sql(query))

    async def stall(self):
        """Statements that take one of these VMs hang between their insert and their end."""
        query = f"SELECT 1 FROM vm WHERE pool_id = '{self.pool.id}' AND state = 'ready' FOR UPDATE SKIP LOCKED"
        await self._hold(lambda tx: tx.exec_driver_sql(query))

    async def end(self, number):
        if self._held:
            task, ends = self._held.pop(number % len(self._held))
            ends.set()
            await task

    async def release(self, number):
        done = [task for _, task in self.asked if task.done() and not task.cancelled() and task.exception() is None]
        if done:
            claim_id, _ = told(done[number % len(done)].result())
            self._others.append(asyncio.create_task(release_claim(self.db, claim_id)))

    async def go_on(self):
        """Until all that can go on has come to its end."""
        under_way = [task for task in (*self._others, *(task for _, task in self.asked)) if not task.done()]
        if under_way:
            await asyncio.wait(under_way, timeout=_MOMENT)

    async def finish(self):
        """Everything ends that was begun, and who still waits for a VM then leaves."""
        while self._held:
            await self.end(0)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._others)
            await eventually(self._at_rest)
            await warm(self.db, self.pool, [])  # as the reconciler polls: a row that another had locked was passed over
            for _, task in self.asked:
                task.cancel()
            await asyncio.gather(*(task for _, task in self.asked), return_exceptions=True)

    async def _at_rest(self):
        """Whether each request has its answer or waits for one. A request in between has yet to take its place in the queue, or to
        look for a VM once more behind that: one that is cancelled there with a key leaves its place to a retry.
        """
        waiting = sum(len(each) for desk in self.desks for each in desk.queue._waiters._waiters.values())
        return waiting == sum(not task.done() for _, task in self.asked)

    def answers(self):
        """(key, claim, VM or None) of each request that was answered."""
        done = [(key, task) for key, task in self.asked if not task.cancelled() and not was_released(task)]
        return [(key, *told(task.result())) for key, task in done]

    def _take(self, n):
        taken, self.booting[:n] = self.booting[:n], []
        return taken

    async def _hold(self, work, *, commits=False, undone=lambda: None):
        if len(self._held) == 4:
            return await self.end(0)
        began, ends = asyncio.Event(), asyncio.Event()

        async def hold():
            async with self.db.begin() as tx:
                await work(tx)
                began.set()
                await ends.wait()
                if not commits:
                    await tx.rollback()
            if not commits:
                undone()

        task = asyncio.create_task(hold())
        await asyncio.wait_for(began.wait(), PATIENCE)
        self._held.append((task, ends))
        return None


def was_released(task):
    """A claim can be released while another request with its key still waits for its VM."""
    error = task.exception()
    return isinstance(error, NoWarmVm) and "released by its client" in error.detail


def told(answer):
    """(claim, VM or None)"""
    if isinstance(answer, WarmClaim):
        return answer.claim.id, answer.vm_id
    return answer.claim.id, answer.claim.vm_id


async def hold_together(schedule, rows):
    """The answers and the rows say the same, and each key has one claim."""
    claims_of_key = defaultdict(set)
    for key, claim_id, vm_id in schedule.answers():
        if vm_id is not None:
            assert rows[claim_id]["vm_id"] == vm_id
        if key is not None:
            claims_of_key[key].add(claim_id)
    assert all(len(claims) == 1 for claims in claims_of_key.values()), claims_of_key
    unkeyed = [claim_id for key, claim_id, _ in schedule.answers() if key is None]
    assert len(unkeyed) == len(set(unkeyed))
    assert not schedule.never_began & {row["labels"].get("n") for row in rows.values()}
    nobodys = [row for row in rows.values() if row["state"] == "pending" and row["idem_key"] is None]
    assert {row["id"] for row in nobodys} <= set(unkeyed), "who left without a key has left no place"


@pytest.fixture
async def desks(make_claim_service):
    return [await make_claim_service(), await make_claim_service()]


@given(steps=STEPS, asks=st.integers(0, 1), sweeps=st.booleans())
@settings(max_examples=200, **_QUIET)
async def test_no_interleaving_gives_a_vm_twice_or_strands_one(db, desks, steps, asks, sweeps):
    pool = await make_pool(db, f"p{next(_numbers)}")
    schedule = Schedule(db, desks, pool, await make_vms(db, pool, VMS, VmState.BOOTING))
    await schedule.run(steps)

    await invariants.check(db)
    rows = {row["id"]: row for row in await fetch(db, "SELECT * FROM claim WHERE pool_id = :id", id=pool.id)}
    await hold_together(schedule, rows)

    left = await scalar(db, "SELECT count(*) FROM ready_slot WHERE pool_id = :id", id=pool.id)
    if left:
        assert await scalar(db, "SELECT count(*) FROM claim_queue WHERE pool_id = :id", id=pool.id) == 0
    lane = desks[asks]._store
    if sweeps:  # what was left below a hint is found by hints alone, once they were put right
        await lane.lower_hints([pool.id])
        for _ in range(left):
            (outcome,) = await lane.claim(pool.id, [request()])
            assert isinstance(outcome, WarmClaim)
    else:
        for _ in range(left):
            assert isinstance(await desks[asks].claim(new_claim(pool.name), stays_connected), WarmClaim)
    assert await scalar(db, "SELECT count(*) FROM ready_slot WHERE pool_id = :id", id=pool.id) == 0
    await invariants.check(db)
