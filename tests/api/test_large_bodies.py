"""Large bodies, of which one must not keep the others waiting, nor be answered with more than it was."""

import asyncio
import threading

import pytest

from app.api import bodies
from app.api.bodies import LARGE
from tests.support.patience import PATIENCE
from tests.support.service import TEMPLATE, Refused, check

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = {"Content-Type": "application/json"}
YAML = {"Content-Type": "application/yaml"}
PAD = "x" * (64 * 1024)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/v1/claim", '{"pool": "none", "labels": {"a": "%s"}}', JSON),
        ("POST", "/v1/claim/batch", '{"pool": "none", "count": 1, "labels": {"a": "%s"}}', JSON),
        ("PUT", "/v1/pools/large", '{"size": "%s"}', JSON),
        ("PATCH", "/v1/pools/large", '{"size": "%s"}', JSON),
        ("POST", "/v1/placements/check", '{"pool": "%s"}', JSON),
        ("POST", "/v1/manifests", '{"kind": "%s"}', JSON),
        ("POST", "/v1/manifests", "kind: %s", YAML),
    ],
)
async def test_others_are_served_while_a_large_body_is_read(server, method, path, body, headers):
    """The thread for bodies has something else to do, as it would have with the bodies of others."""
    busy, go_on = threading.Event(), threading.Event()

    def occupy():
        busy.set()
        assert go_on.wait(PATIENCE)

    occupied = asyncio.create_task(bodies.in_thread(occupy))
    try:
        reading = asyncio.create_task(
            server.client.request(method, path, content=(body % PAD).encode(), headers=headers)
        )
        for _ in range(20):
            assert (await server.client.get("/healthz")).status_code == 200
        check(await server.client.post("/v1/claim", json={"pool": "none"}), Refused(404, "pool-not-found"))
        assert busy.is_set()
        assert not reading.done()
    finally:
        go_on.set()
    await occupied
    assert (await reading).status_code in {400, 404, 422}


async def test_a_large_body_is_validated_where_it_is_read(server, monkeypatch):
    threads = []
    read = bodies.BodyForm.read

    def noted(self, raw):
        threads.append(threading.current_thread())
        return read(self, raw)

    monkeypatch.setattr(bodies.BodyForm, "read", noted)
    spec = {"size": 0, "template": {**TEMPLATE, "labels": {"a": "x" * LARGE}}}
    check(await server.client.put("/v1/pools/there", json=spec), Refused(422, "template-refused"))
    check(await server.client.post("/v1/claim", json={"pool": PAD}), Refused(422, "invalid-request", "pool"))
    assert [thread.name.startswith("body") for thread in threads] == [True, True]


def numbers(count):
    return ",".join(["0"] * count)


def fields(count):
    return ",".join(f'"{number}":0' for number in range(count))


@pytest.mark.parametrize(
    "entries",
    [
        f'"paths": [{numbers(200_000)}]',
        f'"labels": {{{fields(100_000)}}}',
        fields(100_000),
        f'"placement": {{"tolerations": [{numbers(200_000)}]}}',
        f'"paths": [{numbers(10_000)}]',
        f'"labels": {{{fields(8_000)}}}',
        fields(8_000),
    ],
    ids=["paths", "labels", "fields", "tolerations", "fewer paths", "fewer labels", "fewer fields"],
)
@pytest.mark.parametrize("path", ["/v1/claim", "/v1/claim/batch"])
async def test_many_wrong_entries_get_a_short_answer(server, path, entries):
    content = f'{{"pool": "none", "count": 1, {entries}}}'
    answer = await server.client.post(path, content=content.encode(), headers=JSON)
    assert answer.status_code in {400, 422}
    assert len(answer.content) < 10_000
    assert len(answer.json().get("errors", [])) <= 20
