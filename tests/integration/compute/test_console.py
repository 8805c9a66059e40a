"""The console log of a VM, from a cluster that keeps it, and from clusters that do something else."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from app.compute.kubevirt import console
from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.connection import configure
from app.compute.kubevirt.console import KubeVirtConsole
from app.domain.observation import WarmWhen
from app.errors import ClusterForbidden, ClusterUnavailable, NoConsoleLog
from app.ids import new_id, vm_name
from tests.support.fake_api_server import ApiServer, fails, says, serving
from tests.support.patience import PATIENCE
from tests.support.rows import eventually

TEMPLATE = {"image": "registry.example/fedora:42", "cpu": 1, "memory": "1Gi"}
PODS = "/api/v1/namespaces/vms/pods"


def pod(name="launcher", *, phase="Running", created="2026-01-01T00:00:00Z", **spec):
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"containers": [{"name": "compute"}], **spec},
        "status": {"phase": phase},
    }


SIDECAR = {"initContainers": [{"name": "guest-console-log"}]}
ORDINARY = {"containers": [{"name": "compute"}, {"name": "guest-console-log"}]}


def pods(*items):
    return says({"items": list(items), "metadata": {"resourceVersion": "5"}})


def writes(*pieces, after=None):
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        for piece in pieces:
            if not response.prepared:
                await response.prepare(request)
            await response.write(piece)
        if after is not None:
            await after(request)
        return response

    return answer


async def hang(_request):
    await asyncio.Event().wait()


async def cut(request):
    request.transport.abort()


@asynccontextmanager
async def reading(server, folder, **settings):
    async with serving(server, folder, **settings) as made:
        client = KubeVirtClient(made, await configure(made))
        try:
            yield KubeVirtConsole(client)
        finally:
            await client.close()


async def text_of(consoles, *, follow=False, lines=10):
    async with consoles.open(vm="web-1", instance="the-uid", lines=lines, follow=follow) as pieces:
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("containers", [SIDECAR, ORDINARY], ids=["a sidecar", "an ordinary container"])
@pytest.mark.parametrize("follow", [False, True])
async def test_the_log_is_that_of_the_launchers_container(tmp_path, containers, follow):
    server = ApiServer(pods(pod(**containers)), writes(b"one\n", b"two\n"))
    async with reading(server, tmp_path) as consoles:
        assert await text_of(consoles, follow=follow) == b"one\ntwo\n"
    asked, log = server.requests
    assert asked[2]["labelSelector"] == "kubevirt.io/created-by=the-uid"
    assert log[:2] == ("GET", f"{PODS}/launcher/log")
    assert log[2] == {"container": "guest-console-log", "tailLines": "10", **({"follow": "true"} if follow else {})}


async def test_after_a_migration_the_log_is_that_of_the_newest_launcher_that_runs(tmp_path):
    found = [
        pod("old", created="2026-01-01T00:00:00Z", **SIDECAR),
        pod("new", created="2026-01-01T00:05:00Z", **SIDECAR),
        pod("next", created="2026-01-01T00:09:00Z", phase="Pending", **SIDECAR),
    ]
    server = ApiServer(pods(*found), writes(b"one\n"))
    async with reading(server, tmp_path) as consoles:
        await text_of(consoles)
    assert server.requests[1][1] == f"{PODS}/new/log"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([], "it has no launcher pod"),
        ([pod()], "Set domain.devices.logSerialConsole to true in the template"),
        ([pod(phase="Pending", **SIDECAR)], "has not started yet"),
    ],
    ids=["no pod", "no container", "not started"],
)
async def test_why_there_is_no_log_is_told(tmp_path, found, told):
    async with reading(ApiServer(pods(*found)), tmp_path) as consoles:
        with pytest.raises(NoConsoleLog, match=told) as raised:
            await text_of(consoles)
    assert raised.value.detail.startswith("VM web-1 has no console log: ")


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        fails(
            'container "guest-console-log" in pod "launcher" is waiting to start: PodInitializing', 400, "BadRequest"
        ),
        fails('pods "launcher" not found', 404, "NotFound", kind="pods"),
    ],
    ids=["waiting", "gone meanwhile"],
)
async def test_what_the_kubelet_has_no_log_of_has_none(tmp_path, answer, follow):
    async with reading(ApiServer(pods(pod(**SIDECAR)), answer), tmp_path) as consoles:
        with pytest.raises(NoConsoleLog, match="launcher"):
            await text_of(consoles, follow=follow)


async def test_a_silent_console_is_followed_although_its_log_has_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_REFUSAL_SECONDS", 0.01)
    speak = asyncio.Event()

    async def late(request):
        await speak.wait()
        return await writes(b"at last\n")(request)

    server = ApiServer(pods(pod(**SIDECAR)), late)
    async with (
        reading(server, tmp_path, cluster_timeout_seconds=0.05) as consoles,
        consoles.open(vm="web-1", instance="the-uid", lines=10, follow=True) as pieces,
    ):
        speak.set()
        async with asyncio.timeout(PATIENCE):
            assert [piece async for piece in pieces] == [b"at last\n"]


async def test_a_log_that_is_not_followed_must_come_in_time(tmp_path):
    server = ApiServer(pods(pod(**SIDECAR)), hang)
    async with reading(server, tmp_path, cluster_timeout_seconds=0.05) as consoles:
        with pytest.raises(ClusterUnavailable, match="read the log of pod launcher"):
            await text_of(consoles)


async def test_a_log_that_breaks_off_is_an_outage(tmp_path):
    server = ApiServer(pods(pod(**SIDECAR)), writes(b"one\n", after=cut))
    async with (
        reading(server, tmp_path) as consoles,
        consoles.open(vm="web-1", instance="the-uid", lines=10, follow=True) as pieces,
    ):
        with pytest.raises(ClusterUnavailable, match="read the console log of web-1"):
            assert [piece async for piece in pieces]


async def test_without_the_right_the_subresource_is_named(tmp_path):
    refused = fails('pods "launcher" is forbidden: User "api" cannot get resource "pods/log"', 403, "Forbidden")
    review = says({"status": {"allowed": False}}, 201)
    server = ApiServer(pods(pod(**SIDECAR)), refused, review)
    async with reading(server, tmp_path, forbidden_seconds=0) as consoles:
        with pytest.raises(ClusterForbidden, match='cannot get resource "pods/log"'):
            await text_of(consoles)
    asked = server.requests[2][4]["spec"]["resourceAttributes"]
    assert (asked["verb"], asked["resource"], asked["subresource"]) == ("get", "pods", "log")


async def test_whoever_leaves_a_silent_log_closes_its_connection(tmp_path):
    served = []

    async def silent(request):
        served.append(request)
        return await writes(b"one\n", after=hang)(request)

    async def left():
        return served[0].transport is None

    server = ApiServer(pods(pod(**SIDECAR)), silent)
    async with reading(server, tmp_path) as consoles:
        async with consoles.open(vm="web-1", instance="the-uid", lines=10, follow=True) as pieces:
            assert await anext(pieces) == b"one\n"
        await eventually(left)


async def test_the_dev_cluster_keeps_the_log_of_a_vm(gateway):
    vm_id = new_id()
    spec = gateway.expand(TEMPLATE, WarmWhen.AGENT).spec
    made = await gateway.create_vm(name=vm_name("web", vm_id), pool="web", vm_id=str(vm_id), spec=spec)

    async def booted():
        listed = (await gateway.list_vms()).observations
        return listed[0] if listed and listed[0].agent_connected else None

    vm = await eventually(booted)
    async with gateway.console.open(vm=made.name, instance=vm.vmi_uid, lines=100, follow=True) as pieces:
        assert b"simulated" in await anext(pieces)
        await gateway.delete_vm(name=made.name, uid=made.uid)
        async with asyncio.timeout(PATIENCE):
            assert [piece async for piece in pieces] == []
