"""Creating what the rows plan, removing what they let go, and labelling what they gave away."""

import asyncio
from dataclasses import replace

import pytest

from app.domain.paths import FromSnapshot, SnapshotDisk
from app.domain.states import VmState
from app.domain.templates import Exclusive, Marks
from app.errors import (
    ClusterConflict,
    ClusterError,
    ClusterForbidden,
    ClusterRefused,
    ClusterUnavailable,
)
from app.reconcilers.runtime.loop import Wake
from app.reconcilers.vms import creator
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.labeler import ClaimLabeler
from app.reconcilers.vms.remover import VmRemover
from app.store.claims import described
from app.store.claims.rows import StoredChoice
from app.store.claims.warm import WarmClaimStore
from app.store.pools import put_off
from app.store.vms import work
from tests.support.fake_gateway import LabelCall
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, execute, fetch, make_pool, make_ready, make_vms, request, scalar, state_of


@pytest.fixture
def provision(db, gateway, settings):
    return VmCreator(db, gateway, settings)


@pytest.fixture
def removal(db, gateway, settings):
    return VmRemover(db, gateway, settings)


async def due(db):
    await execute(db, "UPDATE vm SET due_at = now(), lease_expires_at = now() - interval '1 s' WHERE ended_at IS NULL")


async def row(db, vm_id):
    return (await fetch(db, "SELECT * FROM vm WHERE id = :id", id=vm_id))[0]


async def test_a_planned_vm_is_made_and_boots_under_a_deadline(db, gateway, provision):
    pool = await make_pool(db, boot_timeout_seconds=90)
    (vm_id,) = await make_vms(db, pool, 1, VmState.PLANNED)
    assert not await provision.step()
    vm = await row(db, vm_id)
    assert (vm["state"], vm["uid"], vm["lease_token"]) == ("booting", gateway.vms[vm["name"]].uid, None)
    assert (vm["deadline_at"] - vm["state_since"]).total_seconds() == 90
    assert gateway.vms[vm["name"]].pool == "web"
    assert not await provision.step()
    assert len(gateway.called("create")) == 1


async def test_a_batch_is_as_large_as_the_concurrency(db, gateway, provision, settings):
    pool = await make_pool(db)
    await make_vms(db, pool, settings.provision_concurrency + 1, VmState.PLANNED)
    assert await provision.step()
    assert len(gateway.vms) == settings.provision_concurrency
    assert not await provision.step()
    assert len(gateway.vms) == settings.provision_concurrency + 1


async def test_each_create_that_ends_makes_room_for_the_next_and_a_slow_one_holds_up_none(db, gateway, settings):
    wake = Wake()
    provision = VmCreator(db, gateway, settings, wake)
    await make_vms(db, await make_pool(db), settings.provision_concurrency + 2, VmState.PLANNED)
    gate, create = asyncio.Event(), gateway.create_vm
    slow = asyncio.Lock()

    async def first_is_slow(**given):
        if not slow.locked():
            await slow.acquire()
            await gate.wait()
        return await create(**given)

    gateway.create_vm = first_is_slow
    assert await provision.begin()
    for _ in range(settings.provision_concurrency + 1):
        await asyncio.wait_for(wake.wait(), PATIENCE)
        await provision.begin()
        if len(gateway.vms) == settings.provision_concurrency + 1:
            break
    assert len(gateway.vms) == settings.provision_concurrency + 1
    gate.set()
    await provision.release()
    assert len(gateway.vms) == settings.provision_concurrency + 2


async def test_a_create_whose_answer_was_lost_is_found_and_not_made_twice(db, gateway, provision, settings):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.PLANNED)

    class Died(BaseException):
        """The process is killed between the cluster's answer and the row."""

    create = gateway.create_vm

    async def create_and_die(**given):
        await create(**given)
        raise Died

    gateway.create_vm = create_and_die
    with pytest.raises(Died):
        await provision.step()
    gateway.create_vm = create
    assert await state_of(db, vm_id) is VmState.CREATING
    await due(db)
    await VmCreator(db, gateway, settings).step()
    vm = await row(db, vm_id)
    assert (vm["state"], vm["uid"]) == ("booting", gateway.vms[vm["name"]].uid)
    assert len(gateway.vms) == 1
    assert len(gateway.called("create")) == 2


async def nothing_puts_off(db):
    await execute(db, "UPDATE put_off SET until = now()")
    await due(db)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClusterUnavailable("refused"), "the cluster is unavailable: refused"),
        (ClusterForbidden("no right"), "no right"),
        (ClusterForbidden("exceeded quota: q"), "exceeded quota: q"),
    ],
)
async def test_a_cluster_that_takes_no_creates_puts_them_off_and_nobody_has_failed(
    db, gateway, provision, settings, error, reason
):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 12, VmState.PLANNED)
    gateway.refuse("create", error)
    await provision.step()
    tried = len(gateway.called("create"))
    assert tried < 12
    await execute(db, "UPDATE put_off SET until = now() + interval '1 hour'")
    assert not await provision.step()
    assert len(gateway.called("create")) == tried, "none of the pool is tried for a while"
    vm = await row(db, ids[0])
    assert (vm["state"], vm["health"]) == ("planned", f"put off: {reason}")
    assert await scalar(db, "SELECT consecutive_failures FROM pool") == 0
    async with db.begin() as tx:
        assert (await put_off.of_pools(tx, [pool.id]))[pool.id].reason == reason
    del gateway.before["create"]
    await nothing_puts_off(db)
    rested = VmCreator(db, gateway, settings)
    while await rested.step():
        pass
    assert {await state_of(db, vm_id) for vm_id in ids} == {VmState.BOOTING}
    assert {health for (health,) in [tuple(each.values()) for each in await fetch(db, "SELECT health FROM vm")]} == {
        None
    }
    assert await fetch(db, "SELECT * FROM put_off") == []


async def test_a_create_that_hangs_is_told_before_it_is_answered(db, gateway, provision, monkeypatch):
    monkeypatch.setattr(creator, "_HANGS_SECONDS", 0.01)
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.PLANNED)
    gate, create = asyncio.Event(), gateway.create_vm

    async def hang(**given):
        await gate.wait()
        return await create(**given)

    gateway.create_vm = hang
    hanging = asyncio.create_task(provision.step())

    async def told():
        async with db.begin() as tx:
            return (await put_off.of_pools(tx, [pool.id])).get(pool.id)

    assert "has not answered a create" in (await eventually(told)).reason
    gate.set()
    await hanging
    assert (await state_of(db, vm_id), await told()) == (VmState.BOOTING, None)


@pytest.mark.parametrize(
    "error",
    [
        ClusterRefused("no such instance type"),
        ClusterConflict("the name belongs to another"),
        ClusterError("what?"),
    ],
)
async def test_a_refusal_fails_the_vm_and_counts_against_its_pool(db, gateway, provision, removal, error):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 2, VmState.PLANNED)
    gateway.refuse("create", error)
    await provision.step()
    vm = await row(db, ids[0])
    assert (vm["state"], vm["reason"]) == ("failed", error.detail)
    pools = (await fetch(db, "SELECT * FROM pool"))[0]
    assert (pools["consecutive_failures"], pools["last_failure"]) == (1, error.detail)
    assert pools["backoff_until"] is not None
    await removal.step()
    assert {await state_of(db, vm_id) for vm_id in ids} == {VmState.DELETED}
    assert await scalar(db, "SELECT reason FROM vm LIMIT 1") == error.detail


async def test_what_came_too_late_is_not_written(db, gateway, provision, settings):
    """The lease ran out while the cluster was asked, and another worker has the VM."""
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.PLANNED)
    other = VmCreator(db, gateway, settings)
    gate, asked = asyncio.Event(), asyncio.Event()
    create = gateway.create_vm

    async def slow(**given):
        asked.set()
        await gate.wait()
        raise ClusterRefused("too late to matter")

    gateway.create_vm = slow
    late = asyncio.create_task(provision.step())
    await asyncio.wait_for(asked.wait(), PATIENCE)
    gateway.create_vm = create
    await due(db)
    await other.step()
    gate.set()
    await late
    assert await state_of(db, vm_id) is VmState.BOOTING
    assert await scalar(db, "SELECT consecutive_failures FROM pool") == 0


async def test_what_a_stopping_worker_holds_is_free_at_once(db, gateway, provision, settings):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.PLANNED)
    gate, asked = asyncio.Event(), asyncio.Event()
    gateway.before["create"] = lambda _: asked.set()
    create = gateway.create_vm

    async def hang(**given):
        asked.set()
        await gate.wait()

    gateway.create_vm = hang
    hanging = asyncio.create_task(provision.step())
    await asyncio.wait_for(asked.wait(), PATIENCE)
    hanging.cancel()
    await asyncio.wait([hanging])
    gateway.create_vm = create
    other = VmCreator(db, gateway, settings)
    await other.step()
    assert gateway.vms == {}
    await provision.release()
    await other.step()
    assert len(gateway.vms) == 1


DATA = Exclusive("PersistentVolumeClaim data", "template", "PersistentVolumeClaim data exists once", "root")


async def shared_disk(db, gateway, *, kind):
    """A pool whose VMs would all write to one PVC."""
    pool = await make_pool(db)
    await execute(db, "UPDATE pool SET kind = :kind", kind=kind)
    spec = await scalar(db, "SELECT vm_spec FROM pool")
    gateway.remember(replace(gateway.reopen(spec), exclusives=(DATA,)))
    return pool


class TestWhatExistsOnce:
    async def test_the_second_vm_waits_until_the_first_has_gone(self, db, gateway, provision, removal):
        pool = await shared_disk(db, gateway, kind="on_demand")
        ids = await make_vms(db, pool, 2, VmState.PLANNED)
        await provision.step()
        await due(db)
        await provision.step()
        states = [await state_of(db, vm_id) for vm_id in ids]
        assert sorted(states) == [VmState.BOOTING, VmState.PLANNED]
        first, second = (ids[states.index(state)] for state in (VmState.BOOTING, VmState.PLANNED))
        waits = (await row(db, second))["health"]
        assert waits == f"PersistentVolumeClaim data exists once and is in use by VM {(await row(db, first))['name']}"
        await release_vm(db, first)
        await due(db)
        await provision.step()
        assert await state_of(db, second) is VmState.PLANNED  # the first is still there
        await removal.step()
        await due(db)
        await provision.step()
        assert [await state_of(db, vm_id) for vm_id in (first, second)] == [VmState.DELETED, VmState.BOOTING]
        assert len(gateway.called("create")) == 2

    async def test_vms_of_other_pools_wait_too(self, db, gateway, provision):
        for name in ("a", "b"):
            await make_vms(db, await make_pool(db, name=name), 1, VmState.PLANNED)
        await execute(db, "UPDATE pool SET kind = 'on_demand'")
        for spec in await fetch(db, "SELECT DISTINCT vm_spec FROM pool"):
            gateway.remember(replace(gateway.reopen(spec["vm_spec"]), exclusives=(DATA,)))
        await provision.step()
        assert len(gateway.vms) == 1

    async def test_a_pool_never_makes_a_vm_that_writes_to_it(self, db, gateway, provision):
        pool = await shared_disk(db, gateway, kind="pool")
        (vm_id,) = await make_vms(db, pool, 1, VmState.PLANNED)
        await provision.step()
        vm = await row(db, vm_id)
        assert (vm["state"], vm["asked_at"], gateway.vms) == ("planned", None, {})
        assert vm["health"] == "a pool makes no VM of this template: PersistentVolumeClaim data exists once"

    @pytest.mark.parametrize(("volume", "vms"), [("root", 1), ("other", 0)])
    async def test_a_snapshot_with_that_volume_gives_a_copy(self, db, gateway, provision, monkeypatch, volume, vms):
        disk = SnapshotDisk(volume, "s", "1Gi", None, ("ReadWriteOnce",), None)

        async def start(*_args, **_more):
            return FromSnapshot("ready", (disk,))

        monkeypatch.setattr("app.reconcilers.vms.creator.resolve_start", start)
        await make_vms(db, await shared_disk(db, gateway, kind="pool"), 1, VmState.PLANNED)
        await provision.step()
        assert len(gateway.vms) == vms


async def made(db, gateway, provision, count=1):
    """VMs that the cluster has, in state booting."""
    pool = await make_pool(db)
    ids = await make_vms(db, pool, count, VmState.PLANNED)
    await provision.step()
    return ids


async def release_vm(db, vm_id):
    await execute(db, "UPDATE vm SET state = 'releasing', due_at = now() WHERE id = :id", id=vm_id)


async def test_a_vm_that_is_let_go_is_removed_and_then_deleted(db, gateway, provision, removal):
    (vm_id,) = await made(db, gateway, provision)
    await release_vm(db, vm_id)
    await removal.step()
    assert gateway.vms == {}
    assert await state_of(db, vm_id) is VmState.DELETED


async def test_a_vm_that_is_still_going_is_looked_at_again_and_deleted_once(db, gateway, provision, removal):
    (vm_id,) = await made(db, gateway, provision)
    await release_vm(db, vm_id)
    gateway.lingers = True
    await removal.step()
    vm = await row(db, vm_id)
    assert (vm["state"], vm["lease_token"]) == ("releasing", None)
    assert (vm["due_at"] - vm["state_since"]).total_seconds() >= 30
    await removal.step()
    assert gateway.called("look") == [], "not before its time"
    for _ in range(3):
        await due(db)
        await removal.step()
    assert (len(gateway.called("delete")), len(gateway.called("look"))) == (1, 3)
    gateway.vanish(vm["name"])
    await due(db)
    await removal.step()
    assert await state_of(db, vm_id) is VmState.DELETED


async def test_a_vm_that_is_not_going_after_a_while_is_deleted_again(db, gateway, provision, removal):
    (vm_id,) = await made(db, gateway, provision)
    await release_vm(db, vm_id)
    gateway.lingers = True
    await removal.step()
    gateway.change((await row(db, vm_id))["name"], deleting=False)
    await due(db)
    await removal.step()
    assert len(gateway.called("delete")) == 2


async def test_an_object_of_another_uid_is_left_alone(db, gateway, provision, removal):
    (vm_id,) = await made(db, gateway, provision)
    name = (await row(db, vm_id))["name"]
    gateway.change(name, uid="another")
    await release_vm(db, vm_id)
    await removal.step()
    assert name in gateway.vms
    assert await state_of(db, vm_id) is VmState.DELETED


@pytest.mark.parametrize("error", [ClusterUnavailable("away"), ClusterForbidden("no right")])
async def test_a_removal_that_fails_is_tried_again(db, gateway, provision, removal, error):
    (vm_id,) = await made(db, gateway, provision)
    await release_vm(db, vm_id)
    gateway.refuse("delete", error, times=1)
    await removal.step()
    vm = await row(db, vm_id)
    assert vm["state"] == "releasing"
    assert error.detail in vm["health"]
    gateway.lingers = True
    await due(db)
    await removal.step()
    vm = await row(db, vm_id)
    assert (vm["state"], vm["health"]) == ("releasing", None), "what kept it has passed"
    gateway.vanish(vm["name"])
    await due(db)
    await removal.step()
    assert await state_of(db, vm_id) is VmState.DELETED


async def claimed(db, gateway, provision):
    (vm_id,) = await made(db, gateway, provision)
    await make_ready(db, [vm_id])
    lane = WarmClaimStore(db.url)
    pool_id = await scalar(db, "SELECT id FROM pool")
    (bound,) = await lane.claim(pool_id, [request()])
    await lane.close()
    assert bound is not None
    return bound


async def test_a_claimed_vm_is_labelled_once(db, gateway, provision, settings):
    bound = await claimed(db, gateway, provision)
    labelling = ClaimLabeler(db, gateway, settings)
    await labelling.step()
    assert gateway.vms[bound.vm_name].claim_id == str(bound.claim.id)
    await labelling.step()
    assert len(gateway.called("label")) == 1


async def test_a_claimed_vm_is_labelled_with_what_people_call_its_claim(db, gateway, provision, settings):
    bound = await claimed(db, gateway, provision)
    await execute(db, "UPDATE claim SET labels = jsonb_build_object('name', 'pinned-vm')")
    await ClaimLabeler(db, gateway, settings).step()
    assert gateway.labels == {bound.vm_name: LabelCall({"name": "pinned-vm"}, None, None)}


async def test_a_vm_gets_the_marks_of_the_template_that_its_claim_describes(db, gateway, provision, settings):
    bound = await claimed(db, gateway, provision)
    await execute(db, "UPDATE vm SET vmi_uid = 'vmi-1'")
    await execute(db, """UPDATE claim SET marks = '{"labels": {"app": "web"}, "annotations": {}}'""")
    await ClaimLabeler(db, gateway, settings).step()
    assert gateway.labels == {bound.vm_name: LabelCall({}, Marks({"app": "web"}), "vmi-1")}


async def test_a_vm_that_was_labelled_before_its_marks_were_known_is_labelled_again(db, gateway, provision, settings):
    bound = await claimed(db, gateway, provision)
    labelling = ClaimLabeler(db, gateway, settings)

    async def explain_meanwhile():
        written = StoredChoice("shape", {"path": "pool"}, ("pool",), Marks({"app": "web"}))
        async with db.begin() as tx:
            assert await described.explain(tx, bound.claim.id, written, whatever_vm=True)

    (item,) = await acquired(db)
    await explain_meanwhile()
    await labelling.process(item)  # it knew nothing of the marks
    assert gateway.labels[bound.vm_name].marks is None
    await labelling.step()
    assert gateway.labels[bound.vm_name].marks == Marks({"app": "web"})
    await labelling.step()
    assert len(gateway.called("label")) == 2


async def acquired(db):
    async with db.begin() as tx:
        return await work.acquire_labels(tx, limit=1, seconds=30)


@pytest.mark.parametrize("error", [ClusterUnavailable("away"), ClusterConflict("another")])
async def test_a_label_that_cannot_be_written_is_tried_again(db, gateway, provision, settings, error):
    bound = await claimed(db, gateway, provision)
    labelling = ClaimLabeler(db, gateway, settings)
    gateway.refuse("label", error, times=1)
    await labelling.step()
    assert gateway.vms[bound.vm_name].claim_id is None
    await execute(db, "UPDATE claim SET label_due_at = now()")
    await labelling.step()
    assert gateway.vms[bound.vm_name].claim_id == str(bound.claim.id)
