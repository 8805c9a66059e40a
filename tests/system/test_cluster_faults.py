"""Faults of the cluster, ordered at the dev cluster, against one process of the service: what it makes of each.

One service and one cluster serve all tests here; each has pools of its own name, and lifts what it ordered.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from tests.support.postgres import clone_database
from tests.support.processes import Cluster, Service, until
from tests.support.system_calls import Calls, Orders
from tests.support.system_invariants import list_vms, standing, violated

pytestmark = pytest.mark.asyncio(loop_scope="module")

BREAKER: Final = 3
SILENCE_SECONDS: Final = 5.5  # above the 5 s below which a watch that ends counts as a failure
CREATES: Final = {"verbs": ["create"], "resource": "virtualmachines"}
WATCHES: Final = {"resource": "virtualmachine*", "settings": {"running": True}}


@dataclass(frozen=True)
class Faulty:
    """The service, the cluster's orders, and the cluster itself."""

    calls: Calls
    orders: Orders
    database: asyncpg.Connection
    session: aiohttp.ClientSession
    cluster: str

    async def objects(self, pool: str) -> set[str]:
        """Names of the pool's VMs in the cluster."""
        return {name for name in await list_vms(self.session, self.cluster) if name.startswith(f"{pool}-")}

    async def filled(self, pool: str, size: int, **spec: object) -> None:
        await self.calls.put_pool(pool, size=size, **spec)
        await until(lambda: self.calls.is_full(pool, size), f"{pool} has {size} ready VMs")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(postgres, template_database, tmp_path_factory) -> AsyncIterator[Faulty]:
    folder = tmp_path_factory.mktemp("faults")
    cluster = Cluster(folder, cold_boot_seconds=0.3)
    async with clone_database(postgres, template_database) as url, aiohttp.ClientSession() as session:
        service = Service(
            folder,
            "service",
            database_url=url,
            kubeconfig=folder / "kubeconfig",
            relist_seconds=600,  # what a watch misses has to be found by noticing that the watch is gone
            watch_silence_seconds=SILENCE_SECONDS,
            breaker_failures=BREAKER,
        )
        database = await asyncpg.connect(url)
        try:
            await cluster.serve()
            await service.serve()
            yield Faulty(Calls(session, service.url), Orders(session, cluster.url), database, session, cluster.url)
            assert service.is_running
        finally:
            await database.close()
            await service.close()
            await cluster.close()


@pytest_asyncio.fixture(loop_scope="module")
async def faulty(running: Faulty) -> AsyncIterator[Faulty]:
    """As it is before a test and again after it: no fault in force, no node dead, the rows without contradiction."""
    yield running
    await running.orders.lift_all()
    for node in await running.orders.dead_nodes():
        await running.orders.revive_node(node)
    assert violated(await standing(running.database)) == {}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("error", {"status": 500}),
        ("error", {"status": 429, "retry_after": 1}),
        ("webhook-hang", {}),
        ("virt-api-down", {}),
        ("reset-before", {}),
        ("reset-after", {}),
    ],
    ids=["500", "429", "webhook-hang", "virt-api-down", "lost-request", "lost-answer"],
)
async def test_a_create_that_fails_by_no_fault_of_its_own_is_tried_again_under_its_name(
    faulty, request, kind, settings
):
    pool = f"create-{request.node.callspec.id}"
    await faulty.calls.put_pool(pool, size=0)
    fault = await faulty.orders.order(kind, **CREATES, count=2, settings=settings)

    await faulty.filled(pool, 2)

    assert await faulty.orders.struck(fault) == 2
    rows = await faulty.calls.vms(pool, ended="true")
    assert {vm["state"] for vm in rows} == {"ready"}
    assert await faulty.objects(pool) == {vm["name"] for vm in rows}
    assert len(rows) == 2
    assert (await faulty.calls.pool(pool))["last_failure"] is None  # the pool is not to blame


async def test_a_create_that_hangs_is_given_up_and_tried_again(faulty):
    await faulty.calls.put_pool("hangs", size=0)
    await faulty.orders.order("hang", **CREATES, count=1)

    await faulty.filled("hangs", 2)

    assert len(await faulty.objects("hangs")) == 2


@pytest.mark.parametrize("kind", ["watch-break", "watch-expire", "watch-silent"])
async def test_a_pool_converges_though_the_watch_is_gone(faulty, kind):
    await faulty.filled(kind, 1)
    await faulty.orders.order(kind, **WATCHES, count=2)

    await faulty.filled(kind, 3)

    assert (await faulty.calls.pool(kind))["counts"]["ready"] == 3


async def test_claims_go_on_while_the_cluster_restarts_and_the_pool_refills_after_it(faulty):
    await faulty.filled("restart", 3)
    await faulty.orders.restart(down=1.0, starting=0.5)
    claims = [await faulty.calls.claim("restart") for _ in range(3)]

    await until(lambda: faulty.calls.is_full("restart", 3), "the pool refills after the restart")

    assert len({claim["vm"]["name"] for claim in claims}) == 3
    assert {claim["vm"]["name"] for claim in claims} <= await faulty.objects("restart")


async def test_a_dead_node_loses_its_vms_to_others_and_so_does_a_claim_of_the_last_moments(faulty):
    await faulty.filled("nodes", 6)
    claim = await faulty.calls.claim("nodes")
    await until(lambda: faulty.calls.is_full("nodes", 6), "the pool is full again")
    dead = claim["vm"]["node"]
    on_it = {vm["name"] for vm in await faulty.calls.vms("nodes", state="ready") if vm["node"] == dead}
    assert on_it, "the scheduler spreads VMs over the nodes"

    await faulty.orders.kill_node(dead)

    async def is_replaced() -> bool:
        ready = await faulty.calls.vms("nodes", state="ready")
        return len(ready) == 6 and all(vm["node"] != dead for vm in ready)

    await until(is_replaced, "the pool has its size on the nodes that live")

    async def is_moved() -> bool:
        held = await faulty.calls.look(claim["id"])
        return held["state"] == "bound" and held["vm"]["node"] != dead

    await until(is_moved, "the claim has another VM, on a node that lives")
    (replaced,) = (await faulty.calls.look(claim["id"]))["replacements"]
    assert f"its node {dead} is dead" in replaced["reason"]
    assert replaced["vm_id"] == claim["vm"]["id"]
    lost = {vm["name"]: vm for vm in await faulty.calls.vms("nodes", ended="true") if vm["name"] in on_it}
    # Whichever is found out first: that they are not ready any more, or that their node goes.
    assert all("no longer warm" in vm["reason"] or "going" in vm["reason"] for vm in lost.values())
    assert len(lost) == len(on_it)

    await faulty.orders.revive_node(dead)
    await until(lambda: faulty.calls.is_full("nodes", 6), "what was on the node has gone from the cluster")

    async def is_back() -> bool:
        _, node, _ = await faulty.calls.ask("GET", f"/v1/nodes/{dead}")
        return node["ready"] and not node["taints"]

    await until(is_back, "VMs may be put on the node again")


async def test_a_vm_that_never_boots_is_given_up_and_replaced(faulty):
    await faulty.orders.order("never-boots", name="never-*", count=1)

    await faulty.filled("never", 2, boot_timeout_seconds=5)

    ended = await faulty.calls.vms("never", state="deleted")
    assert [vm["reason"] for vm in ended] == ["not ready 5 s after it was created"]
    failed = [change["type"] for change in await history(faulty, ended[0]["id"])]
    assert failed[-3:] == ["vm.failed", "vm.releasing", "vm.deleted"]
    assert "not ready 5 s" in (await faulty.calls.pool("never"))["last_failure"]


async def history(faulty: Faulty, vm_id: str) -> list[dict]:
    _, vm, _ = await faulty.calls.ask("GET", f"/v1/vms/{vm_id}")
    return vm["history"]


async def test_a_template_that_always_fails_stalls_its_pool_and_resume_starts_it_again(faulty):
    fault = await faulty.orders.order("boot-fails", name="broken-*")
    await faulty.calls.put_pool("broken", size=2, max_concurrent_creates=1)

    async def is_stalled() -> bool:
        return (await faulty.calls.pool("broken"))["phase"] == "stalled"

    await until(is_stalled, "the breaker opens")
    status = await faulty.calls.pool("broken")
    assert f"{BREAKER} failures in a row" in status["reason"]
    # Which of the two is seen first depends on the order of events: the instance fails, and the VM tells of its failures.
    assert "CrashLoopBackOff" in status["reason"] or "ended in phase Failed" in status["reason"]
    assert len(await faulty.calls.vms("broken", ended="true")) == BREAKER

    await faulty.orders.lift(fault)
    await faulty.calls.resume("broken")
    await until(lambda: faulty.calls.is_full("broken", 2), "the pool fills once it may")
    assert (await faulty.calls.pool("broken"))["phase"] == "ready"


async def test_a_quota_puts_creates_off_and_the_pool_fills_by_itself_once_it_lets_it(faulty):
    await faulty.filled("quota", 2)
    fault = await faulty.orders.order("quota", resource="virtualmachines", settings={"limit": 0, "name": "compute"})
    await faulty.calls.put_pool("quota", size=4)

    async def told() -> bool:
        status = await faulty.calls.pool("quota")
        return status["phase"] == "degraded" and "exceeded quota: compute" in status["reason"]

    await until(told, "the pool says what puts its creates off")
    assert (await faulty.calls.pool("quota"))["counts"]["ready"] == 2

    await faulty.orders.lift(fault)
    await until(lambda: faulty.calls.is_full("quota", 4), "the pool fills once the quota lets it")
    status = await faulty.calls.pool("quota")
    assert (status["phase"], status["reason"], status["last_failure"]) == ("ready", None, None)


async def test_a_vm_that_dies_within_its_first_moments_is_replaced_under_its_claim(faulty):
    await faulty.filled("dies", 2)
    claim = await faulty.calls.claim("dies")
    await faulty.orders.order("guest-dies", name=claim["vm"]["name"], settings={"seconds": 0})

    async def is_replaced() -> dict | None:
        held = await faulty.calls.look(claim["id"])
        return held if held["state"] == "bound" and held["vm"]["id"] != claim["vm"]["id"] else None

    held = await until(is_replaced, "the claim has another VM")
    assert [each["vm_id"] for each in held["replacements"]] == [claim["vm"]["id"]]
    await until(lambda: faulty.calls.is_full("dies", 2), "the pool is full again")


async def test_a_warm_vm_that_falls_ill_leaves_the_queue_and_comes_back_when_it_recovers(faulty):
    await faulty.filled("ill", 1)
    [vm] = await faulty.calls.vms("ill", state="ready")
    fault = await faulty.orders.order("unready", name=vm["name"])

    async def is_claimable() -> bool:
        return (await faulty.calls.pool("ill"))["counts"]["ready"] == 1

    async def is_out() -> bool:
        return not await is_claimable()

    await until(is_out, "nothing is ready", every=0.01)
    await faulty.orders.lift(fault)
    await until(is_claimable, "one is ready again")
