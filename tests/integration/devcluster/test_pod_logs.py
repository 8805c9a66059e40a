"""`pods/log`: the console of a guest, as a kubelet serves it."""

import asyncio

import pytest

from tests.support.devcluster_bench import INSTANCES, MACHINES, machine
from tests.support.patience import PATIENCE

PODS = "/api/v1/namespaces/default/pods"
CONSOLE = {"container": "guest-console-log"}


async def log_of(bench, name="x"):
    """The path of the log of its launcher."""
    pods = (await bench.get(PODS))["items"]
    (pod,) = [each for each in pods if each["metadata"]["annotations"]["kubevirt.io/domain"] == name]
    return f"{PODS}/{pod['metadata']['name']}/log"


async def phase_of(bench, name):
    status, body = await bench.call("GET", f"{INSTANCES}/{name}")
    return body["status"].get("phase") if status == 200 else None


async def read(bench, path, **query):
    async with bench.session.get(bench.cluster.url + path, params={**CONSOLE, **query}) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def test_the_console_of_a_booted_guest_is_its_launchers_log(bench):
    await bench.boot(machine("x"))
    path = await log_of(bench)

    status, kind, text = await read(bench, path)

    assert (status, kind) == (200, "text/plain")
    assert "simulated" in text.splitlines()[0]
    assert "agent is connected" in text.splitlines()[-1]
    assert (await read(bench, path, tailLines="1"))[2] == text.splitlines(keepends=True)[-1]
    assert (await read(bench, path, tailLines="0"))[2] == ""


async def test_a_log_that_is_followed_goes_on_as_the_guest_boots_and_ends_with_it(bench):
    await bench.create(machine("x"))
    while await phase_of(bench, "x") != "Running":  # then its guest boots
        await bench.clock.advance(1)
    path = await log_of(bench)
    async with bench.session.get(bench.cluster.url + path, params={**CONSOLE, "follow": "true"}) as answer:
        assert b"simulated" in await answer.content.readline()
        await bench.clock.advance(45)
        await bench.call("DELETE", f"{MACHINES}/x")
        await bench.clock.advance(60)
        async with asyncio.timeout(PATIENCE):
            rest = await answer.text()
    assert "agent is connected" in rest


async def test_a_container_that_has_not_started_has_no_log(bench):
    await bench.create(machine("x"))
    await bench.clock.advance(2)
    status, body = await bench.call("GET", f"{await log_of(bench)}?container=guest-console-log")
    assert status == 400
    assert "is waiting to start: PodInitializing" in body["message"]


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("", 400, "a container name must be specified for pod"),
        ("container=nginx", 400, "container nginx is not valid for pod"),
        ("container=guest-console-log&tailLines=some", 422, "tailLines: Invalid value: some"),
    ],
)
async def test_a_wrong_query_is_refused(bench, query, status, told):
    await bench.boot(machine("x"))
    found, body = await bench.call("GET", f"{await log_of(bench)}?{query}")
    assert (found, told in body["message"]) == (status, True)


async def test_a_vm_that_logs_no_console_has_no_such_container(bench):
    unlogged = machine("x")["spec"]["template"]["spec"]["domain"]["devices"] | {"logSerialConsole": False}
    await bench.boot(machine("x", devices=unlogged))
    status, body = await bench.call("GET", f"{await log_of(bench)}?container=guest-console-log")
    assert (status, "container guest-console-log is not valid for pod" in body["message"]) == (400, True)


async def test_a_pod_that_does_not_exist_has_no_log(bench):
    status, body = await bench.call("GET", f"{PODS}/nobody/log?container=compute")
    assert (status, body["message"]) == (404, 'pods "nobody" not found')


async def test_the_server_ends_the_logs_that_are_followed_when_it_stops(bench):
    await bench.boot(machine("x"))
    path = await log_of(bench)
    async with bench.session.get(bench.cluster.url + path, params={**CONSOLE, "follow": "true"}) as answer:
        await answer.content.readline()
        bench.cluster.server.closing.set()
        async with asyncio.timeout(PATIENCE):
            await answer.content.read()
