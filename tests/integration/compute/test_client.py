"""What goes over the wire, and what becomes of answers that a well-behaved cluster would not give."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import yaml
from aiohttp import web

from app.compute.kubevirt.client import AlreadyExists, KubeVirtClient
from app.compute.kubevirt.connection import configure
from app.compute.kubevirt.kinds import DATA_VOLUMES, VMS
from app.config import Settings
from app.errors import ClusterError, ClusterForbidden, ClusterNotFound, ClusterRefused, ClusterUnavailable, WatchExpired
from tests.support.fake_api_server import ApiServer, fails, kubeconfig, says, says_text, serving
from tests.support.kubevirt_documents import vm
from tests.support.patience import PATIENCE

PATH = "/apis/kubevirt.io/v1/namespaces/vms/virtualmachines"
SELECTOR = "app.kubernetes.io/managed-by=emberpool,emberpool.io/instance=blue"
BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}


@asynccontextmanager
async def talking_to(server, folder, **settings):
    async with serving(server, folder, **settings) as made:
        client = KubeVirtClient(made, await configure(made))
        try:
            yield client
        finally:
            await client.close()


def streams(*parts, after=None, status=200):
    """A watch's answer: events (or raw bytes), then the end, or whatever `after` does with the request."""

    async def answer(request):
        response = web.StreamResponse(status=status)
        response.enable_chunked_encoding()
        await response.prepare(request)
        for part in parts:
            await response.write(part if isinstance(part, bytes) else json.dumps(part).encode() + b"\n")
        if after is not None:
            await after(request)
        return response

    return answer


async def cut(request):
    request.transport.abort()


async def hang(_request):
    await asyncio.Event().wait()


async def collect(watch):
    async with watch as batches:
        return [event async for batch in batches for event in batch]


async def test_writes_are_validated_strictly_and_carry_our_name(tmp_path):
    server = ApiServer(says(vm("a"), 201), says(vm("a"), 201), says(vm("a")))
    async with talking_to(server, tmp_path) as client:
        await client.create(VMS, vm("a"))
        await client.create(VMS, vm("a"), dry_run=True)
        await client.merge(VMS, "a", "uid-1", {"metadata": {"labels": {"x": "y"}}})
        await client.delete(VMS, "a", "the-uid")
    create, dry_run, merge, delete = server.requests
    strict = {"fieldValidation": "Strict", "fieldManager": "emberpool"}
    assert create[:3] == ("POST", PATH, strict)
    assert create[4] == vm("a")
    assert dry_run[:3] == ("POST", PATH, {**strict, "dryRun": "All"})
    assert merge[:3] == ("PATCH", f"{PATH}/a", strict)
    assert merge[3]["Content-Type"] == "application/merge-patch+json"
    assert merge[4] == {"metadata": {"uid": "uid-1", "labels": {"x": "y"}}}
    assert delete[:2] == ("DELETE", f"{PATH}/a")
    assert delete[4]["propagationPolicy"] == "Foreground"
    assert delete[4]["preconditions"] == {"uid": "the-uid"}
    assert {request[3]["Authorization"] for request in server.requests} == {"Bearer a-token"}


async def test_pages_are_put_together(tmp_path):
    server = ApiServer(
        says({"items": [vm("a")], "metadata": {"continue": "next", "resourceVersion": "5"}}),
        says({"items": [vm("b")], "metadata": {"continue": "", "resourceVersion": "5"}}),
    )
    async with talking_to(server, tmp_path) as client:
        items, version = await client.list_all(VMS)
    assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    assert version == "5"
    assert server.requests[0][2] == {"labelSelector": SELECTOR, "limit": "250"}
    assert server.requests[1][2] == {"labelSelector": SELECTOR, "limit": "250", "continue": "next"}


async def test_a_list_of_versions_has_no_spec_and_fewer_pages(tmp_path):
    server = ApiServer(says({"items": [vm("a")], "metadata": {"resourceVersion": "5"}}))
    async with talking_to(server, tmp_path) as client:
        (page,) = [page async for page in client.metadata(VMS)]
    assert page.version == "5"
    _, _, query, headers, _ = server.requests[0]
    assert query == {"labelSelector": SELECTOR, "limit": "500"}
    assert headers["Accept"].startswith("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,")


async def test_of_a_long_list_only_what_is_wanted_is_held(tmp_path):
    server = ApiServer(
        says({"items": [vm("a"), vm("b")], "metadata": {"continue": "next"}}),
        says({"items": [vm("c")], "metadata": {"resourceVersion": "5"}}),
    )
    async with talking_to(server, tmp_path) as client:
        items, _ = await client.list_all(VMS, keep=lambda item: item["metadata"]["name"] != "b")
    assert [item["metadata"]["name"] for item in items] == ["a", "c"]


async def test_a_list_that_expires_between_its_pages_begins_again(tmp_path):
    expired = fails("The provided continue parameter is too old", 410, "Expired")
    first = says({"items": [vm("a")], "metadata": {"continue": "next"}})
    last = says({"items": [vm("b")], "metadata": {"resourceVersion": "7"}})
    server = ApiServer(first, expired, last)
    async with talking_to(server, tmp_path) as client:
        items, version = await client.list_all(VMS)
        assert ([item["metadata"]["name"] for item in items], version) == (["b"], "7")
        server.answers = [expired]
        with pytest.raises(ClusterUnavailable, match="expired"):
            await client.list_all(VMS)


async def test_a_conflict_with_a_quota_is_tried_again_later(tmp_path):
    quota = 'Operation cannot be fulfilled on resourcequotas "q": the object has been modified'
    server = ApiServer(
        fails(quota, 409, "Conflict"), fails('virtualmachines.kubevirt.io "a" already exists', 409, "AlreadyExists")
    )
    async with talking_to(server, tmp_path) as client:
        with pytest.raises(ClusterUnavailable, match="resourcequotas"):
            await client.create(VMS, vm("a"))
        with pytest.raises(AlreadyExists):
            await client.create(VMS, vm("a"))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (says_text("<html>log in</html>"), ClusterError, "not a JSON object"),
        (says([1]), ClusterError, "not a JSON object"),
        (says_text("<html>502</html>", 502), ClusterUnavailable, "502"),
        (says_text("404 page not found", 404, "text/plain"), ClusterUnavailable, "KubeVirt is not installed"),
        (fails("slow down", 429, "TooManyRequests", retryAfterSeconds=3), ClusterUnavailable, "slow down"),
        (fails("you may not", 403, "Forbidden"), ClusterForbidden, "you may not"),
    ],
)
async def test_an_answer_that_is_no_success_is_a_cluster_error(tmp_path, answer, error, message):
    async with talking_to(ApiServer(answer), tmp_path) as client:
        with pytest.raises(error, match=message):
            await client.get(VMS, "a")


async def test_a_kind_that_the_cluster_does_not_have_is_named(tmp_path):
    async with talking_to(ApiServer(says_text("404 page not found", 404, "text/plain")), tmp_path) as client:
        with pytest.raises(ClusterNotFound, match=r"The cluster has no datavolumes \(cdi.kubevirt.io/v1beta1\)"):
            await client.get(DATA_VOLUMES, "a")


async def test_an_answer_that_does_not_come_is_waited_for_so_long(tmp_path):
    async with talking_to(ApiServer(hang), tmp_path, cluster_timeout_seconds=0.05) as client:
        with pytest.raises(ClusterUnavailable, match="in time"):
            await client.get(VMS, "a")
        with pytest.raises(ClusterUnavailable, match="in time"):
            await collect(client.watch(VMS, "5"))


async def test_a_server_that_cannot_be_reached_is_unavailable(tmp_path):
    server = ApiServer(says({}))
    async with serving(server, tmp_path) as settings:
        client = KubeVirtClient(settings, await configure(settings))
    async with aclosing_client(client):
        with pytest.raises(ClusterUnavailable, match="cannot be reached"):
            await client.get(VMS, "a")
        with pytest.raises(ClusterUnavailable, match="cannot be reached"):
            await collect(client.watch(VMS, "5"))


@asynccontextmanager
async def aclosing_client(client):
    try:
        yield
    finally:
        await client.close()


async def test_a_refusal_keeps_its_fields(tmp_path):
    causes = [{"message": "not found", "field": "spec.template.spec.domain"}]
    server = ApiServer(fails("denied", 422, "Invalid", causes=causes))
    async with talking_to(server, tmp_path) as client:
        with pytest.raises(ClusterRefused) as found:
            await client.create(VMS, vm("a"))
    assert [problem.field for problem in found.value.problems] == ["spec.template.spec.domain"]


class TestWatch:
    async def test_events_come_until_the_server_ends_it(self, tmp_path):
        added = {"type": "ADDED", "object": vm("a")}
        server = ApiServer(streams(added, BOOKMARK))
        async with talking_to(server, tmp_path) as client:
            assert await collect(client.watch(VMS, "5")) == [added, BOOKMARK]
        expected = {"labelSelector": SELECTOR, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": "5"}
        assert server.requests[0][:3] == ("GET", PATH, expected)

    async def test_an_event_larger_than_a_buffer(self, tmp_path):
        large = vm("a", annotations={"note": "x" * 1_500_000})
        async with talking_to(ApiServer(streams({"type": "ADDED", "object": large})), tmp_path) as client:
            (event,) = await collect(client.watch(VMS, "5"))
        assert event["object"] == large

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (
                streams({"type": "ERROR", "object": {"message": "too old resource version: 1 (2)", "code": 410}}),
                WatchExpired,
                "too old",
            ),
            (fails("too old resource version", 410, "Expired"), WatchExpired, "too old"),
            (fails("you may not watch", 403, "Forbidden"), ClusterForbidden, "may not watch"),
            (says_text("<html>unavailable</html>", 503), ClusterUnavailable, "unavailable"),
            (streams(BOOKMARK, after=cut), ClusterUnavailable, "cannot be reached"),
            (streams(b'{"type": "ADD'), ClusterError, "cannot be read"),
            (streams(b"[]\n"), ClusterError, "not a JSON object"),
            (says({"kind": "VirtualMachineList", "items": []}), ClusterError, "not a watch event"),
            (streams({"type": "ERROR", "object": {"message": "odd"}}), ClusterUnavailable, "odd"),
        ],
    )
    async def test_what_ends_it_early(self, tmp_path, answer, error, message):
        async with talking_to(ApiServer(answer), tmp_path) as client:
            with pytest.raises(error, match=message):
                await collect(client.watch(VMS, "5"))

    async def test_silence_is_an_end(self, tmp_path):
        server = ApiServer(streams(BOOKMARK, after=hang))
        async with (
            talking_to(server, tmp_path, watch_silence_seconds=0.05) as client,
            client.watch(VMS, "5") as batches,
        ):
            assert await anext(batches) == [BOOKMARK]
            with pytest.raises(ClusterUnavailable, match=r"silent for 0\.05 s"):
                await anext(batches)

    async def test_closed_it_lets_go_of_its_connection(self, tmp_path):
        lost = asyncio.Event()

        async def write_until_lost(request):
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(json.dumps(BOOKMARK).encode() + b"\n")
                    await asyncio.sleep(0)
            finally:  # cancelled, or its write refused
                lost.set()

        async with talking_to(ApiServer(write_until_lost), tmp_path) as client:
            async with client.watch(VMS, "5") as batches:
                await anext(batches)
            async with asyncio.timeout(PATIENCE):
                await lost.wait()


END = {
    "type": "BOOKMARK",
    "object": {"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}},
}
PAGED = says({"items": [vm("a")], "metadata": {"resourceVersion": "5"}})


def event(what, item):
    return {"type": what, "object": item}


class TestStreamedLists:
    async def read(self, client):
        found = [page async for page in client.stream(VMS)]
        return [item["metadata"]["name"] for page in found for item in page.items], found[-1].version

    async def test_a_list_is_what_a_watch_begins_with(self, tmp_path):
        events = streams(
            event("ADDED", vm("a")), BOOKMARK, event("MODIFIED", vm("b")), event("DELETED", vm("c")), END, after=hang
        )
        server = ApiServer(events)
        async with talking_to(server, tmp_path) as client:
            assert await self.read(client) == (["a", "b"], "9")
        expected = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
        assert expected.items() <= server.requests[0][2].items()
        assert "resourceVersion" not in server.requests[0][2], "the newest state"

    async def test_a_server_that_cannot_stream_is_asked_for_pages_from_then_on(self, tmp_path):
        refusal = fails("sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled", 422)
        server = ApiServer(refusal, PAGED)
        async with talking_to(server, tmp_path) as client:
            assert await self.read(client) == await self.read(client) == (["a"], "5")
        assert [request[2].get("watch") for request in server.requests] == ["true", None, None]

    async def test_a_server_that_does_not_know_of_it_is_asked_for_pages(self, tmp_path):
        """It takes the request for an ordinary watch, which does not say where the list ends."""
        server = ApiServer(streams(event("ADDED", vm("a")), after=hang), PAGED)
        async with talking_to(server, tmp_path, cluster_timeout_seconds=0.2) as client:
            names, version = await self.read(client)
            assert (names[-1], version) == ("a", "5")
            assert await self.read(client) == (["a"], "5")

    async def test_a_list_that_breaks_off_is_no_list(self, tmp_path):
        server = ApiServer(streams(event("ADDED", vm("a")), END), streams(event("ADDED", vm("a"))))
        async with talking_to(server, tmp_path) as client:
            await self.read(client)
            with pytest.raises(ClusterUnavailable, match="before its last object"):
                await self.read(client)


class TestConfigure:
    async def test_a_context_by_its_name(self, tmp_path):
        config = kubeconfig("http://127.0.0.1:1")
        config["clusters"].append({"name": "other", "cluster": {"server": "http://127.0.0.1:2"}})
        config["contexts"].append({"name": "other", "context": {"cluster": "other", "user": "test"}})
        path = tmp_path / "config"
        path.write_text(json.dumps(config))
        assert (await configure(Settings(kubeconfig=path))).host == "http://127.0.0.1:1"
        assert (await configure(Settings(kubeconfig=path, kube_context="other"))).host == "http://127.0.0.1:2"

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "a: b", json.dumps({**kubeconfig("http://x"), "current-context": "nope"})]
    )
    async def test_a_file_that_is_no_kubeconfig(self, tmp_path, text):
        path = tmp_path / "config"
        path.write_text(text)
        with pytest.raises(ClusterError, match="cannot be used to reach the cluster") as found:
            await configure(Settings(kubeconfig=path))
        assert str(path) in found.value.detail
        assert "EMBERPOOL_KUBECONFIG" in found.value.detail

    async def test_no_file_and_no_pod(self, tmp_path, monkeypatch):
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        with pytest.raises(ClusterError, match="cannot be used"):
            await configure(Settings(kubeconfig=tmp_path / "missing"))
        with pytest.raises(ClusterError, match="service account"):
            await configure(Settings())

    async def test_a_plugins_token_is_renewed_once_it_has_expired(self, tmp_path):
        """GIVEN a plugin whose tokens have expired at once THEN each call asks it for the next."""
        count = tmp_path / "count"
        plugin = tmp_path / "plugin"
        plugin.write_text(
            f"#!/bin/sh\necho x >> {count}\n"
            'echo "{\\"apiVersion\\": \\"client.authentication.k8s.io/v1\\", \\"kind\\": \\"ExecCredential\\", '
            f'\\"status\\": {{\\"token\\": \\"token-$(wc -l < {count} | tr -d " ")\\", '
            '\\"expirationTimestamp\\": \\"2020-01-01T00:00:00Z\\"}}"\n'
        )
        plugin.chmod(0o755)
        server = ApiServer(says(vm("a")))
        async with serving(server, tmp_path) as settings:
            config = yaml.safe_load(settings.kubeconfig.read_text())
            config["users"][0]["user"] = {
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": str(plugin),
                    "interactiveMode": "Never",
                }
            }
            settings.kubeconfig.write_text(yaml.safe_dump(config))
            client = KubeVirtClient(settings, await configure(settings))
            async with aclosing_client(client):
                await client.get(VMS, "a")
                await client.get(VMS, "a")
        tokens = [request[3]["Authorization"] for request in server.requests]
        assert tokens == ["Bearer token-2", "Bearer token-3"]
