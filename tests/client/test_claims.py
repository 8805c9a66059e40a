"""Claims by the Python clients, against a real service: they wait, are kept, and are released on every way out."""

import asyncio

import httpx
import pytest

from emberpool.client import AsyncClient, ClaimLost, Client, Refused, Unavailable
from tests.support.patience import PATIENCE
from tests.support.python_client import LosesAnswers, Steps, call, entered, following
from tests.support.service import bind, listen, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def pool(request) -> str:
    """A name of its own for each test."""
    return f"p{abs(hash(request.node.name)):x}"[:40]


async def state(server, claim) -> str:
    return (await server.client.get(f"/v1/claims/{claim}")).json()["state"]


async def claims_of(server, pool: str) -> list[dict]:
    return (await server.client.get("/v1/claims", params={"pool": pool})).json()["items"]


class Broken(Exception):
    """What goes wrong in a job."""


async def test_a_vm_is_there_in_the_body_and_released_after_it(server, kind, pool):
    await server.fill(pool)
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        async with entered(client.claim(pool, labels={"job": "1"}, lease_seconds=600)) as vm:
            assert vm.name.startswith(pool)
            assert vm.claim["labels"] == {"job": "1"}
            assert (await call(vm.refresh))["state"] == "bound"
            assert vm.ssh_command("make test", user="dev", identity="key")[-2:] == [vm.addresses[0], "make test"]
        assert await state(server, vm.id) == "released"


@pytest.mark.parametrize("raised", [Broken, KeyboardInterrupt, SystemExit])
async def test_a_vm_is_released_if_the_body_fails(server, kind, pool, raised):
    await server.fill(pool)
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        manager = client.claim(pool)
        vm = await manager.__aenter__() if kind is AsyncClient else await asyncio.to_thread(manager.__enter__)
        # As the statement itself does it, without an exception that would end the test's loop.
        error = raised("over")
        leave = manager.__aexit__ if kind is AsyncClient else manager.__exit__
        assert not await call(leave, type(error), error, None)
        assert await state(server, vm.id) == "released"


async def test_a_task_that_is_cancelled_releases_its_vm(server, pool):
    await server.fill(pool)
    held = asyncio.Event()

    async def work(address: str) -> None:
        async with AsyncClient(address) as client, client.claim(pool):
            held.set()
            await asyncio.Event().wait()

    async with listen(server.app) as http:
        task = asyncio.create_task(work(str(http.base_url)))
        async with asyncio.timeout(PATIENCE):
            await held.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert [claim["state"] for claim in await claims_of(server, pool)] == ["released"]


async def test_a_claim_waits_until_another_one_is_released(server, kind, pool):
    await server.fill(pool, max_vms=1)
    first = await server.claim_one(pool)
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        waiting = asyncio.create_task(call(client.obtain, {"pool": pool}, wait=PATIENCE))

        async def in_the_queue() -> bool:
            return any(claim["state"] == "pending" for claim in await claims_of(server, pool))

        await until(in_the_queue)
        await server.client.delete(f"/v1/claims/{first['id']}")
        claim = await waiting
        assert claim["state"] == "bound"
        await call(client.release_claim, claim["id"])


async def test_a_pool_that_makes_no_vms_is_told_at_once(server, kind, pool):
    await server.put(pool, size=0)
    await server.client.post(f"/v1/pools/{pool}/pause", headers={"Content-Type": "application/json"})
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        with pytest.raises(Unavailable, match="paused") as caught:
            await call(client.obtain, {"pool": pool})
        assert caught.value.code == "no-warm-vm"
        with pytest.raises(Refused, match="no pool is named 'nowhere'"):
            await call(client.obtain, {"pool": "nowhere"}, wait=PATIENCE)


async def test_an_answer_that_is_lost_costs_no_vm(server, kind, pool):
    await server.fill(pool)
    async with listen(server.app) as http:
        lost = LosesAnswers(httpx.ReadError("lost"))
        async with entered(kind(str(http.base_url), transport=lost)) as client:
            claim = await call(client.obtain, {"pool": pool}, wait=PATIENCE)
    assert [each["id"] for each in await claims_of(server, pool)] == [claim["id"]]


async def test_a_claim_that_is_broken_off_before_its_answer_is_found_by_its_key_and_released(server, kind, pool):
    await server.fill(pool)
    broken = KeyboardInterrupt() if kind is Client else asyncio.CancelledError()
    transport = LosesAnswers(broken)
    async with listen(server.app) as http, entered(kind(str(http.base_url), transport=transport)) as client:
        caught = await (asyncio.to_thread(interrupted, client, pool) if kind is Client else cancelled(client, pool))
    assert isinstance(caught, type(broken))
    assert [each["state"] for each in await claims_of(server, pool)] == ["released"]


def interrupted(client: Client, pool: str) -> BaseException | None:
    """A KeyboardInterrupt that leaves a thread would end the whole test run."""
    try:
        client.obtain({"pool": pool})
    except KeyboardInterrupt as error:
        return error
    return None


async def cancelled(client: AsyncClient, pool: str) -> BaseException | None:
    try:
        await client.obtain({"pool": pool})
    except asyncio.CancelledError as error:
        return error
    return None


async def test_a_lease_is_renewed_for_as_long_as_the_body_runs(server, kind, pool):
    await server.fill(pool)
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        steps = Steps(client)
        async with entered(client.claim(pool, lease_seconds=600)) as vm:
            before = vm.claim["lease_expires_at"]
            for _ in range(2):
                await steps.step()
                assert vm.claim["lease_expires_at"] > before
                before = vm.claim["lease_expires_at"]
            assert set(steps.seconds) == {200}
        assert await state(server, vm.id) == "released"


async def test_a_lease_that_nobody_wants_renewed_is_left_alone(server, kind, pool):
    await server.fill(pool)
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        steps = Steps(client)
        async with entered(client.claim(pool, lease_seconds=600, renew=False)):
            pass
        assert steps.seconds == []


async def test_a_claim_that_ends_meanwhile_is_told_to_the_body_and_at_its_end(server, kind, pool):
    await server.fill(pool)
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        steps = Steps(client)
        with pytest.raises(ClaimLost, match="was not renewed"):
            await lose(server, client, pool, steps)


async def lose(server, client, pool: str, steps: Steps) -> None:
    """A claim that somebody else ends while it is in use."""
    async with entered(client.claim(pool, lease_seconds=600)) as vm:
        await server.client.delete(f"/v1/claims/{vm.id}")
        steps.end()

        async def known() -> bool:
            return vm.lost is not None

        await until(known)


async def test_events_come_one_after_the_other_across_a_restart_of_the_service(server, kind, pool):
    await server.fill(pool)
    async with bind(server.app) as (_, port):
        client = kind(f"http://127.0.0.1:{port}", patience=PATIENCE)
        page = await call(client.list_events, pool=pool)
        events = client.events(pool=pool, after="0-0")
        seen = [await following(events) for _ in page["items"]]
    claim = await server.claim_one(pool)
    async with bind(server.app, port=port), entered(client):
        while seen[-1]["claim_id"] != claim["id"]:
            seen.append(await following(events))
        whole = (await call(client.list_events, pool=pool, limit=500))["items"]
        assert [each["cursor"] for each in seen] == [each["cursor"] for each in whole[: len(seen)]]
        await close(events)


async def close(iterator) -> None:
    await (iterator.aclose() if hasattr(iterator, "aclose") else asyncio.to_thread(iterator.close))


async def test_pools_manifests_and_lists_are_there_under_the_names_of_the_document(server, kind, pool):
    async with listen(server.app) as http, entered(kind(str(http.base_url))) as client:
        made = await call(
            client.put_pool, pool, {"size": 0, "template": {"image": "registry.local/disk:1", "memory": "64Mi"}}
        )
        assert made["spec"]["size"] == 0
        patched = await call(client.patch_pool, pool, {"min_available": 0}, if_match='"1"')
        assert patched["name"] == pool
        items = client.iter_pools(page_size=1)
        names = {
            each["name"]
            for each in (
                [each async for each in items] if kind is AsyncClient else await asyncio.to_thread(list, items)
            )
        }
        assert pool in names
        assert (await call(client.delete_pool, pool))["name"] == pool
