"""The path `memory`: taken where it may be, left where it fails, and refused by name where it cannot be."""

import pytest

from app.domain.observation import Failure
from app.domain.paths import StartPath
from app.domain.pools import StartFrom
from app.errors import NoPath, TemplateRefused
from tests.support.described_claims import claim_state, live_vms, make_snapshot
from tests.support.rows import execute, fetch, scalar

OTHER = {"image": "registry.example/other:1"}
MISMATCH = Failure("MemoryFingerprintMismatch", "the memory was kept with QEMU 9")


async def keep(db, process, name="running", template=None):
    described = process.template(template)
    await make_snapshot(db, name, described.shape, memory=described.spec)


async def stale(db):
    await execute(db, "UPDATE snapshot_take SET stale_reason = 'another QEMU'")


def told(answer):
    return {each["path"]: each["why"] for each in answer.claim.choice["considered"]}


async def test_it_comes_before_the_disks_of_a_snapshot(db, process):
    await keep(db, process)
    await make_snapshot(db, "disks", process.shape())
    answer = await process.claim()
    assert (answer.claim.choice["path"], answer.claim.choice["source"]) == ("memory", "running")
    assert list(told(answer)) == ["pool", "memory", "snapshot", "preload", "cold"]
    await process.serve()
    (vm,) = await live_vms(db)
    assert (vm["state"], vm["path"], vm["source"]) == ("claimed", "memory", "running")
    row = (await fetch(db, "SELECT path, allowed FROM claim WHERE id = :id", id=answer.claim.id))[0]
    assert (row["path"], row["allowed"]) == ("memory", [str(path) for path in StartPath])


async def test_where_no_snapshot_keeps_memory_it_is_not_told(db, process):
    await make_snapshot(db, "disks", process.shape())
    answer = await process.claim()
    assert list(told(answer)) == ["pool", "snapshot", "preload", "cold"]
    assert "memory" not in await scalar(db, "SELECT allowed FROM claim WHERE id = :id", id=answer.claim.id)


async def test_who_asks_for_it_by_name_is_told_why_there_is_none(process):
    with pytest.raises(NoPath, match="memory: no snapshot keeps the memory of a VM of this shape"):
        await process.claim(paths=(StartPath.MEMORY,))


async def test_the_memory_of_another_shape_is_none(db, process):
    await keep(db, process, template=OTHER)
    answer = await process.claim()
    assert answer.claim.choice["path"] == "cold"
    assert told(answer)["memory"] == "no snapshot keeps the memory of a VM of this shape"


async def test_a_start_from_the_memory_of_another_vm_is_refused_by_the_field(db, process, gateway):
    await keep(db, process)
    with pytest.raises(TemplateRefused, match="keeps the memory of another VM") as error:
        await process.claim(vm=OTHER, start_from=StartFrom(snapshot="running"))
    assert [problem.field for problem in error.value.problems] == ["vm.memory"]
    with pytest.raises(TemplateRefused) as error:
        await process.make_pool("fed", template=OTHER, start_from=StartFrom(snapshot="running"))
    assert [problem.field for problem in error.value.problems] == ["template.memory"]
    assert gateway.vms == {}
    assert await scalar(db, "SELECT count(*) FROM claim") == 0


async def test_a_start_from_it_never_boots_from_its_disks(db, process):
    await keep(db, process)
    with pytest.raises(NoPath, match="VMs only start from that: allow the path memory"):
        await process.claim(start_from=StartFrom(snapshot="running"), paths=(StartPath.SNAPSHOT,))
    answer = await process.claim(start_from=StartFrom(snapshot="running"))
    assert answer.claim.choice["path"] == "memory"


async def test_a_pool_is_fed_from_memory(db, process):
    await keep(db, process)
    pool = await process.make_pool(size=1, start_from=StartFrom(snapshot="running"))
    assert pool.path is StartPath.MEMORY
    await process.serve()
    (vm,) = await live_vms(db)
    assert (vm["state"], vm["path"], vm["source"]) == ("ready", "memory", "running")


async def test_stale_memory_is_passed_over(db, process):
    await keep(db, process)
    await stale(db)
    answer = await process.claim()
    assert answer.claim.choice["path"] == "cold"


async def test_a_start_from_stale_memory_is_refused_with_what_to_do(db, process):
    await keep(db, process)
    await stale(db)
    with pytest.raises(NoPath) as error:
        await process.claim(start_from=StartFrom(snapshot="running"))
    assert "the memory of snapshot 'running' cannot be restored any more: another QEMU" in error.value.detail
    assert "take it again with POST /v1/snapshots/running/refresh" in error.value.detail


async def test_a_pool_waits_for_its_stale_memory_and_says_so(db, process, gateway):
    await keep(db, process)
    await process.make_pool(size=1, start_from=StartFrom(snapshot="running"))
    await stale(db)
    await process.plan()
    await process.create()
    assert gateway.vms == {}
    assert "cannot be restored any more" in await scalar(db, "SELECT health FROM vm")


async def test_a_mismatch_moves_the_claim_on_and_has_the_snapshot_looked_at(db, process, gateway):
    await keep(db, process)
    await make_snapshot(db, "disks", process.shape())
    await execute(db, "UPDATE snapshot SET due_at = 'infinity'")
    answer = await process.claim()
    await process.plan()
    await process.create()
    for name in list(gateway.vms):
        gateway.change(name, failure=MISMATCH)
    await process.see()
    assert await scalar(db, "SELECT due_at <= now() FROM snapshot WHERE name = 'running'")
    await process.rerouting.step()
    choice = await scalar(db, "SELECT choice FROM claim WHERE id = :id", id=answer.claim.id)
    assert (choice["path"], choice["source"]) == ("snapshot", "disks")
    assert choice["tried"][0]["path"] == "memory"
    assert "MemoryFingerprintMismatch: the memory was kept with QEMU 9" in choice["tried"][0]["reason"]


async def test_a_claim_that_wants_nothing_else_fails_once_the_memory_is_stale(db, process, gateway):
    await keep(db, process)
    answer = await process.claim(start_from=StartFrom(snapshot="running"))
    await process.plan()
    await process.create()
    for name in list(gateway.vms):
        gateway.change(name, failure=MISMATCH)
    await process.see()
    await stale(db)
    await process.rerouting.step()
    assert await claim_state(db, answer.claim.id) == "failed"
    assert "cannot be restored any more" in await scalar(db, "SELECT reason FROM claim")


async def test_a_snapshot_that_was_taken_again_of_another_vm_makes_no_more_vms(db, process, gateway):
    """Its pool's template has changed, and another pool still starts from it."""
    await keep(db, process)
    await process.make_pool(size=1, start_from=StartFrom(snapshot="running"))
    await execute(db, 'UPDATE snapshot_take SET vm_spec = \'{"template": {"image": "another"}}\'')
    await process.plan()
    await process.create()
    assert gateway.vms == {}
    assert "keeps the memory of another VM" in await scalar(db, "SELECT reason FROM vm")


async def test_a_snapshot_that_came_back_without_memory_counts_as_what_it_is(db, process):
    await keep(db, process)
    await process.make_pool(size=1, start_from=StartFrom(snapshot="running"))
    await execute(db, "UPDATE snapshot SET memory = false")
    await execute(db, "UPDATE snapshot_take SET fingerprint = NULL, vm_spec = NULL")
    await process.serve()
    (vm,) = await live_vms(db)
    assert (vm["state"], vm["path"]) == ("ready", "snapshot")


async def test_remembered_is_what_it_started_from(db, process):
    await keep(db, process)
    await process.claim(remember=True)
    pool = (await fetch(db, "SELECT path, source FROM pool WHERE kind = 'pool'"))[0]
    assert (pool["path"], pool["source"]) == ("memory", "running")
