"""Whose the VMs in the cluster are: services start, wait, adopt and disown. (a) to (f) are the cases of ADR 0008."""

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.domain.ownership import Word
from app.domain.states import ClaimState, VmState
from app.errors import ClusterUnavailable, InstallationWaits
from app.ids import new_id
from app.store.claims import rows as claims
from app.store.database import Database
from tests.support import store_invariants as invariants
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.installations import Installation, copy_of
from tests.support.postgres import clone_database
from tests.support.rows import execute, make_pool, make_vms, own_id, scalar


@pytest.fixture
async def own(database_url):
    """A database of the test's own, which may be copied."""
    db = Database(database_url, pool_size=5)
    yield db
    await invariants.check(db)
    await db.close()


@pytest.fixture
async def service(own, gateway):
    return Installation(own, gateway)


@asynccontextmanager
async def second(postgres, template_database, gateway, *, same_id=False, **settings):
    """A second service, on an empty database of its own."""
    async with clone_database(postgres, template_database) as url:
        db = Database(url, pool_size=5)
        if not same_id:
            await execute(db, "UPDATE installation SET id = gen_random_uuid()")
        try:
            yield Installation(db, gateway, **settings)
            await invariants.check(db)
        finally:
            await db.close()


async def fill(service, count=3, *, name="web"):
    """So many ready VMs of a pool, which the cluster has."""
    assert await service.turn()
    pool = await make_pool(service.db, name)
    await make_vms(service.db, pool, count, VmState.PLANNED)
    await service.work()
    assert await scalar(service.db, "SELECT count(*) FROM ready_slot") == count
    return pool


async def claim(service, pool, **labels):
    """One of its VMs is claimed, and carries that in the cluster."""
    claim_id = await wait_for_vm(service.db, pool, labels=labels)
    assert await bind(service.db, pool) == [claim_id]
    await service.work()
    return await read(service.db, claim_id)


async def read(db, claim_id):
    async with db.begin() as tx:
        found = await claims.get(tx, claim_id)
    assert found is not None
    return found


# (d) A namespace in which nothing is


async def test_a_new_database_in_a_new_namespace_starts_at_once(service):
    assert await service.turn()
    lease = service.gateway.ownership.lease
    assert lease.holder == await own_id(service.db)
    assert (lease.sequence, (await service.row()).progress.sequence) == (1, 1)


async def test_a_database_whose_cluster_was_lost_starts_at_once(service, gateway):
    """As `emberpool up` whose cluster was thrown away."""
    await fill(service)
    gateway.vms.clear()
    gateway.ownership.lease = None
    assert await (await service.successor()).turn()


async def test_what_is_made_carries_the_id(service, gateway):
    await fill(service)
    assert {vm.installation for vm in gateway.vms.values()} == {await own_id(service.db)}


# The Lease


async def test_the_lease_is_renewed_and_the_database_is_never_behind_it(service, gateway):
    assert await service.turn()
    for _ in range(3):
        assert await service.turn()
        assert gateway.ownership.lease.sequence == (await service.row()).progress.sequence
    gateway.refuse("write_lease", ClusterUnavailable("away"))
    with pytest.raises(ClusterUnavailable):
        await service.turn()
    del gateway.before["write_lease"]
    assert gateway.ownership.lease.sequence < (await service.row()).progress.sequence
    assert await service.turn()


async def test_claims_go_on_while_the_cluster_is_away(service, gateway):
    await fill(service)
    for call in ("read_lease", "write_lease", "survey"):
        gateway.refuse(call, ClusterUnavailable("away"))
    with pytest.raises(ClusterUnavailable):
        await service.keeper.step()
    assert not await service.watch.step()
    assert service.works
    other = Installation(service.db, gateway)
    await other.watch.step()
    assert other.works, "a worker found the VMs to be its own a moment ago"
    await execute(service.db, "UPDATE installation SET confirmed_at = now() - interval '2 minutes'")
    late = Installation(service.db, gateway)
    await late.watch.step()
    with pytest.raises(InstallationWaits, match="cannot be asked"):
        late.watch.gate.require_claims()


# (e) Replicas


async def test_replicas_of_one_database_work_together_and_follow_each_other(service, gateway):
    await fill(service)
    other = Installation(service.db, gateway)
    assert await other.turn(), "the Lease is alive, and its own"
    await service.keeper.release()
    assert await other.turn()
    assert (await service.row()).progress.writer == str(other.keeper._token)
    assert await service.turn()


# (a), (b) Another database


async def test_a_second_service_does_nothing_while_the_first_is_alive(service, gateway, postgres, template_database):
    pool = await fill(service)
    await claim(service, pool)
    before = dict(gateway.vms)
    async with second(postgres, template_database, gateway) as other:
        assert not await other.turn()
        row = await other.row()
        assert "is held by installation" in row.waits
        assert row.findings["adopt"]["refused"] == row.waits
        assert "Refused to adopt" in await other.decide(Word.ADOPT)
        assert not other.works
        gateway.ownership.identify(await own_id(service.db))
        assert await service.turn(), "the first works on"
    assert gateway.vms == before


async def test_a_service_on_an_empty_database_leaves_what_another_made_until_an_operator_decides(
    service, gateway, postgres, template_database
):
    pool = await fill(service)
    await claim(service, pool)
    gateway.ownership.expire()
    before = dict(gateway.vms)
    async with second(postgres, template_database, gateway) as other:
        for _ in range(2):
            assert not await other.turn()
        assert "of which no service is alive" in (await other.row()).waits
        with pytest.raises(InstallationWaits, match="adopt --dry-run"):
            other.watch.gate.require_claims()
    assert gateway.vms == before


async def test_adopting_what_another_database_made_rebuilds_its_claims_and_replaces_the_rest(
    service, gateway, postgres, template_database
):
    pool = await fill(service)
    bound = await claim(service, pool, team="red")
    gateway.ownership.expire()
    async with second(postgres, template_database, gateway) as other:
        await other.turn()
        plan = (await other.row()).findings
        assert [each["adopt"] for each in sorted(plan["vms"], key=lambda vm: vm["adopt"])] == [
            "rebuild",
            *["replace"] * 2,
        ]
        said = await other.decide(Word.ADOPT)
        assert "rebuilds 1 claims" in said
        assert await other.turn()
        rebuilt = await read(other.db, bound.id)
        assert (rebuilt.state, rebuilt.vm_name, rebuilt.labels) == (ClaimState.BOUND, bound.vm_name, {"team": "red"})
        assert rebuilt.lease_expires_at >= bound.lease_expires_at
        assert rebuilt.pool_kind == "on_demand", "no pool of that name is known"
        await other.work()
        await other.work()
        assert set(gateway.vms) == {bound.vm_name}
        assert gateway.vms[bound.vm_name].installation == await own_id(other.db), "it is signed anew"
        assert await (await other.successor()).turn()


async def test_adopted_claims_get_into_the_pool_of_their_name(service, gateway, postgres, template_database):
    pool = await fill(service)
    bound = await claim(service, pool)
    gateway.ownership.expire()
    async with second(postgres, template_database, gateway) as other:
        mine = await make_pool(other.db, "web")
        await other.turn()
        await other.decide(Word.ADOPT)
        assert (await read(other.db, bound.id)).pool_id == mine.id


async def test_disowning_what_another_database_made_starts_beside_it(service, gateway, postgres, template_database):
    await fill(service)
    gateway.ownership.expire()
    before = set(gateway.vms)
    async with second(postgres, template_database, gateway) as other:
        await other.turn()
        assert "leaves the 3 VMs" in await other.decide(Word.DISOWN)
        assert await other.turn()
        await fill(other, 1)
        assert before < set(gateway.vms)
        assert await (await other.successor()).turn(), "it remembers"


async def test_vms_of_an_earlier_version_that_no_row_knows_stop_an_empty_database(
    service, gateway, postgres, template_database
):
    await fill(service)
    for name in gateway.vms:
        gateway.change(name, installation=None)
    gateway.ownership.lease = None
    async with second(postgres, template_database, gateway) as other:
        assert not await other.turn()
        assert "earlier version" in (await other.row()).waits
        await other.decide(Word.DISOWN)
        assert await other.turn()
    gateway.ownership.expire()
    assert await (await service.successor()).turn(), "the database that knows them goes on"


# (c) A restored dump


async def test_a_restored_dump_hands_out_nothing_and_changes_nothing_until_an_operator_adopts(
    service, gateway, postgres, own
):
    pool = await fill(service, 4)
    known = await claim(service, pool)
    async with copy_of(postgres, own) as restored:
        taken = await claim(service, pool, team="blue")  # after the dump: it believes that this VM is ready
        await make_vms(service.db, pool, 2, VmState.PLANNED)  # and does not know these
        await service.work()
        newest = await claim(service, pool)
        async with own.begin() as tx:
            await claims.renew(tx, known.id, seconds=7200)
        await service.work()
        await service.turn()
        gateway.ownership.expire()
        await execute(restored, "UPDATE claim SET lease_expires_at = now() - interval '1 hour'")
        before = dict(gateway.vms)

        late = Installation(restored, gateway)
        await late.watch.begin()
        assert late.watch.gate.claims is not None, "not even before a worker has looked"
        assert not await late.turn()
        row = await late.row()
        assert "older than the cluster" in row.waits
        assert {each["name"]: each["adopt"] for each in row.findings["vms"]} == {
            **dict.fromkeys(before, "replace"),
            known.vm_name: "keep",
            taken.vm_name: "rebuild",
            newest.vm_name: "rebuild",
        }
        assert gateway.vms == before

        await late.decide(Word.ADOPT)
        assert await late.turn()
        for bound in (known, taken, newest):
            claim_now = await read(restored, bound.id)
            assert (claim_now.state, claim_now.vm_name) == (ClaimState.BOUND, bound.vm_name)
            assert claim_now.lease_expires_at > datetime.now(UTC)
        assert (await read(restored, taken.id)).labels == {"team": "blue"}
        assert await scalar(restored, "SELECT count(*) FROM ready_slot") == 0, "an unlabelled VM may be somebody's"
        for _ in range(3):
            await late.work()
        assert {vm.claim_id for vm in gateway.vms.values()} == {str(each.id) for each in (known, taken, newest)}
        await invariants.check(restored)


async def test_claims_of_vms_that_are_gone_since_the_dump_end_after_the_adoption(service, gateway, postgres, own):
    pool = await fill(service, 2)
    gone = await claim(service, pool)
    async with copy_of(postgres, own) as restored:
        await service.turn()
        gateway.vanish(gone.vm_name)
        gateway.ownership.expire()
        late = Installation(restored, gateway)
        await late.turn()
        assert "ends the claims of 1 VMs" in str((await late.row()).findings["adopt"]["does"])
        await late.decide(Word.ADOPT)
        await late.turn()
        await execute(
            restored,
            "UPDATE vm SET (state_since, ready_at, claimed_at) = (SELECT t, t, t FROM (SELECT now() - interval '1 hour' AS t) x)",
        )
        await late.work()
        assert (await read(restored, gone.id)).state is ClaimState.FAILED
        await invariants.check(restored)


async def test_a_dump_of_a_moment_ago_is_found_out_by_a_claim_that_it_does_not_know(service, gateway, postgres, own):
    """No renewal was made since, so the Lease tells nothing."""
    pool = await fill(service)
    async with copy_of(postgres, own) as restored:
        await claim(service, pool)
        gateway.ownership.expire()
        late = Installation(restored, gateway)
        assert not await late.turn()
        assert "claims that the database does not know" in (await late.row()).waits


async def test_a_dump_of_a_moment_ago_is_found_out_by_a_vm_that_it_does_not_know(service, gateway, postgres, own):
    pool = await fill(service)
    async with copy_of(postgres, own) as restored:
        await make_vms(service.db, pool, 1, VmState.PLANNED)
        await service.work()
        gateway.ownership.expire()
        late = Installation(restored, gateway)
        assert not await late.turn()
        assert "newer than the database" in (await late.row()).waits


async def test_a_database_that_goes_back_under_a_running_service_closes_its_gate(service, gateway):
    await fill(service)
    await service.turn()
    await execute(service.db, "UPDATE installation SET sequence = sequence - 1")
    await service.watch.step()
    with pytest.raises(InstallationWaits, match="another copy"):
        service.watch.gate.require_claims()
    assert not await service.turn()


# (f) A copy for staging


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_copy_of_the_database_does_nothing_beside_the_living_original(service, gateway, postgres, own, renewed):
    pool = await fill(service)
    async with copy_of(postgres, own) as copied:
        if renewed:
            await service.turn()
        staging = Installation(copied, gateway)
        await staging.watch.step()
        assert not staging.works
        assert not await staging.turn()
        assert "another copy of this database" in (await staging.row()).waits
        bound = await claim(service, pool)
        assert await service.turn()
        assert bound.vm_name in gateway.vms


async def test_a_copy_that_disowns_forgets_the_vms_and_becomes_an_installation_of_its_own(
    service, gateway, postgres, own
):
    pool = await fill(service)
    bound = await claim(service, pool)
    await make_vms(service.db, pool, 1, VmState.PLANNED)
    async with copy_of(postgres, own) as copied:
        await service.turn()
        before = dict(gateway.vms)
        staging = Installation(copied, gateway)
        await staging.turn()
        await staging.decide(Word.DISOWN)
        assert await own_id(copied) != await own_id(own)
        assert (await read(copied, bound.id)).state is ClaimState.FAILED
        assert await scalar(copied, "SELECT count(*) FROM vm WHERE ended_at IS NULL") == 0
        assert not await staging.turn(), "the original's Lease is alive, and the name is the same"
        await staging.keeper.release()
        apart = Installation(copied, gateway, instance="staging")
        gateway.ownership.lease, original = None, gateway.ownership.lease
        assert await apart.turn()
        assert gateway.vms == before
        await invariants.check(copied)
        gateway.ownership.lease = original


async def test_a_copy_with_another_instance_waits_instead_of_removing_the_originals_vms(
    service, gateway, postgres, own
):
    await fill(service)
    async with copy_of(postgres, own) as copied:
        gateway.ownership.lease = None  # that of the other instance
        apart = Installation(copied, gateway, instance="staging")
        assert not await apart.turn()
        assert "EMBERPOOL_INSTANCE 'emberpool'" in (await apart.row()).waits
        assert "Refused" in await apart.decide(Word.ADOPT)
        await apart.decide(Word.DISOWN)
        assert await apart.turn()
        assert len(gateway.vms) == 3


# What is held while the service works


async def test_held_orphans_are_rebuilt_or_removed_once_an_operator_adopts(service, gateway):
    pool = await fill(service, 1)
    lost = await claim(service, pool)
    claim_id = lost.id
    await execute(service.db, "DELETE FROM claim")
    await execute(service.db, "DELETE FROM vm")
    old = datetime.now(UTC) - timedelta(hours=1)
    other = replace(gateway.change(lost.vm_name, created_at=old), name="x", uid="x", vm_id=str(new_id()), claim_id=None)
    gateway.vms["x"] = replace(other, installation=None)
    await service.work()
    assert "with a claim that no row knows" in (await service.row()).held["VirtualMachine"]["detail"]
    assert service.works
    await service.decide(Word.ADOPT)
    await service.turn()
    assert (await read(service.db, claim_id)).state is ClaimState.BOUND
    for _ in range(2):
        await service.work()
    assert set(gateway.vms) == {lost.vm_name}
    assert (await service.row()).held == {}


async def test_held_orphans_stay_for_good_once_an_operator_disowns_them(service, gateway):
    await fill(service, 0)
    old = datetime.now(UTC) - timedelta(hours=1)
    await make_vms(service.db, await make_pool(service.db, "x"), 1, VmState.PLANNED)
    await service.work()
    (name,) = gateway.vms
    gateway.change(name, installation=None, created_at=old)
    await execute(service.db, "DELETE FROM ready_slot")
    await execute(service.db, "DELETE FROM vm")
    await service.work()
    assert (await service.row()).held
    await service.decide(Word.DISOWN)
    await service.work()
    assert set(gateway.vms) == {name}
    assert (await service.row()).held == {}


async def test_a_renewal_is_written_onto_the_vm_only_if_its_lease_is_longer(service, gateway):
    pool = await fill(service, 1)
    bound = await claim(service, pool)
    labels = len(gateway.called("label"))
    for seconds, written in ((30, labels), (60, labels), (600, labels + 1)):
        async with service.db.begin() as tx:
            await claims.renew(tx, bound.id, seconds=seconds)
        await service.work()
        assert len(gateway.called("label")) == written
        await execute(service.db, "UPDATE claim SET lease_seconds = greatest(lease_seconds, 60)")
    assert gateway.records[bound.vm_name].lease_seconds == 600
