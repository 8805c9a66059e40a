"""The roles of docker/kubernetes.yaml against the client itself: they are enough, and none of it is too much."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import yaml

from app.compute.gateway import Gateway
from app.compute.kubevirt.gateway import connect
from app.compute.nodes import NodeChanged, NodeEvent, NodesListed
from app.compute.vms import Broken, Changed, Listed
from app.config import Settings
from app.devcluster import DevCluster, DevClusterConfig, Durations, Rule, Subject
from app.domain.observation import WarmWhen
from app.domain.templates import Marks
from app.errors import ClusterForbidden
from app.ids import new_id, vm_name
from tests.support.checkout import ROOT
from tests.support.preload_work import bring_near, keep_as_snapshots
from tests.support.snapshot_work import take_and_start
from tests.support.vm_pool_work import keep_vm_pools

NAMESPACE = "emberpool"
TOKEN = "the-service-account"
DOCUMENTS = list(yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8")))


def rights_of(kind: str) -> list[tuple[str, str, str]]:
    return [
        (group, resource, verb)
        for document in DOCUMENTS
        if document["kind"] == kind
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


RIGHTS = rights_of("Role")
CLUSTER_RIGHTS = rights_of("ClusterRole")


async def work(gateway: Gateway) -> None:
    """Everything that the service asks of a cluster. Raises ClusterForbidden where a right is missing."""
    template = gateway.expand({"image": "registry.example/fedora:42", "cpu": 1, "memory": "1Gi"}, WarmWhen.AGENT)
    await gateway.check(template)
    await gateway.list_vms()
    vm_id = new_id()
    vm = {"name": vm_name("small", vm_id), "pool": "small", "vm_id": str(vm_id), "spec": template.spec}
    async with aclosing(gateway.observe()) as events:
        assert isinstance(await anext(events), Listed)
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
    await gateway.delete_vm(name=created.name, uid=created.uid)
    await bring_near(gateway.preloads)
    await take_and_start(gateway)
    await keep_vm_pools(gateway)


async def work_with(rights: list[tuple[str, str, str]], folder: Path) -> None:
    rules = tuple(Rule((group,), (resource,), (verb,), NAMESPACE) for group, resource, verb in rights)
    config = DevClusterConfig(
        durations=Durations.for_cold_boot(0.2),
        namespaces=("default", NAMESPACE),
        tokens={TOKEN: Subject(f"system:serviceaccount:{NAMESPACE}:emberpool", rules)},
    )
    async with DevCluster(config) as cluster:
        keep_as_snapshots(cluster, "fast-ssd")
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(cluster.kubeconfig(TOKEN)), encoding="utf-8")
        gateway = await connect(Settings(kubeconfig=kubeconfig, namespace=NAMESPACE))
        try:
            await work(gateway)
        finally:
            await gateway.close()


async def test_the_role_is_enough(tmp_path):
    await work_with(RIGHTS, tmp_path)


@pytest.mark.parametrize("missing", RIGHTS, ids=" ".join)
async def test_without_any_one_right_of_it_something_fails(tmp_path, missing):
    _, resource, verb = missing
    with pytest.raises(ClusterForbidden, match=f'cannot {verb} resource "{resource}"'):
        await work_with([right for right in RIGHTS if right != missing], tmp_path)


async def watch_nodes(rights: list[tuple[str, str, str]], folder: Path) -> AsyncIterator[NodeEvent]:
    """What is seen of the nodes of a cluster, one of which changes once it has been listed."""
    rules = tuple(Rule((group,), (resource,), (verb,)) for group, resource, verb in rights)
    config = DevClusterConfig(
        durations=Durations.for_cold_boot(0.2), tokens={TOKEN: Subject("emberpool", rules)}, nodes=1
    )
    async with DevCluster(config) as cluster:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(cluster.kubeconfig(TOKEN)), encoding="utf-8")
        gateway = await connect(Settings(kubeconfig=kubeconfig))
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
