"""Renewing and releasing: safe to ask twice, and final once it has ended."""

import asyncio

import pytest

from app.domain.states import ClaimState, VmState
from app.errors import ClaimEnded, ClaimNotFound, Conflict, LeaseTooLong
from app.ids import new_id
from app.services.claims.lifecycle import release_claim, renew_claim
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.rows import event_types, make_pool, make_vms, scalar, state_of


async def held(db, **given):
    pool = await make_pool(db, **given)
    claim_id = await wait_for_vm(db, pool)
    (vm_id,) = await make_vms(db, pool, 1)
    assert await bind(db, pool) == [claim_id]
    return claim_id, vm_id


async def test_a_release_destroys_the_vm_and_may_be_asked_again(db):
    claim_id, vm_id = await held(db)
    first = await release_claim(db, claim_id)
    assert (first.state, first.reason) == (ClaimState.RELEASED, "released by its client")
    assert await state_of(db, vm_id) is VmState.RELEASING
    again = await release_claim(db, claim_id)
    assert (again.state, again.ended_at) == (first.state, first.ended_at)
    assert (await event_types(db)).count("claim.released") == 1
    with pytest.raises(ClaimNotFound, match="deleted after some days"):
        await release_claim(db, new_id())


async def test_releases_at_the_same_moment_end_it_once(db):
    claim_id, _ = await held(db)
    answers = await asyncio.gather(*(release_claim(db, claim_id) for _ in range(6)))
    assert len({answer.ended_at for answer in answers}) == 1
    assert (await event_types(db)).count("vm.releasing") == 1


async def test_a_claim_that_waits_can_be_released(db):
    pool = await make_pool(db)
    claim_id = await wait_for_vm(db, pool)
    assert (await release_claim(db, claim_id)).state is ClaimState.RELEASED
    assert await scalar(db, "SELECT count(*) FROM claim_queue") == 0


async def test_a_lease_is_renewed_from_now_by_its_own_length_or_another(db):
    claim_id, _ = await held(db, max_lease_seconds=4000)
    longer = await renew_claim(db, claim_id, 4000)
    assert longer.lease_seconds == 4000
    again = await renew_claim(db, claim_id, None)
    assert again.lease_seconds == 4000
    assert again.lease_expires_at > longer.lease_expires_at
    shorter = await renew_claim(db, claim_id, 10)
    assert shorter.lease_expires_at < longer.lease_expires_at
    with pytest.raises(LeaseTooLong):
        await renew_claim(db, claim_id, 4001)
    assert (await event_types(db)).count("claim.renewed") == 3


async def test_what_has_ended_or_has_no_vm_is_not_renewed(db):
    claim_id, _ = await held(db)
    await release_claim(db, claim_id)
    with pytest.raises(ClaimEnded, match="is released"):
        await renew_claim(db, claim_id, None)
    pending = await wait_for_vm(db, await make_pool(db, "empty"))
    with pytest.raises(Conflict, match="no VM yet") as caught:
        await renew_claim(db, pending, None)
    assert not isinstance(caught.value, ClaimEnded)
    with pytest.raises(ClaimNotFound):
        await renew_claim(db, new_id(), None)
