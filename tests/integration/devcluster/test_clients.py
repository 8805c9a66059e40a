"""Clients as the service uses them: kubernetes_asyncio, unchanged."""

import asyncio

import pytest
from kubernetes_asyncio import client, config, watch

from app.devcluster import DevCluster, DevClusterConfig, Durations, Rule, Subject
from tests.support.devcluster_bench import machine
from tests.support.patience import PATIENCE

KIND = ("kubevirt.io", "v1", "default", "virtualmachines")
TOKENS = {
    "full": Subject("admin", (Rule(),)),
    "vms": Subject(
        "system:serviceaccount:default:app", (Rule(("kubevirt.io",), ("virtualmachines",), ("get", "list")),)
    ),
}


@pytest.fixture
async def cluster():
    configuration = DevClusterConfig(durations=Durations.for_cold_boot(0.1), tokens=TOKENS)
    async with DevCluster(configuration) as running:
        yield running


async def connect(cluster, token):
    configuration = client.Configuration()
    await config.load_kube_config_from_dict(cluster.kubeconfig(token), client_configuration=configuration)
    return client.ApiClient(configuration)


async def test_a_vm_becomes_warm_under_a_watch_and_goes_in_the_foreground(cluster):
    async with await connect(cluster, "full") as api, asyncio.timeout(PATIENCE):
        objects = client.CustomObjectsApi(api)
        listed = await objects.list_namespaced_custom_object(*KIND)
        created = await objects.create_namespaced_custom_object(*KIND, machine("x"), field_validation="Strict")
        version = listed["metadata"]["resourceVersion"]
        async with watch.Watch() as stream:
            async for event in stream.stream(
                objects.list_namespaced_custom_object, *KIND, resource_version=version, allow_watch_bookmarks=True
            ):
                status = event["object"].get("status", {})
                if status.get("ready"):
                    break
        assert status["printableStatus"] == "Running"
        options = client.V1DeleteOptions(
            propagation_policy="Foreground", preconditions=client.V1Preconditions(uid=created["metadata"]["uid"])
        )
        version = (await objects.list_namespaced_custom_object(*KIND))["metadata"]["resourceVersion"]
        await objects.delete_namespaced_custom_object(*KIND, "x", body=options)
        async with watch.Watch() as stream:
            async for event in stream.stream(objects.list_namespaced_custom_object, *KIND, resource_version=version):
                if event["type"] == "DELETED":
                    break
        assert (await client.CoreV1Api(api).list_pod_for_all_namespaces()).items == []


async def test_nodes_and_leases_read_as_their_models(cluster):
    async with await connect(cluster, "full") as api:
        nodes = await client.CoreV1Api(api).list_node()
        assert [node.metadata.name for node in nodes.items] == ["node1", "node2", "node3"]
        leases = client.CoordinationV1Api(api)
        body = client.V1Lease(metadata=client.V1ObjectMeta(name="l"), spec=client.V1LeaseSpec(holder_identity="me"))
        lease = await leases.create_namespaced_lease("default", body)
        lease.spec.holder_identity = "you"
        assert (await leases.replace_namespaced_lease("l", "default", lease)).spec.holder_identity == "you"
        with pytest.raises(client.ApiException) as refused:
            await leases.replace_namespaced_lease("l", "default", lease)
        assert refused.value.status == 409


async def test_a_token_may_do_what_its_rules_say(cluster):
    async with await connect(cluster, "vms") as api:
        objects = client.CustomObjectsApi(api)
        assert (await objects.list_namespaced_custom_object(*KIND))["items"] == []
        with pytest.raises(client.ApiException) as refused:
            await objects.create_namespaced_custom_object(*KIND, machine("x"))
        assert refused.value.status == 403
    async with await connect(cluster, "forged") as api:
        with pytest.raises(client.ApiException) as refused:
            await client.CustomObjectsApi(api).list_namespaced_custom_object(*KIND)
        assert refused.value.status == 401
