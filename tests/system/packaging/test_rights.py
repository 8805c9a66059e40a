"""The roles of docker/kubernetes.yaml against the client itself: each is enough, and none of it is too much."""

import ast
import inspect
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import get_origin

import pytest

from app.compute.capabilities import Capability
from app.compute.console import ConsoleGateway
from app.compute.gateway import Gateway
from app.compute.identities import IdentityGateway
from app.compute.kubevirt.gateway import connect
from app.compute.nodes import NodeChanged, NodeEvent, NodesListed
from app.compute.ownership import OwnershipGateway
from app.compute.preloads import PreloadGateway, PreloadOrder
from app.compute.snapshots import SnapshotGateway
from app.compute.vm_pools import VmPoolGateway, VmPoolOrder
from app.compute.vms import Broken, Changed
from app.config import Settings
from app.devcluster import DevCluster, DevClusterConfig, Durations
from app.domain.observation import Observation, WarmWhen
from app.domain.preloads import PreloadSpec
from app.domain.templates import Marks
from app.errors import ClusterForbidden
from app.ids import new_id, vm_name, vm_pool_name
from app.reconcilers.installation import watch
from tests.support import preload_work, snapshot_work, vm_pool_work
from tests.support.checkout import ROOT
from tests.support.manifest_rights import API_RIGHTS, CLUSTER_RIGHTS, NAMESPACE, WORKER_RIGHTS, Right, account
from tests.support.preload_work import bring_near, keep_as_snapshots
from tests.support.rows import eventually
from tests.support.snapshot_work import take_and_start
from tests.support.vm_pool_work import keep_vm_pools

TOKEN = "the-service-account"
TEMPLATE = {"image": "registry.example/fedora:42", "cpu": 1, "memory": "1Gi"}
PARTS = {"console", "identities", "ownership", "preloads", "snapshots", "vm_pools", "pools"}
GATEWAYS = (
    Gateway,
    ConsoleGateway,
    IdentityGateway,
    OwnershipGateway,
    PreloadGateway,
    SnapshotGateway,
    VmPoolGateway,
)


async def ask(gateway: Gateway, *, vm: Observation, vm_pool: str) -> None:
    """Everything that the API asks of a cluster, which has a VM and a VirtualMachinePool. Raises ClusterForbidden."""
    template = gateway.expand(TEMPLATE, WarmWhen.AGENT)
    await gateway.check(template)
    assert await gateway.unavailable(Capability.VM_POOLS) is None
    pool_id = new_id()
    name = vm_pool_name("web", pool_id, 1)
    await gateway.vm_pools.check(VmPoolOrder(name, "web", pool_id, template.spec, template.fingerprint))
    assert await gateway.vm_pools.find(vm_pool) is not None
    assert await gateway.snapshots.source(vm.name) is not None
    assert vm.vmi_uid is not None
    async with gateway.console.open(vm=vm.name, instance=vm.vmi_uid, lines=1, follow=False) as pieces:
        assert [piece async for piece in pieces]
    assert await gateway.ownership.read_lease() is None
    for body in (preload_work.HTTP, preload_work.NIGHTLY, preload_work.IMAGE):
        await gateway.preloads.check(PreloadOrder(new_id(), "fedora", 1, PreloadSpec.model_validate(body)))


async def work(gateway: Gateway) -> None:
    """Everything that a worker asks of a cluster. Raises ClusterForbidden where a right is missing."""
    assert await gateway.unavailable(Capability.VM_POOLS) is None
    template = gateway.expand(TEMPLATE, WarmWhen.AGENT)
    await gateway.list_vms()
    vm_id = new_id()
    vm = {"name": vm_name("small", vm_id), "pool": "small", "vm_id": str(vm_id), "spec": template.spec}
    async with aclosing(gateway.observe()) as events:
        created = await gateway.create_vm(**vm)
        async for event in events:
            if isinstance(event, Broken):
                raise ClusterForbidden(event.reason)
            if isinstance(event, Changed) and event.observation.ready:
                created = event.observation
                break
    assert str(vm_id) in await gateway.pod_times([str(vm_id)])
    assert await gateway.disk_failures([str(vm_id)]) == {}
    assert (await gateway.create_vm(**vm)).uid == created.uid  # the answer was lost, and the call is made again
    claim = {"claim_id": str(new_id()), "given": {}, "marks": Marks({"app": "web"}), "instance": created.vmi_uid}
    await gateway.label_claim(name=created.name, uid=created.uid, **claim)
    await keep_installation(gateway.ownership, created)
    await gateway.delete_vm(name=created.name, uid=created.uid)
    await identify(gateway.identities)
    await bring_near(gateway.preloads)
    await take_and_start(gateway)
    await keep_vm_pools(gateway)


async def identify(identities: IdentityGateway) -> None:
    identity = {"name": "small-1", "pool": "small", "vm_id": str(new_id())}
    made = await identities.make(**identity, files={"token": "first"})
    assert await identities.make(**identity, files={"token": "second"}) == made  # the answer was lost
    assert made.token == "first"
    await identities.remove(name="small-1", uid=made.uid)
    await identities.remove(name="small-1", uid=None)


async def keep_installation(ownership: OwnershipGateway, vm: Observation) -> None:
    ownership.identify(str(new_id()))
    for sequence in (1, 2):
        before = await ownership.read_lease()
        await ownership.write_lease(before, sequence=sequence, writer=str(new_id()), replica="worker-1")
    await ownership.sign(name=vm.name, uid=vm.uid)
    assert [found.name for found in await ownership.survey()] == [vm.name]


@asynccontextmanager
async def reached(folder: Path, rights: Iterable[Right]) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """A cluster, seen with these rights, and by a worker."""
    tokens = {TOKEN: account(TOKEN, rights), "worker": account("worker", WORKER_RIGHTS)}
    config = DevClusterConfig(durations=Durations.for_cold_boot(0.2), namespaces=("default", NAMESPACE), tokens=tokens)
    async with DevCluster(config) as cluster:
        keep_as_snapshots(cluster, "fast-ssd")
        gateways = []
        for token in tokens:
            kubeconfig = folder / token
            kubeconfig.write_text(json.dumps(cluster.kubeconfig(token)), encoding="utf-8")
            gateways.append(await connect(Settings(kubeconfig=kubeconfig, namespace=NAMESPACE, forbidden_seconds=0)))
        try:
            yield gateways[0], gateways[1]
        finally:
            for gateway in gateways:
                await gateway.close()


async def work_with(rights: list[Right], folder: Path) -> None:
    async with reached(folder, rights) as (gateway, _):
        await work(gateway)


async def ask_with(rights: list[Right], folder: Path) -> None:
    async with reached(folder, rights) as (gateway, worker):
        template, pool_id = worker.expand(TEMPLATE, WarmWhen.AGENT), new_id()
        name = vm_pool_name("web", pool_id, 1)
        order = VmPoolOrder(name, "web", pool_id, template.spec, template.fingerprint)
        await worker.vm_pools.make(order, replicas=1, paused=False)

        async def member() -> Observation | None:
            found = await worker.vm_pools.find(name)
            members = found.members if found is not None else ()
            seen = (await worker.list_vms()).observations
            return next((each for each in seen if each.name in members and each.ready), None)

        await ask(gateway, vm=await eventually(member), vm_pool=name)


async def test_the_workers_role_is_enough(tmp_path):
    await work_with(WORKER_RIGHTS, tmp_path)


async def test_the_apis_role_is_enough(tmp_path):
    await ask_with(API_RIGHTS, tmp_path)


@pytest.mark.parametrize("missing", WORKER_RIGHTS, ids=" ".join)
async def test_without_any_one_right_of_the_workers_role_something_fails(tmp_path, missing):
    _, resource, verb = missing
    with pytest.raises(ClusterForbidden, match=f'cannot {verb} resource "{resource}"'):
        await work_with([right for right in WORKER_RIGHTS if right != missing], tmp_path)


@pytest.mark.parametrize("missing", API_RIGHTS, ids=" ".join)
async def test_without_any_one_right_of_the_apis_role_something_fails(tmp_path, missing):
    _, resource, verb = missing
    with pytest.raises(ClusterForbidden, match=f'cannot {verb} resource "{resource}"'):
        await ask_with([right for right in API_RIGHTS if right != missing], tmp_path)


def calls_to_the_cluster(*sources: str) -> set[str]:
    """The methods of gateways that these sources call, those of a part with its name: `check`, `vm_pools.check`."""
    calling = {name for each in GATEWAYS for name, value in vars(each).items() if is_call(value)}
    found = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Call):
            *_, owner, name = ("", *ast.unparse(node.func).split("."))
            if name in calling and owner in PARTS | {"gateway", "_gateway", "_cluster"}:
                found.add(f"{owner}.{name}" if owner in PARTS else name)
    return found


def is_call(value: object) -> bool:
    """Whether a member of a gateway asks the cluster once it is awaited or entered."""
    returned = getattr(value, "__annotations__", {}).get("return")
    return inspect.iscoroutinefunction(value) or get_origin(returned) is AbstractAsyncContextManager


def sources_of(*packages: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for each in packages for path in (ROOT / "app" / each).rglob("*.py")]


def test_what_the_api_calls_is_what_its_role_was_tried_with():
    called = calls_to_the_cluster(*sources_of("api", "services", "lifecycle"), inspect.getsource(watch))
    assert called >= {"check", "vm_pools.find", "snapshots.source"}
    assert called == calls_to_the_cluster(inspect.getsource(ask))


def test_what_the_workers_call_is_what_their_role_was_tried_with():
    def names(*sources: str) -> set[str]:
        return {each.rpartition(".")[2] for each in calls_to_the_cluster(*sources)}

    called = names(*sources_of("reconcilers"))
    assert called >= {"create_vm", "find_present", "detach"}
    assert called <= names(
        *map(inspect.getsource, (work, identify, keep_installation, preload_work, snapshot_work, vm_pool_work))
    )


async def watch_nodes(rights: list[Right], folder: Path) -> AsyncIterator[NodeEvent]:
    """What is seen of the nodes of a cluster, one of which changes once it has been listed."""
    tokens = {TOKEN: account(TOKEN, (), in_cluster=rights)}
    config = DevClusterConfig(durations=Durations.for_cold_boot(0.2), tokens=tokens, nodes=1)
    async with DevCluster(config) as cluster:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(cluster.kubeconfig(TOKEN)), encoding="utf-8")
        gateway = await connect(Settings(kubeconfig=kubeconfig, forbidden_seconds=0))
        try:
            async with aclosing(gateway.observe_nodes()) as events:
                async for event in events:
                    yield event
                    if isinstance(event, NodesListed):
                        cluster.change_node("node1", {"cpu": 64})
        finally:
            await gateway.close()


async def test_the_cluster_role_is_enough(tmp_path):
    async with aclosing(watch_nodes(CLUSTER_RIGHTS, tmp_path)) as events:
        listed = await anext(events)
        assert isinstance(listed, NodesListed)
        assert listed.pods_hidden is None
        changed = await anext(events)
        assert isinstance(changed, NodeChanged)
        assert changed.node.capacity["cpu"] == 64_000


@pytest.mark.parametrize("missing", CLUSTER_RIGHTS, ids=" ".join)
async def test_without_any_one_right_of_the_cluster_role_less_is_seen(tmp_path, missing):
    _, resource, verb = missing
    async with aclosing(watch_nodes([right for right in CLUSTER_RIGHTS if right != missing], tmp_path)) as events:
        async for event in events:
            told = event.reason if isinstance(event, Broken) else getattr(event, "pods_hidden", None)
            if told is not None:
                assert f'cannot {verb} resource "{resource}"' in told
                return
