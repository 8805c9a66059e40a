"""The console log of a VM over HTTP: its end, or live; and what clients of it may not take."""

import asyncio
import re
import uuid
from contextlib import asynccontextmanager

import pytest

from app.compute.capabilities import Capability
from app.compute.gateway import Gateway
from app.errors import ClusterUnavailable
from app.services.vms import console
from tests.support.patience import PATIENCE
from tests.support.service import TEMPLATE, Refused, check, figures, listen, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Written:
    """A console gateway whose text a test writes. `broken`: how it breaks off behind the text."""

    def __init__(self, *pieces, broken=None, ends=True):
        self.pieces = list(pieces)
        self.broken = broken
        self.ends = ends
        self.opened = 0

    @asynccontextmanager
    async def open(self, **_):
        self.opened += 1

        async def pieces():
            for piece in self.pieces:
                yield piece
            if self.broken is not None:
                raise self.broken
            if not self.ends:
                await asyncio.Event().wait()

        try:
            yield pieces()
        finally:
            self.opened -= 1


@pytest.fixture
def written(server, monkeypatch):
    """Puts a gateway of the test's own in the place of the cluster's."""

    def put(*pieces, **more):
        gateway = Written(*pieces, **more)
        monkeypatch.setattr(server.services.gateway, "console", gateway)
        return gateway

    return put


async def a_vm(server, pool="consoles"):
    """The path of the console of a ready VM."""
    await server.fill(pool, size=1)
    (vm, *_) = (await server.client.get("/v1/vms", params={"pool": pool, "state": "ready"})).json()["items"]
    return f"/v1/vms/{vm['id']}/console"


async def test_the_log_is_text_that_no_browser_takes_for_anything_else(server):
    answer = await server.client.get(await a_vm(server))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "simulated" in answer.text.splitlines()[0]


async def test_lines_and_bytes_bound_it_from_its_end(server):
    path = await a_vm(server)
    whole = (await server.client.get(path)).content
    last = whole.splitlines(keepends=True)[-1]
    assert (await server.client.get(path, params={"lines": 1})).content == last
    assert (await server.client.get(path, params={"bytes": len(whole)})).content == whole
    # A line that does not fit is left out as a whole.
    assert (await server.client.get(path, params={"bytes": len(whole) - 1})).content == whole.split(b"\n", 1)[1]
    assert (await server.client.get(path, params={"bytes": len(last) + 1})).content == last


async def test_a_log_that_is_followed_comes_as_it_is_written_and_ends_with_the_vm(server):
    path = await a_vm(server, "followed")
    async with (
        listen(server.app) as client,
        client.stream("GET", path, params={"follow": "true"}, timeout=PATIENCE) as answer,
    ):
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        lines = answer.aiter_lines()
        assert "simulated" in await anext(lines)
        assert (await client.delete(path.removesuffix("/console"))).status_code == 202
        rest = [line async for line in lines]
    assert not any(line.startswith("[emberpool:") for line in rest)


async def test_what_comes_late_is_sent_at_once(server, written):
    path = await a_vm(server)
    more = asyncio.Event()
    gateway = written(b"one\n")

    async def pieces():
        yield b"one\n"
        await more.wait()
        yield b"two\n"

    @asynccontextmanager
    async def opened(**_):
        yield pieces()

    gateway.open = opened
    async with (
        listen(server.app) as client,
        client.stream("GET", path, params={"follow": "true"}, timeout=PATIENCE) as answer,
    ):
        found = answer.aiter_lines()
        assert await anext(found) == "one"
        more.set()
        assert [line async for line in found] == ["two"]


async def test_a_log_that_says_nothing_for_long_ends_and_says_why(server, written, monkeypatch):
    path = await a_vm(server)
    monkeypatch.setattr(server.services.consoles, "_idle_seconds", 0.05)
    gateway = written(b"one\n", ends=False)
    answer = await server.client.get(path, params={"follow": "true"})
    assert answer.text == "one\n\n[emberpool: nothing new for 0.05 s; ask again to go on]\n"
    assert gateway.opened == 0


async def test_a_log_that_breaks_off_says_so(server, written):
    path = await a_vm(server)
    written(b"one\n", broken=ClusterUnavailable("The cluster cannot be reached."))
    answer = await server.client.get(path, params={"follow": "true"})
    assert answer.text == "one\n\n[emberpool: the log broke off: The cluster cannot be reached.]\n"
    check(await server.client.get(path), Refused(503, "cluster-unavailable"))


async def test_a_silent_log_of_a_vm_that_is_gone_ends(server, written, monkeypatch):
    monkeypatch.setattr(console, "_LOOK_SECONDS", 0.05)
    path = await a_vm(server, "silent")
    vm = path.removesuffix("/console")
    gateway = written(ends=False)
    following = asyncio.create_task(server.client.get(path, params={"follow": "true"}))

    async def opened():
        return gateway.opened

    await until(opened)
    await server.client.delete(vm)
    async with asyncio.timeout(PATIENCE):
        assert (await following).text == ""


async def test_a_client_that_leaves_closes_the_log(server, written):
    path = await a_vm(server)
    gateway = written(b"one\n", ends=False)
    async with listen(server.app) as client:
        async with client.stream("GET", path, params={"follow": "true"}, timeout=PATIENCE) as answer:
            assert await anext(answer.aiter_lines()) == "one"

        async def closed():
            return gateway.opened == 0

        await until(closed)
    assert (await figures(server))["emberpool_console_streams"] == 0


@pytest.mark.asyncio(loop_scope="function")
async def test_a_service_that_stops_ends_its_logs(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as own:
        path = await a_vm(own)
        gateway = Written(b"one\n", ends=False)
        own.services.gateway.console = gateway
        following = asyncio.create_task(own.client.get(path, params={"follow": "true"}))

        async def opened():
            return gateway.opened

        await until(opened)
        own.services.stopping.set()
        async with asyncio.timeout(PATIENCE):
            assert (await following).text.startswith("one\n")


async def test_there_are_only_so_many_at_the_same_time(server, written, monkeypatch):
    path = await a_vm(server)
    gateway = written(b"one\n", ends=False)
    monkeypatch.setattr(server.services.consoles, "_most", 1)
    async with listen(server.app) as client:
        async with client.stream("GET", path, params={"follow": "true"}, timeout=PATIENCE) as answer:
            assert await anext(answer.aiter_lines()) == "one"
            for query in ({"follow": "true"}, {}):
                refused = await server.client.get(path, params=query)
                check(refused, Refused(503, "too-many-streams", says="1 console logs"))
                assert int(refused.headers["retry-after"]) > 0

        async def closed():
            return gateway.opened == 0

        await until(closed)
    gateway.ends = True
    assert (await server.client.get(path)).text == "one\n"


@pytest.mark.parametrize("follow", ["false", "true"])
async def test_a_vm_without_a_log_says_why(server, follow):
    query = {"follow": follow}
    unknown = await server.client.get(f"/v1/vms/{uuid.uuid4()}/console", params=query)
    check(unknown, Refused(404, "vm-not-found"))

    path = await a_vm(server, f"ending-{follow}")
    vm = path.removesuffix("/console")
    await server.client.delete(vm)

    async def gone():
        return (await server.client.get(vm)).json()["state"] == "deleted"

    await until(gone)
    ended = check(await server.client.get(path, params=query), Refused(409, "no-console-log"))
    assert re.fullmatch(r"VM ending-\S+ is deleted, and its console log went with it", ended["detail"])


async def test_a_vm_whose_template_logs_no_console_says_how_to_turn_it_on(server):
    domain = {"devices": {"logSerialConsole": False}, "memory": {"guest": "64Mi"}}
    volumes = [{"name": "root", "containerDisk": {"image": TEMPLATE["image"]}}]
    await server.fill("unlogged", size=1, template={"spec": {"domain": domain, "volumes": volumes}})
    (vm,) = (await server.client.get("/v1/vms", params={"pool": "unlogged"})).json()["items"]
    answer = await server.client.get(f"/v1/vms/{vm['id']}/console")
    check(answer, Refused(409, "no-console-log", says="Set domain.devices.logSerialConsole to true in the template"))


@pytest.mark.asyncio(loop_scope="function")
async def test_a_vm_that_has_not_started_has_no_log_yet(database_url, dev_cluster, tmp_path):
    dev_cluster.faults.order(kind="image-error")
    async with serve(database_url, dev_cluster, tmp_path) as own:
        await own.put("late", size=1)

        async def waiting():
            found = (await own.client.get("/v1/vms", params={"pool": "late"})).json()["items"]
            return found and found[0]["state"] == "booting" and found[0]

        vm = await until(waiting)
        answer = await own.client.get(f"/v1/vms/{vm['id']}/console")
        check(answer, Refused(409, "no-console-log", says="not started yet"))


async def test_a_runtime_that_keeps_no_logs_says_so(server, monkeypatch):
    path = await a_vm(server)
    gateway: Gateway = server.services.gateway
    before = gateway.unavailable

    async def unavailable(capability):
        return "this one has no consoles" if capability is Capability.CONSOLE_LOGS else await before(capability)

    monkeypatch.setattr(gateway, "unavailable", unavailable)
    check(await server.client.get(path), Refused(409, "no-console-log", says="this one has no consoles"))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"lines": 0}, "lines"),
        ({"lines": 10_001}, "lines"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2**21}, "bytes"),
        ({"follow": "perhaps"}, "follow"),
        ({"follow": "true", "bytes": 10}, "bytes"),
        ({"tail": 3}, "tail"),
    ],
)
async def test_a_wrong_query_is_refused(server, query, field):
    path = await a_vm(server)
    check(await server.client.get(path, params=query), Refused(422, "invalid-request", field))


async def test_the_head_alone_is_answered_and_closes_the_log(server, written):
    path = await a_vm(server)
    gateway = written(b"one\n", ends=False)
    async with asyncio.timeout(PATIENCE):
        answer = await server.client.head(path, params={"follow": "true"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert gateway.opened == 0
