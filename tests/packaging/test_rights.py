"""The Role of docker/kubernetes.yaml against the client itself: it is enough, and none of it is too much."""

import json
from contextlib import aclosing
from pathlib import Path

import pytest
import yaml

from app.cluster.gateway import Broken, Changed, Gateway, Listed
from app.cluster.kubevirt import connect
from app.config import Settings
from app.devcluster import DevCluster, DevClusterConfig, Durations, Rule, Subject
from app.domain.observation import WarmWhen
from app.errors import ClusterForbidden
from app.ids import new_id, vm_name
from tests.packaging.checkout import ROOT
from tests.packaging.preload_work import bring_near, keep_as_snapshots
from tests.packaging.snapshot_work import take_and_start

NAMESPACE = "emberpool"
TOKEN = "the-service-account"
DOCUMENTS = yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8"))
RIGHTS = [
    (group, resource, verb)
    for document in DOCUMENTS
    if document["kind"] == "Role"
    for rule in document["rules"]
    for group in rule["apiGroups"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


async def work(gateway: Gateway) -> None:
    """Everything that the service asks of a cluster. Raises ClusterForbidden where a right is missing."""
    template = gateway.expand({"image": "registry.example/fedora:42", "cpu": 1, "memory": "1Gi"}, WarmWhen.AGENT)
    await gateway.check(template)
    await gateway.list_vms()
    vm_id = new_id()
    vm = {"name": vm_name("small", vm_id), "pool": "small", "vm_id": str(vm_id), "template": template}
    async with aclosing(gateway.observe()) as events:
        assert isinstance(await anext(events), Listed)
        created = await gateway.create_vm(**vm)
        async for event in events:
            if isinstance(event, Broken):
                raise ClusterForbidden(event.reason)
            if isinstance(event, Changed) and event.observation.ready:
                break
    assert str(vm_id) in await gateway.pod_times([str(vm_id)])
    assert (await gateway.create_vm(**vm)).uid == created.uid  # the answer was lost, and the call is made again
    await gateway.label_claim(name=created.name, uid=created.uid, claim_id=str(new_id()))
    await gateway.delete_vm(name=created.name, uid=created.uid)
    await bring_near(gateway.preloads)
    await take_and_start(gateway)


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
