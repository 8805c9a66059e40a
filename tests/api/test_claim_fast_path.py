"""Claims by the shorter road, over connections of this test's own: what is written on them, and what goes the ordinary way."""

import asyncio
import contextlib
import json
import time
import uuid
from dataclasses import replace

import pytest
import pytest_asyncio

from app.api.claims.fast_path import protocol as claim_protocol
from app.api.claims.fast_path import route as claim_route
from app.api.edge import Edge
from app.services.claims import service as claiming
from app.store.notices import Topic, notify
from tests.support.raw_http import connect
from tests.support.service import bind, figures, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
_BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def claim(pool, *headers, path="/v1/claim", version="1.1", **body):
    content = json.dumps({"pool": pool, **body}).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: test", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", *headers, "", ""]).encode() + content


@pytest_asyncio.fixture(loop_scope="module")
async def port(server):
    async with bind(server.app) as (_, port):
        yield port


@pytest.fixture(autouse=True)
def long_memory(monkeypatch):
    """What is known of a pool does not grow old while a test runs."""
    monkeypatch.setattr(claiming, "_FACTS_SECONDS", 1000)


@pytest.fixture
def ordinary(monkeypatch):
    """The paths of the claims that went through ASGI."""
    seen = []
    call = Edge.__call__

    async def noted(self, scope, receive, send):
        if scope["method"] == "POST":
            seen.append(scope["path"])
        await call(self, scope, receive, send)

    monkeypatch.setattr(Edge, "__call__", noted)
    return seen


async def learned(server, pool, **spec):
    """A pool with ready VMs, of which the claim_service knows: the first claim of a pool reads it, by the ordinary way."""
    await server.fill(pool, **spec)
    claim_service = server.services.claim_service
    await claim_service._reading.get_fresh(pool)
    async with server.services.db.begin() as tx:
        await notify(tx, Topic.POOL, claim_service._facts[pool].id)

    async def forgotten():
        return pool not in claim_service._facts

    await until(forgotten)  # by the last notice: none of an earlier change is on its way now
    await claim_service._reading.get_fresh(pool)


@contextlib.asynccontextmanager
async def held(server):
    """Statements that take a VM hang until this ends."""
    async with server.services.db.begin() as tx:
        await tx.exec_driver_sql("SELECT 1 FROM vm WHERE state = 'ready' FOR UPDATE")
        yield


async def blocked(server):
    async def waits():
        async with server.services.db.begin() as tx:
            return (await tx.exec_driver_sql(_BLOCKED)).scalar()

    await until(waits)


async def test_a_plain_claim_is_answered_by_the_connection_and_as_its_row_says(server, port, ordinary):
    await learned(server, "plain", size=3)
    async with connect(port) as connection:
        for labels in ({}, {"job": "1"}, {"job": '"\\ü'}):
            answer = await connection.ask(claim("plain", "Connection: keep-alive", labels=labels, lease_seconds=90))
            assert answer.status == 201
            assert answer.headers["content-type"] == "application/json"
            assert "date" in answer.headers
            assert ordinary == []
            assert (await server.client.get(f"/v1/claims/{answer.json['id']}")).json() == answer.json
            assert (answer.json["labels"], answer.json["lease_seconds"]) == (labels, 90)


async def test_what_is_known_of_a_pool_in_use_is_read_anew_before_it_is_too_old(server, port, ordinary):
    await learned(server, "ahead", size=2)
    facts = server.services.claim_service._facts
    old = replace(facts["ahead"], good_until=time.monotonic() + 400)
    facts["ahead"] = old
    async with connect(port) as connection:
        assert (await connection.ask(claim("ahead"))).status == 201

        async def is_new():
            return facts["ahead"].good_until > old.good_until + 400

        await until(is_new)
        assert (await connection.ask(claim("ahead"))).status == 201
    assert ordinary == []


async def test_both_roads_give_the_same_answer(server, port, ordinary):
    await learned(server, "same", size=2)
    async with connect(port) as connection:
        short = await connection.ask(claim("same"))
        assert ordinary == []
        long = await connection.ask(claim("same", path="/v1/claim?"))
        assert ordinary == ["/v1/claim"]
    assert short.status == long.status == 201
    assert short.json.keys() == long.json.keys()
    assert [*short.headers] == [*long.headers]
    assert short.json["vm"].keys() == long.json["vm"].keys()


@pytest.mark.parametrize(
    ("headers", "how", "status"),
    [
        (["Connection: close"], {}, 201),
        (["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"], {}, 201),
        (["Content-Length: 1"], {}, 400),
        (["Expect: 100-continue"], {}, 201),
        ([], {"version": "1.0"}, 201),
        ([], {"path": "/v1/claim?a=b"}, 422),
        ([], {"path": "/v1/%63laim"}, 201),
    ],
)
async def test_an_unusual_form_goes_the_ordinary_way(server, port, headers, how, status):
    await learned(server, "forms", size=1)
    async with connect(port) as connection:
        connection.send(claim("forms", *headers, **how))
        answer = await connection.answer()
        if "Expect: 100-continue" in headers:
            assert answer.status == 100
            answer = await connection.answer()
        assert answer.status == status
        if "Connection: close" in headers or how.get("version") == "1.0":
            assert await connection.is_closed()


async def test_a_claim_in_pieces_is_served(server, port):
    await learned(server, "pieces", size=3)
    whole = claim("pieces")
    async with connect(port) as connection:
        for cut in (10, whole.index(b"\r\n\r\n") + 4, len(whole) - 1):
            connection.send(whole[:cut])
            await connection.writer.drain()
            await asyncio.sleep(0)
            assert (await connection.ask(whole[cut:])).status == 201


async def test_a_chunked_claim_is_served(server, port):
    await learned(server, "chunks", size=1)
    body = b'{"pool": "chunks"}'
    head = b"POST /v1/claim HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with connect(port) as connection:
        assert (await connection.ask(head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))).status == 201


async def test_what_looks_like_a_claim_within_another_body_is_none(server, port):
    await learned(server, "smuggled", size=1)
    inner = claim("smuggled")
    head = f"PUT /v1/pools/smuggled-2 HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {len(inner)}\r\n\r\n"
    async with connect(port) as connection:
        connection.send(head.encode())
        await until(lambda: server.client.get("/healthz"))  # the server has had its turn
        answer = await connection.ask(inner)
        assert answer.json["code"] == "malformed-body"
        assert (await server.pool("smuggled"))["status"]["counts"]["claimed"] == 0
        assert (await connection.ask(claim("smuggled"))).status == 201


async def test_requests_in_one_piece_are_answered_in_their_order(server, port):
    await learned(server, "pipeline", size=3)
    get = b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n"
    async with connect(port) as connection:
        connection.send(claim("pipeline"), get, claim("pipeline"), claim("nowhere"), get)
        statuses = [(await connection.answer()).status for _ in range(5)]
        assert statuses == [201, 200, 201, 404, 200]
        assert (await connection.ask(claim("pipeline"))).status == 201


async def test_what_comes_while_a_claim_is_in_flight_waits_for_its_turn(server, port, ordinary):
    await learned(server, "turns", size=2)
    get = b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n"
    async with connect(port) as connection:
        async with held(server):
            connection.send(claim("turns"))
            await blocked(server)
            connection.send(get[:20])
            await connection.writer.drain()
            assert (await server.client.get("/healthz")).status_code == 200
            ordinary.clear()
            connection.send(get[20:], claim("turns"))
        answers = [await connection.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [201, 200, 201]
    assert answers[0].json["vm"]["id"] != answers[2].json["vm"]["id"]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (claim("no-such-pool"), 404, "pool-not-found"),
        (claim("refused", lease_seconds=10**6), 422, "lease-too-long"),
        (claim("refused", sort="of"), 422, "invalid-request"),
        (claim("refused", "Idempotency-Key: \x01"), 400, None),
        (claim("refused", f"Idempotency-Key: {'k' * 256}"), 422, "invalid-request"),
        (claim("refused").replace(b"application/json", b"text/plain"), 415, "unsupported-media-type"),
        (claim("refused").replace(b'{"pool"', b'["pool"'), 422, "malformed-body"),
        (claim("refused", pad="x" * 1024 * 1024), 413, "body-too-large"),
    ],
)
async def test_what_is_refused_is_refused_as_ever(server, port, request_bytes, status, code):
    await learned(server, "refused", size=1, max_lease_seconds=3600)
    async with connect(port) as connection:
        answer = await connection.ask(request_bytes)
    assert answer.status == status or answer.json["status"] == answer.status
    assert code is None or answer.json["code"] == code
    assert (await server.pool("refused"))["status"]["counts"]["claimed"] == 0


@pytest.mark.asyncio(loop_scope="function")
async def test_only_those_who_send_the_token_come_in(database_url, dev_cluster, tmp_path, ordinary):
    async with serve(database_url, dev_cluster, tmp_path, api_token="a-secret") as server:
        server.client.headers["Authorization"] = "Bearer a-secret"
        await learned(server, "guarded", size=2)
        ordinary.clear()
        async with bind(server.app) as (_, port), connect(port) as connection:
            assert (await connection.ask(claim("guarded", "Authorization: Bearer a-secret"))).status == 201
            assert ordinary == []
            for header in ("X-Other: a-secret", "Authorization: Bearer another", "Authorization: Basic a-secret"):
                assert (await connection.ask(claim("guarded", header))).status == 401
            ordinary.clear()
            assert (await connection.ask(claim("guarded", "authorization: bearer  a-secret"))).status == 201
            assert ordinary == []


async def test_a_key_gets_its_claim_again(server, port):
    await learned(server, "keyed", size=2)
    key = f"Idempotency-Key: {uuid.uuid4()}"
    async with connect(port) as connection:
        first = await connection.ask(claim("keyed", key))
        again = await connection.ask(claim("keyed", key))
        other = await connection.ask(claim("keyed", key, labels={"another": "body"}))
    assert (first.status, again.status) == (201, 201)
    assert first.json["id"] == again.json["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status, other.json["code"]) == (422, "idempotency-key-reused")


async def test_a_claim_that_finds_none_goes_on_as_ever_and_is_asked_for_once(server, port, monkeypatch):
    await learned(server, "dry", size=0, max_vms=0)
    looks = []
    lane = server.services.claim_service._store
    look = lane.claim

    async def noted(pool_id, requests, **how):
        looks.append((len(requests), how.get("from_start")))
        return await look(pool_id, requests, **how)

    monkeypatch.setattr(lane, "claim", noted)
    before = await figures(server)
    async with connect(port) as connection:
        answer = await connection.ask(claim("dry"))
    assert (answer.status, answer.json["code"]) == (503, "no-warm-vm")
    assert looks == [(1, False), (1, True)]
    after = await figures(server)
    counted = 'emberpool_http_requests_total{operation="claim",status="503"}'
    assert after[counted] - before.get(counted, 0) == 1


async def test_a_client_that_leaves_while_it_waits_frees_its_place(server, port):
    await learned(server, "waits", size=0, max_vms=0)

    async def claims():
        return (await server.client.get("/v1/claims", params={"pool": "waits"})).json()["items"]

    async with connect(port) as connection:
        connection.send(claim("waits", wait_seconds=60))
        (waiting,) = await until(claims)
        assert waiting["state"] == "pending"

    async def freed():
        (found,) = await claims()
        return found["state"] == "failed"

    await until(freed)


async def test_a_client_that_leaves_before_its_statement_takes_nothing(server, port):
    await learned(server, "left-early", size=2)
    async with connect(port) as first, connect(port) as last:
        async with held(server):
            first.send(claim("left-early"))
            await blocked(server)
            async with connect(port) as leaves:
                leaves.send(claim("left-early"))
                await until(lambda: _asks(server, 1))
            await until(lambda: _gone(server))
        assert (await first.answer()).status == 201
        assert (await last.ask(claim("left-early"))).status == 201


async def _asks(server, count):
    return sum(len(batcher._entries) for batcher in server.services.claim_service._batchers.values()) == count


async def _gone(server):
    return all(
        ask.recipient.is_disconnected()
        for one in server.services.claim_service._batchers.values()
        for ask in one._entries
    )


async def test_claims_are_counted(server, port):
    await learned(server, "counting", size=2)
    before = await figures(server)
    async with connect(port) as connection:
        for _ in range(2):
            assert (await connection.ask(claim("counting"))).status == 201
    after = await figures(server)
    for name in ('claim_seconds_count{outcome="warm"}', 'http_requests_total{operation="claim",status="201"}'):
        assert after[f"emberpool_{name}"] - before.get(f"emberpool_{name}", 0) == 2


async def test_a_bug_in_one_answer_is_told_to_one_client(server, port, monkeypatch):
    await learned(server, "buggy", size=2)
    render = claim_route.render_warm
    broken = [True]

    def sometimes(*given):
        if broken and broken.pop():
            raise RuntimeError("something private")
        return render(*given)

    monkeypatch.setattr(claim_route, "render_warm", sometimes)
    async with connect(port) as one, connect(port) as two:
        async with held(server):
            one.send(claim("buggy"))
            await blocked(server)
            two.send(claim("buggy"))
        answers = [await one.answer(), await two.answer()]
        assert sorted(answer.status for answer in answers) == [201, 500]
        assert b"private" not in answers[0].body + answers[1].body


async def test_a_claim_in_flight_at_the_stop_is_answered_and_its_connection_closed(server):
    await learned(server, "stopping", size=1)
    async with bind(server.app) as (uvicorn_server, port), connect(port) as connection, connect(port) as idle:
        assert (await idle.ask(b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n")).status == 200
        async with held(server):
            connection.send(claim("stopping"))
            await blocked(server)
            uvicorn_server.should_exit = True
            assert await idle.is_closed()
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert await connection.is_closed()


async def test_an_idle_connection_is_closed_after_its_time_and_not_before(server):
    await learned(server, "idle", size=2)
    async with bind(server.app) as (uvicorn_server, port), connect(port) as connection:
        assert (await connection.ask(claim("idle"))).status == 201
        (its,) = uvicorn_server.server_state.connections
        its.shared.clock += its.shared.settings.idle_timeout_seconds - 5
        assert (await connection.ask(claim("idle"))).status == 201
        assert its.deadline > its.shared.clock + 10
        its.shared.clock += its.shared.settings.idle_timeout_seconds + 1
        assert await connection.is_closed()


async def test_a_claim_in_flight_is_not_an_idle_connection(server):
    await learned(server, "long", size=1)
    times = {"head_timeout_seconds": 0.1, "body_timeout_seconds": 0.1, "idle_timeout_seconds": 0.1}
    async with bind(server.app, max_connections=1, **times) as (uvicorn_server, port), connect(port) as connection:
        async with held(server):
            connection.send(claim("long"))
            await blocked(server)
            (its,) = uvicorn_server.server_state.connections
            late = its.shared.clock + 0.5

            async def is_late():
                return its.shared.clock > late

            await until(is_late)
            async with connect(port) as other:
                assert (await other.answer()).status == 503
        assert (await connection.answer()).status == 201


async def test_heads_are_remembered_up_to_a_number_of_them(server, port, monkeypatch, ordinary):
    await learned(server, "heads", size=3)
    monkeypatch.setattr(claim_protocol, "_MAX_HEADS", 2)
    async with connect(port) as connection:
        for number in range(3):
            assert (await connection.ask(claim("heads", f"X-Request: {number}"))).status == 201
    assert ordinary == []


def chunked(content, *, ended):
    head = (
        "POST /v1/claim HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + b"%x\r\n%s\r\n" % (len(content), content) + (b"0\r\n\r\n" if ended else b"")


def announced(content, length):
    head = (
        f"POST /v1/claim HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + content


@pytest.mark.parametrize("cut_off", [lambda body: chunked(body, ended=False), lambda body: announced(body, 500)])
async def test_half_a_request_is_none_though_what_came_of_it_could_be_read(server, port, cut_off):
    await learned(server, "half", size=1)
    counted = 'emberpool_claim_seconds_count{outcome="disconnected"}'
    before = (await figures(server)).get(counted, 0)
    async with connect(port) as connection:
        connection.send(cut_off(b'{"pool": "half"}'))
        await connection.writer.drain()

    async def noticed():
        return (await figures(server)).get(counted, 0) > before

    await until(noticed)
    assert (await server.client.get("/v1/claims?pool=half")).json()["items"] == []


@contextlib.asynccontextmanager
async def left_while_held(server, request):
    """A client has sent the request and gone, and the service knows it, while the statement of its claim waits."""
    async with held(server), bind(server.app) as (serving, port):
        async with connect(port) as connection:
            connection.send(request)
            await blocked(server)

        async def gone():
            return not serving.server_state.connections

        await until(gone)
        yield


@pytest.mark.parametrize("headers", [(), ("TE: trailers",)], ids=["plain", "ordinary"])
async def test_a_claim_that_is_committed_after_its_client_has_left_is_released(server, headers):
    pool = f"left-{len(headers)}"
    await learned(server, pool, size=1)
    async with left_while_held(server, claim(pool, *headers)):
        pass

    async def released():
        items = (await server.client.get(f"/v1/claims?pool={pool}")).json()["items"]
        return [(claim["state"], claim["reason"]) for claim in items] == [
            ("released", "its client had disconnected before it was answered")
        ]

    await until(released)


async def test_with_a_key_it_stands_for_the_retry(server, port):
    await learned(server, "returns", size=1)
    request = claim("returns", "Idempotency-Key: again")
    async with left_while_held(server, request):
        pass
    async with connect(port) as connection:
        answer = await connection.ask(request)
    assert answer.status == 201
    assert answer.json["state"] == "bound"


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("clé €".encode(), 201),
        ("鍵".encode() * 255, 201),
        ("鍵".encode() * 256, 422),
        ("clé".encode("latin-1"), 422),
        (b"\xed\xa0\x80", 422),
        ("a\u200bb".encode(), 422),
        (b"a\tb", 422),
    ],
    ids=["UTF-8", "as long as may be", "too long", "Latin-1", "half a pair", "no width", "a tab"],
)
async def test_a_key_in_utf_8_is_taken_or_refused_alike_on_every_way(server, port, key, status):
    pool = f"utf8-{uuid.uuid4().hex[:8]}"
    await learned(server, pool, size=2)
    line = b"Idempotency-Key: " + key + b"\r\nContent-Length"
    fast = claim(pool).replace(b"Content-Length", line, 1)
    slow = claim(pool, "TE: trailers").replace(b"Content-Length", line, 1)
    batch = claim(pool, path="/v1/claim/batch", count=1).replace(b"Content-Length", line, 1)
    async with connect(port) as connection:
        answers = [await connection.ask(each) for each in (fast, slow, batch)]
    if status == 201:
        assert [answer.status for answer in answers] == [201] * 3
        assert answers[0].json["id"] == answers[1].json["id"]
    else:
        assert [answer.json["errors"][0]["field"] for answer in answers] == ["Idempotency-Key"] * 3
        assert [answer.status for answer in answers] == [422] * 3
        assert (await server.pool(pool))["status"]["counts"]["claimed"] == 0
