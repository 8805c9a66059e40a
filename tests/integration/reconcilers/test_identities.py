"""The identities of VMs: known before they are made, made before their VM, and removed with it or after it."""

import hashlib

import pytest

from app.config import Settings
from app.domain.states import VmState
from app.errors import ClusterUnavailable
from app.reconcilers.guests.identities import IdentitySweeper
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.remover import VmRemover
from app.store.pools import rows as pools
from app.store.vms import rows as vms
from tests.support.rows import execute, fetch, make_pool, make_vms, scalar, state_of

SETTINGS = Settings(guest_url="http://emberpool:8081", backoff_base_seconds=0.001, backoff_cap_seconds=0.001)


@pytest.fixture
async def planned(db, gateway):
    """A planned VM of a pool whose VMs have identities."""
    pool = await make_pool(db, guest={"channel": True, "release_seconds": 7})
    template = gateway.expand(pool.spec.template, pool.spec.warm_when, channel=True)
    async with db.begin() as tx:
        await pools.replace(
            tx, pool.id, spec=pool.spec, vm_spec=template.spec, revision=pool.revision, shape=template.shape
        )
    (vm_id,) = await make_vms(db, pool, 1, VmState.PLANNED)
    return vm_id


async def known(db, vm_id):
    (row,) = await fetch(db, "SELECT * FROM guest WHERE vm_id = :id", id=vm_id)
    return row


def digest(token):
    return hashlib.sha256(token.encode()).digest()


async def test_an_identity_is_there_before_its_vm_and_the_database_has_its_hash(db, gateway, planned):
    await VmCreator(db, gateway, SETTINGS).step()
    calls = [call for call, _ in gateway.calls]
    assert calls.index("identified") < calls.index("create")
    (made,) = gateway.identities.found.values()
    row = await known(db, planned)
    assert bytes(row["token_hash"]) == digest(made["token"])
    assert (row["identity_uid"], row["release_seconds"]) == (made["uid"], 7)
    assert (made["url"], made["vm"]) == ("http://emberpool:8081", str(planned))
    assert await state_of(db, planned) is VmState.BOOTING


async def test_the_hash_is_known_before_the_cluster_has_the_token(db, gateway, planned):
    gateway.refuse("identify", ClusterUnavailable("away"), times=1)
    await VmCreator(db, gateway, SETTINGS).step()
    assert gateway.identities.found == {}
    assert len((await known(db, planned))["token_hash"]) == 32
    assert gateway.called("create") == []


async def test_a_worker_after_one_that_died_knows_the_token_that_is_in_the_cluster(db, gateway, planned):
    gateway.refuse("identified", ClusterUnavailable("the answer was lost"), times=1)
    await VmCreator(db, gateway, SETTINGS).step()
    (made,) = gateway.identities.found.values()
    await execute(db, "UPDATE vm SET due_at = now()")
    await execute(db, "DELETE FROM put_off")
    await VmCreator(db, gateway, SETTINGS).step()
    assert bytes((await known(db, planned))["token_hash"]) == digest(made["token"])
    assert await state_of(db, planned) is VmState.BOOTING


async def test_without_an_address_for_guests_the_vm_waits_and_says_so(db, gateway, planned):
    await VmCreator(db, gateway, Settings(backoff_base_seconds=0.001, backoff_cap_seconds=0.001)).step()
    assert gateway.called("create") == []
    assert "EMBERPOOL_GUEST_URL" in await scalar(db, "SELECT health FROM vm WHERE id = :id", id=planned)


async def test_an_identity_is_removed_with_its_vm(db, gateway, planned):
    await VmCreator(db, gateway, SETTINGS).step()
    async with db.begin() as tx:
        await vms.release(tx, [planned], sources=[VmState.BOOTING], reason="for the test")
    await VmRemover(db, gateway, SETTINGS).step()
    assert gateway.identities.found == {}
    assert (await known(db, planned))["identity_gone"]
    assert await state_of(db, planned) is VmState.DELETED


async def test_the_identity_of_a_vm_that_others_removed_is_swept(db, gateway, planned):
    await VmCreator(db, gateway, SETTINGS).step()
    sweeper = IdentitySweeper(db, gateway)
    await sweeper.step()
    assert len(gateway.identities.found) == 1
    async with db.begin() as tx:
        await vms.move(tx, [planned], VmState.LOST, sources=[VmState.BOOTING], reason="for the test")
    gateway.refuse("unidentify", ClusterUnavailable("away"), times=1)
    assert not await sweeper.step()
    assert not await sweeper.step()
    assert gateway.identities.found == {}
    assert (await known(db, planned))["identity_gone"]
