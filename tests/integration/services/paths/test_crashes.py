"""The process is killed at each stage of a claim that describes its VM, and another goes on: it ends with exactly one VM.

Killed means: whatever was under way is never heard of again, and nothing that was in memory is left.
"""

from contextlib import suppress

import pytest

from app.services.claims.queue import StoredClaim
from tests.support import store_invariants as invariants
from tests.support.described_claims import live_vms
from tests.support.rows import execute, fetch

KEYED = {"key": "k", "request_hash": "h"}


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


class Fuse:
    """Blows at one call to the cluster, before or after the cluster has done it, once."""

    def __init__(self, gateway, call, when):
        self._call = call
        self._when = when
        self._gateway = gateway
        self.blown = False
        real = getattr(gateway, call)

        async def fused(*args, **kwargs):
            if self._when == "before":
                self._blow()
            answer = await real(*args, **kwargs)
            self._blow()
            return answer

        setattr(gateway, call, fused)

    def _blow(self):
        if not self.blown:
            self.blown = True
            raise Killed


async def go_on(db, process):
    """Leases of the dead run out, and everything there is to do is done."""
    await execute(db, "UPDATE vm SET lease_expires_at = now() - interval '1 s' WHERE lease_expires_at IS NOT NULL")
    for _ in range(3):
        await process.serve()
        await process.reap.step()
        await process.remove()


async def check_one_vm(db, process, gateway):
    """The client, who never heard an answer, asks again with its key."""
    answer = await process.claim(**KEYED)
    assert isinstance(answer, StoredClaim)
    await go_on(db, process)
    (claim,) = await fetch(db, "SELECT id, state, vm_id FROM claim")
    assert (claim["id"], claim["state"]) == (answer.claim.id, "bound")
    (vm,) = await live_vms(db)
    assert (vm["id"], vm["state"]) == (claim["vm_id"], "claimed")
    assert [each.vm_id for each in gateway.vms.values()] == [str(vm["id"])]
    await invariants.check(db)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_at_the_clusters_look_at_the_template(db, start, gateway, when):
    Fuse(gateway, "check", when)
    with pytest.raises(Killed):
        await start().claim(**KEYED)
    await check_one_vm(db, start(), gateway)


async def test_a_process_killed_before_it_answers_leaves_one_claim(db, start, gateway):
    first = start()
    follow = first.claim_service.queue.follow

    async def dies(*args, **kwargs):
        await follow(*args, **kwargs)
        raise Killed

    first.claim_service.queue.follow = dies
    with pytest.raises(Killed):
        await first.claim(**KEYED)
    await check_one_vm(db, start(), gateway)


@pytest.mark.parametrize("steps", [["plan"], ["plan", "create"], ["plan", "create", "boot"]], ids=" ".join)
async def test_a_process_killed_between_two_steps_leaves_one_vm(db, start, gateway, steps):
    first = start()
    await first.claim(**KEYED)
    for step in steps:
        await getattr(first, step)()
    await check_one_vm(db, start(), gateway)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_killed_around_the_create_call_leaves_one_vm(db, start, gateway, when):
    """After: the cluster has made the VM, and nobody has written that down."""
    first = start()
    await first.claim(**KEYED)
    await first.plan()
    fuse = Fuse(gateway, "create_vm", when)
    with suppress(Killed, BaseExceptionGroup):
        await first.create()
    assert fuse.blown
    assert len(gateway.vms) == (1 if when == "after" else 0)
    await check_one_vm(db, start(), gateway)
    assert len(gateway.vms) == 1


async def test_at_the_create_while_another_sees_it_boot(db, start, gateway):
    first = start()
    await first.claim(**KEYED)
    await first.plan()
    Fuse(gateway, "create_vm", "after")
    with suppress(Killed, BaseExceptionGroup):
        await first.create()
    second = start()
    await second.boot()
    await check_one_vm(db, second, gateway)


async def test_at_every_stage_one_after_the_other(db, start, gateway):
    """The same claim outlives as many processes as it has stages."""
    await start().claim(**KEYED)
    await start().plan()
    for when in ("before", "after"):
        fuse = Fuse(gateway, "create_vm", when)
        with suppress(Killed, BaseExceptionGroup):
            await start().create()
        assert fuse.blown
        await execute(db, "UPDATE vm SET lease_expires_at = now() - interval '1 s'")
    await start().boot()
    await check_one_vm(db, start(), gateway)
