"""Named leases and the signs of life of whoever watches."""

import asyncio
from uuid import uuid4

from app.store import leases
from app.store import watch_state as watches
from tests.support.rows import execute, scalar

MINE, THEIRS = uuid4(), uuid4()


async def take(db, token, *, seconds=30.0):
    async with db.begin() as tx:
        return await leases.acquire(tx, "watch", holder=f"holder of {token}", token=token, seconds=seconds)


async def test_a_lease_is_held_by_one_holder_who_renews_it(db):
    assert await take(db, MINE)
    assert not await take(db, THEIRS)
    before = await scalar(db, "SELECT expires_at FROM lease")
    assert await take(db, MINE, seconds=300)
    assert (await scalar(db, "SELECT expires_at FROM lease") - before).total_seconds() > 200


async def test_an_expired_lease_can_be_acquired(db):
    assert await take(db, MINE)
    await execute(db, "UPDATE lease SET expires_at = now() - interval '1 second'")
    assert await take(db, THEIRS)
    assert not await take(db, MINE)
    assert await scalar(db, "SELECT holder FROM lease") == f"holder of {THEIRS}"


async def test_a_released_lease_can_be_acquired(db):
    assert await take(db, MINE)
    async with db.begin() as tx:
        await leases.release(tx, "watch", token=THEIRS)
    assert not await take(db, THEIRS), "only its holder gives it back"
    async with db.begin() as tx:
        await leases.release(tx, "watch", token=MINE)
    assert await take(db, THEIRS)


async def test_of_many_at_once_one_gets_it(db):
    for _ in range(5):
        await execute(db, "UPDATE lease SET expires_at = now() - interval '1 second'")
        taken = await asyncio.gather(*(take(db, uuid4()) for _ in range(8)))
        assert sum(taken) == 1


async def test_a_watch_tells_when_it_heard_and_listed(db):
    async with db.begin() as tx:
        assert await watches.get(tx, "vms") is None
        await watches.write_heard(tx, "vms", holder="a", listed=False)
        state = await watches.get(tx, "vms")
    assert state is not None
    assert (state.holder, state.age_seconds, state.list_age_seconds, state.broken_since) == ("a", 0, None, None)
    async with db.begin() as tx:
        await watches.write_heard(tx, "vms", holder="b", listed=True)
    async with db.begin() as tx:
        await watches.write_heard(tx, "vms", holder="b", listed=False)
        state = await watches.get(tx, "vms")
    assert state is not None
    assert state.holder == "b"
    assert state.list_age_seconds is not None
    assert state.list_age_seconds > 0, "what was heard later is no list"


async def test_a_broken_watch_says_since_when_until_it_hears_again(db):
    async with db.begin() as tx:
        await watches.write_broken(tx, "vms", holder="a", reason="refused")
    async with db.begin() as tx:
        await watches.write_broken(tx, "vms", holder="a", reason="still refused")
        broken = await watches.get(tx, "vms")
    assert broken is not None
    assert broken.broken_reason == "still refused"
    assert broken.broken_since is not None
    assert broken.broken_since < await scalar(db, "SELECT now()")
    assert broken.age_seconds is None
    async with db.begin() as tx:
        await watches.write_heard(tx, "vms", holder="a", listed=True)
        state = await watches.get(tx, "vms")
    assert state is not None
    assert (state.broken_since, state.broken_reason) == (None, None)
