"""VMs with our labels that no row knows: few are removed, many are held, and claimed or foreign ones are never touched."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.compute.vms import Listed
from app.config import Settings
from app.domain.observation import Observation
from app.domain.states import VmState
from app.ids import new_id
from app.reconcilers.vms.labeler import ClaimLabeler
from app.reconcilers.vms.status_writer import StatusWriter
from app.store import installation
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.listing import write_list
from tests.support.rows import eventually, execute, fetch, make_pool, make_vms, own_id, scalar, state_of

OTHER = "11111111-1111-4111-8111-111111111111"
HOUR = timedelta(hours=1)


@pytest.fixture
def observing(db, gateway):
    return StatusWriter(db, gateway, Settings(orphans_at_once=2, orphans_share=0.0))


@pytest.fixture
async def ours(db):
    return await own_id(db)


def stranger(name, **given):
    base = {"uid": f"uid-{name}", "vm_id": str(new_id()), "created_at": datetime.now(UTC) - HOUR}
    return Observation(name=name, namespace="default", **{**base, **given})


async def known(db, vm_id, **given):
    row = (await fetch(db, "SELECT name, uid FROM vm WHERE id = :id", id=vm_id))[0]
    warm = {"phase": "Running", "ready": True, "agent_connected": True, "vmi_uid": "vmi", "node": "node-1"}
    return stranger(row["name"], **{"uid": row["uid"], "vm_id": str(vm_id), **warm, **given})


async def show(gateway, observing, *vms):
    gateway.vms = {vm.name: vm for vm in vms}
    await write_list(observing, Listed(tuple(vms), datetime.now(UTC)))


async def held(db):
    return await scalar(db, "SELECT held->'VirtualMachine'->>'detail' FROM installation")


async def test_a_few_orphans_are_removed_and_more_than_the_bound_are_held(db, gateway, observing, ours):
    await show(gateway, observing, *[stranger(name, installation=ours) for name in "ab"])
    assert gateway.called("delete") == ["a", "b"]
    await show(gateway, observing, *[stranger(name, installation=ours) for name in "cde"])
    assert gateway.called("delete") == ["a", "b"], "no more than two at once, and of more none"
    assert await held(db) == "3 more than the 2 that are removed at once (c, d, e)"
    await show(gateway, observing, stranger("c", installation=ours))
    assert gateway.called("delete") == ["a", "b", "c"]
    assert await held(db) is None


async def test_the_bound_may_be_a_share_of_all_vms(gateway, db, ours):
    observing = StatusWriter(db, gateway, Settings(orphans_at_once=1, orphans_share=0.5))
    pool = await make_pool(db)
    vms = [await known(db, vm_id, installation=ours) for vm_id in await make_vms(db, pool, 3)]
    orphans = [stranger(name, installation=ours) for name in "abc"]
    await show(gateway, observing, *vms, *orphans)
    assert sorted(gateway.called("delete")) == ["a", "b", "c"]


async def test_an_orphan_that_carries_a_claim_is_never_removed_without_a_word(db, gateway, observing, ours):
    await show(gateway, observing, stranger("hers", installation=ours, claim_id=str(new_id())))
    assert gateway.called("delete") == []
    assert await held(db) == "1 with a claim that no row knows (hers)"


async def test_an_orphan_that_carries_no_id_is_removed_only_if_a_row_knew_it(db, gateway, observing):
    pool = await make_pool(db)
    (ended,) = await make_vms(db, pool, 1)
    leftover = await known(db, ended)
    await execute(db, "DELETE FROM ready_slot")
    await execute(db, "UPDATE vm SET state = 'lost', ended_at = now()")
    await show(gateway, observing, leftover, stranger("whose"))
    assert gateway.called("delete") == [leftover.name]
    assert await held(db) == "1 without an installation's id (whose)"


async def test_what_another_installation_made_is_nothing_to_us(db, gateway, observing):
    """Not even one that carries the id of a VM of ours, as in a copy of the database."""
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
    theirs = await known(db, vm_id, installation=OTHER)
    await show(gateway, observing, theirs, stranger("x", installation=OTHER, claim_id=str(new_id())))
    assert gateway.called("delete") == []
    assert await held(db) is None
    assert await state_of(db, vm_id) is VmState.BOOTING, "it did not become ready by their VM"


async def test_what_an_operator_left_alone_stays_and_is_told_no_more(db, gateway, observing, ours):
    await execute(db, "UPDATE installation SET left_alone = '{uid-a}'")
    await show(gateway, observing, stranger("a", installation=ours), stranger("b", installation=ours))
    assert gateway.called("delete") == ["b"]
    assert await held(db) is None


async def test_vms_of_an_earlier_version_get_the_id(db, gateway, observing, ours):
    gateway.ownership.identify(ours)
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    await show(gateway, observing, await known(db, vm_id), stranger("whose"))
    signed = {name: vm.installation for name, vm in gateway.vms.items()}
    assert signed.pop("whose") is None, "nobody knows whether it is ours"
    assert set(signed.values()) == {ours}


async def test_a_claimed_vm_of_an_earlier_version_also_gets_what_its_claim_can_be_rebuilt_from(
    db, gateway, observing, ours
):
    gateway.ownership.identify(ours)
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    claim_id = await wait_for_vm(db, pool)
    await bind(db, pool)
    await execute(db, "UPDATE claim SET labelled = true")
    await show(gateway, observing, await known(db, vm_id, claim_id=str(claim_id)))
    await ClaimLabeler(db, gateway, Settings()).step()
    ((name, record),) = gateway.records.items()
    assert (gateway.vms[name].installation, record.lease_seconds) == (ours, 60)


async def test_a_ready_vm_that_carries_a_claim_which_the_database_lost_stops_everything(db, gateway, observing, ours):
    """Postgres failed over to a replica that had not got the claim. Others may have been lost with it."""
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    carried = await known(db, vm_id, installation=ours, claim_id=str(new_id()))
    await observing.apply_changes([replace(carried, ready=False)])

    async def waits():
        async with db.begin() as tx:
            return (await installation.read(tx)).waits

    assert carried.name in await eventually(waits)
    assert await state_of(db, vm_id) is VmState.READY, "nothing else was written"
