"""A claim that describes its VM is served by the first path that is open, and told why not by each other."""

import asyncio
from dataclasses import replace

import pytest

from app.domain.claims import WarmClaim
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.pools import StartFrom
from app.domain.states import ClaimState, VmState
from app.domain.templates import Exclusive
from app.errors import (
    ClusterRefused,
    ClusterUnavailable,
    DeadlineTooShort,
    IdempotencyKeyReused,
    InvalidRequest,
    NoPath,
    TemplateRefused,
)
from app.services.claims.lifecycle import release_claim
from app.services.claims.queue import StoredClaim
from app.services.pools.service import pause_pool
from tests.support.claim_rows import wait_for_vm
from tests.support.described_claims import claim_state, live_vms, make_preload, make_snapshot
from tests.support.rows import execute, fetch, make_vms, scalar

OTHER = {"image": "registry.example/other:1"}


def why_not(answer, path):
    (found,) = [each["why"] for each in answer.claim.choice["considered"] if each["path"] == path]
    return found


async def row_of(db, answer):
    return (await fetch(db, "SELECT * FROM claim WHERE id = :id", id=answer.claim.id))[0]


async def test_a_pool_of_the_same_shape_serves_it_warm(db, process):
    pool = await process.make_pool(size=1)
    await process.serve()
    answer = await process.claim()
    assert isinstance(answer, WarmClaim)
    assert (answer.claim.request.pool, answer.shape) == ("web", process.shape())
    assert answer.choice["path"] == "pool"
    stored = (await fetch(db, "SELECT * FROM claim WHERE id = :id", id=answer.claim.id))[0]
    assert (stored["pool_id"], stored["shape"], stored["path"]) == (pool.id, process.shape(), "pool")
    assert stored["choice"] == answer.choice
    assert stored["allowed"] == [str(path) for path in StartPath if path is not StartPath.MEMORY]
    assert await scalar(db, "SELECT count(*) FROM pool WHERE kind = 'on_demand'") == 0


async def test_without_a_pool_one_vm_is_made_for_it(db, process, gateway):
    answer = await process.claim()
    assert isinstance(answer, StoredClaim)
    assert answer.claim.state is ClaimState.PENDING
    assert why_not(answer, "pool") == "no pool has this shape"
    assert why_not(answer, "snapshot") == "no snapshot of this shape"
    assert "no preload brings registry.example/guest:1 near" in why_not(answer, "preload")
    assert why_not(answer, "cold") is None
    await process.serve()
    (vm,) = await live_vms(db)
    assert (vm["state"], vm["path"], vm["source"], vm["shape"]) == ("claimed", "cold", None, process.shape())
    assert (await row_of(db, answer))["path"] == "cold"
    await process.plan()
    await process.create()
    assert len(gateway.vms) == 1


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (tuple(StartPath), ("snapshot", "snap")),
        ((StartPath.PRELOAD, StartPath.COLD), ("preload", "near")),
        ((StartPath.COLD,), ("cold", None)),
    ],
)
async def test_the_fastest_of_the_paths_that_it_allows(db, process, paths, expected):
    await make_snapshot(db, "snap", process.shape())
    await make_preload(db, "near")
    answer = await process.claim(paths=paths)
    assert (answer.claim.choice["path"], answer.claim.choice["source"]) == expected
    await process.serve()
    (vm,) = await live_vms(db)
    assert (vm["state"], vm["path"], vm["source"]) == ("claimed", *expected)


async def test_what_is_about_to_be_there_is_said(db, process):
    await make_snapshot(db, "snap", process.shape(), state="taking")
    await make_preload(db, "near", pulled=0)
    answer = await process.claim()
    assert why_not(answer, "snapshot") == "snapshot 'snap' is being taken"
    assert why_not(answer, "preload") == "preload 'near' is on its way"


async def test_an_image_that_is_on_some_nodes_only_says_so(db, process):
    await make_preload(db, "near", pulled=2)
    reason = (await process.claim()).claim.choice["reason"]
    assert reason.startswith("from preload 'near' (its image is on 2 of 3 nodes): the first path available")


async def test_a_snapshot_of_another_shape_is_none(db, process):
    await make_snapshot(db, "snap", process.shape(OTHER))
    assert (await process.claim()).claim.choice["path"] == "cold"


async def test_a_pool_whose_next_vm_is_on_its_way_is_waited_for(db, process):
    pool = await process.make_pool(size=1)
    await process.plan()
    await process.create()
    answer = await process.claim()
    assert (answer.claim.choice["path"], answer.claim.choice["source"], answer.claim.pool) == ("pool", "web", "web")
    await process.boot()
    assert await claim_state(db, answer.claim.id) == "bound"
    assert (await row_of(db, answer))["path"] == "pool"
    assert (await row_of(db, answer))["pool_id"] == pool.id


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"warm_when": WarmWhen.RUNNING}, "counts as warm when it is running, not agent"),
        ({"max_lease_seconds": 60, "default_lease_seconds": 60}, "gives leases of up to 1 minute"),
    ],
)
async def test_a_pool_that_promises_less_does_not_serve_it(db, process, given, why):
    await process.make_pool(size=1, **given)
    # The faked cluster's shape holds warm_when; a real one's does not.
    await execute(db, "UPDATE pool SET shape = :shape", shape=process.shape())
    await process.serve()
    await execute(db, "UPDATE vm SET shape = :shape", shape=process.shape())
    answer = await process.claim(lease_seconds=3600)
    assert why in why_not(answer, "pool")
    assert answer.claim.choice["path"] == "cold"


async def test_a_paused_pool_says_so(db, process):
    await process.make_pool(size=1)
    await pause_pool(db, "web")
    answer = await process.claim()
    assert why_not(answer, "pool") == "pool 'web' has no ready VM, and it is paused"


async def test_a_pool_with_vms_of_an_older_shape_is_left_alone(db, process):
    await process.make_pool(size=1)
    await process.serve()
    await process.make_pool(size=1, template=OTHER)
    answer = await process.claim(vm=OTHER)
    assert isinstance(answer, StoredClaim)
    assert "still has VMs of an older template" in why_not(answer, "pool")
    assert answer.claim.choice["path"] == "cold"


async def test_a_vm_of_an_older_shape_that_was_got_in_a_race_is_exchanged(db, process, gateway):
    """What was known of the pool is older than its edit: the VM is of the old template, and goes."""
    await process.make_pool(size=1)
    await process.serve()
    (old,) = await live_vms(db)
    other = process.shape(OTHER)
    await process.make_pool(size=1, template=OTHER)
    found = await process.path_selector._serving.get(other)
    process.path_selector._serving._known[other] = (
        float("inf"),
        [type(each)(each.pool, mixed=False) for each in found],
    )
    answer = await process.claim(vm=OTHER, key="k")
    assert isinstance(answer, StoredClaim)
    assert answer.claim.state is ClaimState.PENDING
    assert [each["vm_id"] for each in answer.claim.replacements] == [str(old["id"])]
    await process.serve()
    await process.remove()
    bound = await fetch(db, "SELECT v.shape FROM claim c JOIN vm v ON v.id = c.vm_id WHERE c.state = 'bound'")
    assert [row["shape"] for row in bound] == [other]
    assert old["name"] not in gateway.vms


async def test_it_is_refused_where_no_path_is_open(process):
    with pytest.raises(NoPath, match="pool: no pool has this shape; snapshot: no snapshot of this shape") as refused:
        await process.claim(paths=(StartPath.POOL, StartPath.SNAPSHOT))
    assert refused.value.retry_after > 0


async def test_what_it_must_start_from_is_all_that_it_starts_from(db, process):
    await make_snapshot(db, "mine", "of another shape")
    await make_preload(db, "near")
    answer = await process.claim(start_from=StartFrom(snapshot="mine"))
    assert (answer.claim.choice["path"], answer.claim.choice["source"]) == ("snapshot", "mine")
    assert why_not(answer, "cold") == "not among the paths that the claim allows"
    with pytest.raises(InvalidRequest) as refused:
        await process.claim(start_from=StartFrom(snapshot="mine"), paths=(StartPath.COLD,))
    assert refused.value.problems[0].field == "paths"
    with pytest.raises(InvalidRequest, match="there is no snapshot 'none'"):
        await process.claim(start_from=StartFrom(snapshot="none"))


async def test_a_template_is_checked_by_the_cluster_once(db, process, gateway):
    await process.claim()
    await process.claim()
    assert len(gateway.called("check")) == 1


@pytest.mark.parametrize(
    "error", [TemplateRefused("no such thing"), ClusterUnavailable("it is away"), ClusterRefused("no")]
)
async def test_a_template_that_the_cluster_does_not_take_leaves_nothing(db, process, gateway, error):
    gateway.refuse("check", error, times=1)
    with pytest.raises(type(error)):
        await process.claim(key="k")
    assert await scalar(db, "SELECT count(*) FROM claim") == 0
    assert await scalar(db, "SELECT count(*) FROM pool") == 0
    assert (await process.claim(key="k")).claim.state is ClaimState.PENDING


async def test_our_own_rules_name_the_field_as_the_client_wrote_it(process):
    with pytest.raises(TemplateRefused) as refused:
        await process.claim(vm={"refused": True})
    assert [each.field for each in refused.value.problems] == ["vm.refused"]


async def test_a_deadline_that_every_path_was_measured_to_miss_is_refused_at_once(db, process):
    await measured(db, process, 40.0)
    with pytest.raises(DeadlineTooShort, match=r"cold: its measured p95 of 40\.\d s is beyond the deadline of 10\.0 s"):
        await process.claim(deadline_seconds=10.0)
    assert await scalar(db, "SELECT count(*) FROM claim WHERE state = 'pending'") == 0
    assert (await process.claim(deadline_seconds=60.0)).claim.state is ClaimState.PENDING


async def test_no_data_refuses_no_deadline_which_then_ends_the_wait(db, process):
    answer = await process.claim(deadline_seconds=5.0, key="k")
    assert await scalar(
        db, "SELECT pending_until - created_at < interval '6 s' FROM claim WHERE id = :id", id=answer.claim.id
    )
    replayed = await process.claim(
        deadline_seconds=5.0, key="k"
    )  # which would hold the place longer, were it not for that
    assert replayed.claim.id == answer.claim.id
    assert await scalar(
        db, "SELECT pending_until - created_at < interval '6 s' FROM claim WHERE id = :id", id=answer.claim.id
    )
    await process.plan()
    await process.create()
    await execute(db, "UPDATE claim SET pending_until = now() - interval '1 s'")
    await process.reap.step()
    assert await claim_state(db, answer.claim.id) == "failed"
    await process.boot()
    await process.plan()
    await process.remove()
    assert await live_vms(db) == []


async def measured(db, process, *seconds, path="cold"):
    """VMs of the shape that started by that path, and took so long."""
    pool = await process.make_pool("measured", size=0)
    for took in seconds:
        (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
        await execute(
            db,
            """UPDATE vm SET state = 'lost', ended_at = now(), ready_at = now(), boot_seconds = :took, path = :path,
                shape = :shape, asked_at = created_at WHERE id = :id""",
            took=took,
            path=path,
            shape=process.shape(),
            id=vm_id,
        )
    await execute(db, "UPDATE pool SET deleted_at = now(), deleting_at = now() WHERE id = :id", id=pool.id)


async def test_the_estimate_says_what_was_measured(db, process):
    await measured(db, process, 30.0, 30.0)
    answer = await process.claim()
    (cold,) = [each for each in answer.claim.choice["considered"] if each["path"] == "cold"]
    assert cold["estimate"] == {"p50": 30.0, "p95": 30.0, "count": 2, "basis": "measured for this shape 2 times"}
    assert answer.estimate.seconds == pytest.approx(30, abs=0.5)
    assert "this shape's last 2 boots" in answer.estimate.basis


async def test_a_pool_that_has_booted_nothing_yet_is_told_by_its_shape(db, process):
    await measured(db, process, 40.0, 40.0)
    await process.make_pool(size=1)
    await process.plan()
    await process.create()
    waiting = await process.claim(paths=(StartPath.POOL,))
    (pool,) = [each for each in waiting.claim.choice["considered"] if each["path"] == "pool"]
    assert pool["estimate"]["count"] == 2
    assert pool["estimate"]["p50"] == pytest.approx(40, abs=15)
    assert "this shape's last 2 boots, 40.0 s" in pool["estimate"]["basis"]
    assert waiting.estimate.seconds == pytest.approx(40, abs=15)
    with pytest.raises(DeadlineTooShort, match="pool: its measured p95"):
        await process.claim(paths=(StartPath.POOL,), deadline_seconds=10.0)


async def test_a_pool_of_a_new_shape_is_told_by_all_shapes_which_rule_no_deadline_out(db, process):
    await measured(db, process, 40.0, 40.0)
    await process.make_pool("new", template=OTHER, size=1)
    await process.plan()
    await process.create()
    waiting = await process.claim(vm=OTHER, paths=(StartPath.POOL,), deadline_seconds=10.0)
    (pool,) = [each for each in waiting.claim.choice["considered"] if each["path"] == "pool"]
    assert pool["available"]
    assert pool["estimate"]["p50"] == pytest.approx(40, abs=15)
    assert "all cold starts' last 2 boots, 40.0 s" in pool["estimate"]["basis"]


async def test_measurements_of_this_shape_overrule_the_order(db, process):
    await make_preload(db, "near")
    await measured(db, process, *([50.0] * 5), path="preload")
    await execute(db, "UPDATE pool SET name = 'gone' WHERE name = 'measured'")
    await measured(db, process, *([20.0] * 5), path="cold")
    answer = await process.claim()
    assert answer.claim.choice["path"] == "cold"
    assert "measured to be the fastest" in answer.claim.choice["reason"]
    assert why_not(answer, "preload").startswith("slower: 50.0 s")


async def test_released_while_it_waits_it_takes_its_vm_with_it(db, process, gateway):
    answer = await process.claim()
    await process.plan()
    await process.create()
    assert len(gateway.vms) == 1
    assert (await release_claim(db, answer.claim.id)).state is ClaimState.RELEASED
    await process.plan()
    await process.remove()
    await process.see()
    assert gateway.vms == {}
    assert await live_vms(db) == []


async def test_released_before_the_cluster_was_asked_nothing_is_made(db, process, gateway):
    answer = await process.claim()
    await process.plan()
    await release_claim(db, answer.claim.id)
    await process.plan()
    await process.create()
    assert gateway.called("create") == []
    assert await live_vms(db) == []


async def test_a_key_gets_the_same_claim_whatever_happened_meanwhile(db, process, start):
    first = await process.claim(key="k", request_hash="h")
    assert (await start().claim(key="k", request_hash="h")).claim.id == first.claim.id
    await process.serve()
    bound = await start().claim(key="k", request_hash="h")
    assert (bound.claim.id, bound.claim.state, bound.replayed) == (first.claim.id, ClaimState.BOUND, True)
    with pytest.raises(IdempotencyKeyReused):
        await process.claim(key="k", request_hash="another")
    assert len(await live_vms(db)) == 1


async def test_a_key_stands_though_what_its_claim_starts_from_has_gone(db, process):
    await make_snapshot(db, "mine", "any")
    wish = {"key": "k", "start_from": StartFrom(snapshot="mine")}
    first = await process.claim(**wish)
    await execute(db, "UPDATE snapshot SET deleted_at = now()")
    assert (await process.claim(**wish)).claim.id == first.claim.id


async def test_a_key_stands_though_its_request_would_be_refused_now(db, process, start, monkeypatch):
    first = await process.claim(key="k")
    restarted = start()

    def refuse(*_, **__):
        raise TemplateRefused("the rules are stricter since the restart")

    monkeypatch.setattr(restarted.gateway, "expand", refuse)
    assert (await restarted.claim(key="k")).claim.id == first.claim.id
    with pytest.raises(IdempotencyKeyReused):
        await restarted.claim(key="k", request_hash="another")
    with pytest.raises(TemplateRefused):
        await restarted.claim(key="new")


async def test_a_pool_that_is_edited_between_the_choice_and_the_queue_is_chosen_anew(db, process, monkeypatch):
    await process.make_pool(size=1)
    await process.plan()
    await process.create()
    enter, generations = process.claim_service.queue.enter, []

    async def edited(chosen, *rest):
        if not generations:
            await execute(db, "UPDATE pool SET generation = generation + 1")
        generations.append(chosen.choice.generation)
        return await enter(chosen, *rest)

    monkeypatch.setattr(process.claim_service.queue, "enter", edited)
    answer = await process.claim()
    assert answer.claim.choice["source"] == "web"
    assert generations == [generations[0], generations[0] + 1]


async def test_a_key_on_two_replicas_at_the_same_moment_makes_one_claim(db, start):
    replicas = [start(), start()]
    answers = await asyncio.gather(*(each.claim(key="k", request_hash="h") for each in replicas * 3))
    assert len({answer.claim.id for answer in answers}) == 1
    await replicas[0].serve()
    await replicas[1].serve()
    assert len(await live_vms(db)) == 1


async def test_a_key_that_one_replica_serves_warm_and_another_cold_makes_one_claim(db, start):
    """One knows of the pool, the other's picture is older: whoever is first is right."""
    knows, does_not = start(), start()
    await knows.make_pool(size=1)
    await knows.serve()
    does_not.path_selector._serving._known[knows.shape()] = (float("inf"), [])
    answers = await asyncio.gather(*(each.claim(key="k", request_hash="h") for each in (knows, does_not)))
    ids = {answer.claim.id for answer in answers}
    assert len(ids) == 1


async def test_a_full_queue_takes_no_more(db, start):
    process = start(max_pending_per_pool=1)
    await process.claim()
    with pytest.raises(NoPath, match="1 claims wait already"):
        await process.claim()


async def test_a_pools_own_claims_come_before_a_vm_claim_that_waits_behind_them(db, process):
    pool = await process.make_pool(size=1)
    await wait_for_vm(db, pool)
    await process.plan()
    await process.create()
    answer = await process.claim()
    assert answer.claim.choice["path"] == "pool"  # two VMs are on their way, for one claim and for the pool's size
    await process.boot()
    assert await claim_state(db, answer.claim.id) == "bound"


@pytest.mark.parametrize("start_from", [None, StartFrom(snapshot="snap")], ids=["the disk itself", "a copy"])
async def test_a_disk_that_exists_once_is_not_replaced_by_a_copy_unasked(db, process, gateway, monkeypatch, start_from):
    disk = Exclusive("PersistentVolumeClaim data", "template", "PersistentVolumeClaim data exists once", "root")
    expand = gateway.expand
    monkeypatch.setattr(gateway, "expand", lambda *given, **more: replace(expand(*given, **more), exclusives=(disk,)))
    await make_snapshot(db, "snap", process.shape())
    await process.make_pool(size=1, start_from=StartFrom(snapshot="snap"))
    await process.serve()
    answer = await process.claim(start_from=start_from)
    if start_from is not None:
        assert isinstance(answer, WarmClaim)
        return
    assert answer.claim.choice["path"] == "cold"
    assert why_not(answer, "pool") == "the VMs of pool 'web' have a copy of PersistentVolumeClaim data"
    assert "a VM from a snapshot has a copy" in why_not(answer, "snapshot")


async def test_a_vm_that_would_write_to_the_volume_of_a_preload_is_refused(db, process, gateway, monkeypatch):
    disk = Exclusive("PersistentVolumeClaim debian", "template.volumes[0]", "it exists once", "root")
    expand = gateway.expand
    monkeypatch.setattr(gateway, "expand", lambda *given, **more: replace(expand(*given, **more), exclusives=(disk,)))
    await make_preload(db, "debian")
    assert (await process.claim()).claim.choice["path"] == "preload"  # its image is on the nodes, and it has no volume
    await execute(db, """UPDATE preload SET status = '{"volume": {"claim": "debian"}}'""")
    with pytest.raises(TemplateRefused, match="holds the image of preload 'debian'") as refused:
        await process.claim()
    assert refused.value.problems[0].field == "vm.volumes[0]"
