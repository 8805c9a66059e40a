"""Claims that would rather have one warm VM than another."""

import asyncio
from collections import Counter

import pytest

from app.domain.claims import WarmClaim
from app.domain.nodes import ZONE, Node
from app.domain.placement import Prefer
from app.errors import NoWarmVm
from app.services.claims.lifecycle import release_claim
from app.services.claims.preference import Preferences
from app.services.claims.queue import StoredClaim
from app.store import nodes
from app.store.claims import preference as claim_preference
from app.store.database import Database
from tests.support.claim_services import new_claim, stays_connected
from tests.support.rows import execute, fetch, make_pool, make_vms, request, scalar

ON = [f"node-{number}" for number in (1, 1, 2, 2, 3, 3)]


@pytest.fixture
async def pool(db):
    """Six warm VMs, two on each of three nodes, of which the third is in another zone."""
    pool = await make_pool(db, size=6)
    ids = await make_vms(db, pool, len(ON))
    for vm_id, node in zip(ids, ON, strict=True):
        await execute(db, "UPDATE ready_slot SET node = :node WHERE vm_id = :id", node=node, id=vm_id)
        await execute(db, "UPDATE vm SET node = :node WHERE id = :id", node=node, id=vm_id)
    async with db.begin() as tx:
        await nodes.write(tx, [Node(f"node-{n}", labels={ZONE: "b" if n == 3 else "a"}) for n in (1, 2, 3)])
    return pool


async def claim(claim_service, key=None, **prefer):
    return await claim_service.claim(new_claim(key=key)._replace(prefer=Prefer(**prefer)), stays_connected)


async def test_the_zone_and_the_node_that_are_wished_for_are_given(claim_service, pool):
    assert (await claim(claim_service, zone="b")).node == "node-3"
    assert (await claim(claim_service, node="node-2")).node == "node-2"
    assert (await claim(claim_service, node="node-1")).node == "node-1"


async def test_a_wish_that_nothing_fulfils_is_forgotten(claim_service, pool):
    assert (await claim(claim_service, zone="z")).node == "node-1"
    assert [(await claim(claim_service, node="node-2")).node for _ in range(3)] == ["node-2", "node-2", "node-1"]


async def test_spread_claims_go_over_the_nodes_and_packed_ones_fill_one(db, claim_service, pool):
    spread = [await claim(claim_service, spread=True) for _ in range(3)]
    assert Counter(answer.node for answer in spread) == {"node-1": 1, "node-2": 1, "node-3": 1}
    for answer in spread:
        await release_claim(db, answer.claim.id)
    first = await claim(claim_service, node="node-2")
    await execute(db, "UPDATE ready_slot SET node = 'node-2' WHERE node = 'node-1'")
    await execute(db, "UPDATE vm SET node = 'node-2' WHERE node = 'node-1'")
    assert first.node == (await claim(claim_service, pack=True)).node == "node-2"


async def test_the_answer_is_a_claim_like_any_other(db, claim_service, pool):
    answer = await claim(claim_service, zone="b")
    assert isinstance(answer, WarmClaim)
    (row,) = await fetch(db, "SELECT c.*, v.state AS vm_state, v.claim_id FROM claim c JOIN vm v ON v.id = c.vm_id")
    assert (row["state"], row["vm_state"], row["claim_id"], row["path"]) == ("bound", "claimed", row["id"], "pool")
    assert await scalar(db, "SELECT count(*) FROM event WHERE type = 'claim.bound'") == 1
    assert row["lease_expires_at"] == answer.lease_expires_at


async def test_a_key_has_one_answer_with_a_wish_too(db, claim_service, pool):
    first = await claim(claim_service, key="k", zone="b")
    again = await claim(claim_service, key="k", zone="b")
    assert isinstance(again, StoredClaim)
    assert again.replayed
    assert again.claim.id == first.claim.id
    assert await scalar(db, "SELECT count(*) FROM claim") == 1


async def test_the_same_key_at_the_same_moment_takes_one_vm(db, pool):
    """Both have looked for the key before either wrote it: the index decides, and the loser takes nothing."""
    places = Preferences(db)
    async with db.begin() as tx:
        await claim_preference.take(tx, pool.id, request("k"), [place.seq for place in await head(tx, pool)])
        waiting = asyncio.create_task(places.claim(pool.id, request("k"), Prefer(zone="b")))
        await blocked(db)
    winner = await scalar(db, "SELECT id FROM claim")
    assert (await waiting).claim_id == winner
    assert await scalar(db, "SELECT count(*) FROM ready_slot") == len(ON) - 1


async def head(tx, pool):
    return await claim_preference.head(tx, pool.id, from_seq=0)


async def blocked(db: Database):
    """Until another connection waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    for _ in range(1000):
        if await scalar(db, query):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("nobody waits")


async def test_claims_at_the_same_moment_never_share_a_vm_and_leave_none(db, make_claim_service, pool):
    desks = [await make_claim_service() for _ in range(2)]
    wishes = [{"zone": "a"}, {"spread": True}, {"node": "node-3"}, {"pack": True}, {"zone": "b"}, {"node": "x"}]
    answers = await asyncio.gather(*(claim(desks[n % 2], **how) for n, how in enumerate(wishes)))
    assert len({answer.vm_id for answer in answers}) == len(ON)
    await execute(db, "UPDATE pool SET paused = true")
    with pytest.raises(NoWarmVm):
        await claim(desks[0], zone="a")


async def test_places_that_are_taken_are_passed_over(db, pool):
    """Who holds the best place's lock has its VM: the next best is taken without a wait."""
    async with db.begin() as other:
        ranked = [place.seq for place in await head(other, pool)]
        first = await claim_preference.take(other, pool.id, request(), ranked)
        async with db.begin() as tx:
            second = await claim_preference.take(tx, pool.id, request(), ranked)
    assert first.vm_id != second.vm_id


async def test_only_the_head_of_the_queue_is_looked_at(db, monkeypatch, pool):
    monkeypatch.setattr(claim_preference, "LOOKED_AT", 2)
    assert await Preferences(db).claim(pool.id, request(), Prefer(zone="b")) is None
    assert (await Preferences(db).claim(pool.id, request(), Prefer(node="node-1"))).node == "node-1"


async def test_a_queue_that_began_anew_is_looked_at_from_its_start(db, pool):
    preferences = Preferences(db)
    await execute(db, "UPDATE ready_slot SET seq = seq + 1000")
    assert (await preferences.claim(pool.id, request(), Prefer(zone="a"))).node == "node-1"
    await execute(db, "UPDATE ready_slot SET seq = seq - 1000")
    assert (await preferences.claim(pool.id, request(), Prefer(zone="a"))).node == "node-1"


async def test_a_pool_that_is_being_deleted_gives_nothing(db, pool):
    await execute(db, "UPDATE pool SET deleting_at = now()")
    assert await Preferences(db).claim(pool.id, request(), Prefer(zone="a")) is None
    await execute(db, "UPDATE pool SET deleting_at = NULL")
