"""What HTTP says of requests apart from what is in them: as raw bytes, since clients' libraries do not send most of this."""

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from app.config import Role
from tests.support.raw_http import connect, request
from tests.support.service import Refused, bind, check, figures, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
GET = request("GET", "/healthz")
BODY = b'{"pool": "none"}'
IS_JSON = "Content-Type: application/json"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)


def claim(*headers, body=BODY, **how):
    return request("POST", "/v1/claim", IS_JSON, *headers, body=body, **how)


@pytest_asyncio.fixture(loop_scope="module")
async def port(server):
    async with bind(server.app) as (_, port):
        yield port


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed-request"),
        (request("NONE", "/healthz"), 400, "malformed-request"),
        (request("GET", "/healthz\xff"), 400, "malformed-request"),
        (request("GET", "http://test"), 400, "malformed-request"),
        (request("GET", "/healthz", "X : 1"), 400, "malformed-request"),
        (request("GET", "/healthz", "X: 1\r\n 2"), 400, "malformed-request"),
        (GET.replace(b"\r\n", b"\n"), 400, "malformed-request"),
        (claim(LENGTH, LENGTH), 400, "malformed-request"),
        (claim(LENGTH, "Content-Length: 1"), 400, "malformed-request"),
        (claim("Content-Length: 16, 16"), 400, "malformed-request"),
        (claim("Content-Length: -1"), 400, "malformed-request"),
        (claim("Content-Length: 99999999999999999999999"), 400, "malformed-request"),
        (claim(LENGTH, CHUNKED, body=CHUNKS), 400, "malformed-request"),
        (claim(CHUNKED, LENGTH, body=CHUNKS), 400, "malformed-request"),
        (claim(CHUNKED, CHUNKED, body=CHUNKS), 400, "malformed-request"),
        (claim(CHUNKED, body=b"zz\r\n"), 400, "malformed-request"),
        (claim(CHUNKED, body=b"-1\r\n"), 400, "malformed-request"),
        (claim(CHUNKED, body=b"fffffffffffffffffff\r\n"), 400, "malformed-request"),
        (claim(CHUNKED, body=b"2\r\n{}}\r\n"), 400, "malformed-request"),
        (claim("Transfer-Encoding: gzip"), 501, "not-implemented"),
        (request("CONNECT", "test:443"), 501, "not-implemented"),
        (request("GET", "/healthz", version="2.0"), 505, "version-not-supported"),
        (request("GET", "/healthz", version="3.7"), 505, "version-not-supported"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version-not-supported"),
    ],
    ids=lambda value: repr(value[-60:]) if isinstance(value, bytes) else str(value),
)
async def test_what_the_parser_cannot_read_is_a_problem_and_ends_the_connection(port, sent, status, code):
    async with connect(port) as connection:
        answer = await connection.ask(sent)
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.status, answer.json["status"], answer.json["code"]) == (status, status, code)
        assert answer.json["detail"]
        assert answer.headers["connection"] == "close"
        assert await connection.is_closed()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (request("GET", "/healthz", host=None), 400, "malformed-request"),
        (claim(LENGTH, host=None), 400, "malformed-request"),
        (request("GET", "/healthz", "Host: test"), 400, "malformed-request"),
        (claim(LENGTH, "Host: test"), 400, "malformed-request"),
        (claim(LENGTH, host="a/b"), 400, "malformed-request"),
        (claim(LENGTH, "Content-Type: text/plain"), 400, "malformed-request"),
        (claim(LENGTH, "Authorization: Bearer a", "Authorization: Bearer b"), 400, "malformed-request"),
        (claim(LENGTH, "Idempotency-Key: a", "Idempotency-Key: b"), 400, "malformed-request"),
        (claim("Transfer-Encoding: gzip, chunked", body=CHUNKS), 501, "not-implemented"),
        (claim(LENGTH, "Expect: the-best"), 417, "expectation-failed"),
    ],
    ids=lambda value: repr(value[-60:]) if isinstance(value, bytes) else str(value),
)
async def test_what_can_be_read_and_is_not_right_is_a_problem_and_the_connection_goes_on(port, sent, status, code):
    async with connect(port) as connection:
        answer = await connection.ask(sent)
        assert (answer.status, answer.json["code"]) == (status, code)
        assert (await connection.ask(GET)).status == 200


@pytest.mark.parametrize("host", ["test", "test:8080", "TEST.", "10.0.0.1:80", "[::1]", "[::1]:8080", "a_b.c-d", ""])
async def test_any_host_is_taken_unless_they_are_listed(port, host):
    async with connect(port) as connection:
        assert (await connection.ask(request("GET", "/v1/pools", host=host))).status == 200


async def test_http_1_0_needs_no_host(port):
    async with connect(port) as connection:
        assert (await connection.ask(request("GET", "/healthz", version="1.0", host=None))).status == 200
        assert await connection.is_closed()


@pytest.mark.asyncio(loop_scope="function")
async def test_only_listed_hosts_are_served_except_for_health(database_url, dev_cluster, tmp_path):
    hosts = ("pool.example.com", "*.svc", "[::1]")
    async with serve(database_url, dev_cluster, tmp_path, allowed_hosts=hosts) as server:
        for host in ("pool.example.com", "POOL.example.com:8080", "emberpool.vms.svc", "[::1]:8080"):
            assert (await server.client.get("/v1/pools", headers={"Host": host})).status_code == 200
        for host in ("emberpool", "example.com", "svc", "evilsvc", "pool.example.com.evil.org", "::1"):
            answer = await server.client.get("/v1/pools", headers={"Host": host})
            assert answer.status_code in {400, 421}
            assert answer.json()["code"] in {"host-not-allowed", "malformed-request"}
            claimed = await server.claim("none", headers={"Host": host})
            assert claimed.status_code == answer.status_code
            for path in ("/healthz", "/readyz", "/metrics"):
                health = await server.client.get(path, headers={"Host": host})
                assert health.status_code == (200 if answer.status_code == 421 else 400)


@pytest.mark.asyncio(loop_scope="function")
async def test_the_health_of_a_worker_has_the_same_bounds(database_url, dev_cluster, tmp_path):
    async with (
        serve(database_url, dev_cluster, tmp_path, role=Role.WORKER) as server,
        bind(server.app) as (_, port),
        connect(port) as connection,
    ):
        assert (await connection.ask(GET)).status == 200
        assert (await connection.ask(request("GET", "/healthz", f"X: {'x' * 70_000}"))).status == 431
        assert await connection.is_closed()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/pools", "GET, HEAD"),
        ("POST", "/v1/pools/web", "DELETE, GET, HEAD, PATCH, PUT"),
        ("PATCH", "/v1/preloads/a", "DELETE, GET, HEAD, PUT"),
        ("GET", "/v1/claim", "POST"),
        ("HEAD", "/v1/claim", "POST"),
        ("PUT", "/v1/pools/web/rotate", "POST"),
        ("OPTIONS", "/v1/events", "GET, HEAD"),
        ("TRACE", "/healthz", "GET, HEAD"),
        ("DELETE", "/docs", "GET, HEAD"),
    ],
)
async def test_another_method_is_refused_with_those_that_are_allowed(server, method, path, allowed):
    answer = await server.client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        problem = check(answer, Refused(405, "method-not-allowed", says=f"does not support {method}, but "))
        assert all(each in problem["detail"] for each in allowed.split(", "))


@pytest.mark.parametrize("path", ["/healthz", "/v1/pools", "/v1/pools/none", "/docs", "/openapi.json", "/nothing"])
async def test_head_is_answered_as_get_is_but_without_a_body(port, path):
    async with connect(port) as connection:
        got = await connection.ask(request("GET", path))
        connection.send(request("HEAD", path), GET)
        head = await connection.answer(body=False)
        assert (await connection.answer()).status == 200
    assert (head.status, head.headers | {"date": ""}) == (got.status, got.headers | {"date": ""})


async def test_head_of_a_stream_ends(server, port):
    async with connect(port) as connection:
        connection.send(request("HEAD", "/v1/events", "Accept: text/event-stream"), GET)
        head = await connection.answer(body=False)
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert (await connection.answer()).json == {"status": "ok"}


@pytest.mark.parametrize("path", ["/v1/pools/", "/v1/claim/", "/docs/", "/healthz/", "//v1/pools"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_slash_too_many_is_another_path_and_no_redirect(server, method, path):
    answer = await server.client.request(method, f"http://emberpool{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert "location" not in answer.headers


@pytest.mark.parametrize("offer", [H2C, ("Connection: Upgrade", "Upgrade: websocket"), ("Upgrade: h2c",)])
async def test_an_offer_of_another_protocol_is_ignored_with_and_without_a_body(port, offer):
    async with connect(port) as connection:
        for _ in range(2):
            assert (await connection.ask(request("GET", "/healthz", *offer))).status == 200
            for sent in (claim(*offer, LENGTH), claim(CHUNKED, *offer, body=CHUNKS)):
                answer = await connection.ask(sent)
                assert (answer.status, answer.json["code"]) == (404, "pool-not-found")
                assert "upgrade" not in answer.headers
        connection.send(claim(*offer, LENGTH), GET, claim(*offer, LENGTH)[:-5])
        assert [(await connection.answer()).status for _ in range(2)] == [404, 200]
        assert (await connection.ask(BODY[-5:], GET)).status == 404
        assert (await connection.answer()).status == 200


async def test_expect_is_answered_when_the_body_is_wanted(port):
    sent = claim("Expect: 100-Continue", LENGTH)
    async with connect(port) as connection:
        assert (await connection.ask(sent[: -len(BODY)])).status == 100
        assert (await connection.ask(BODY)).status == 404
        assert (await connection.ask(GET)).status == 200


async def test_expect_of_a_request_that_is_refused_by_its_head_ends_the_connection(port):
    """The client may send the body or not, so that nobody knows where the next request begins."""
    async with connect(port) as connection:
        answer = await connection.ask(request("POST", "/v1/claim", "Expect: 100-continue", LENGTH))
        assert (answer.status, answer.headers["connection"]) == (415, "close")
        assert await connection.is_closed()


async def test_expect_of_http_1_0_is_ignored(port):
    async with connect(port) as connection:
        assert (await connection.ask(claim("Expect: 100-continue", LENGTH, version="1.0"))).status == 404


async def test_a_trailer_is_no_header(port):
    key = f"Idempotency-Key: {'k' * 300}"
    async with connect(port) as connection:
        assert (await connection.ask(claim(CHUNKED, key, body=CHUNKS))).status == 422
        assert (await connection.ask(claim(CHUNKED, body=CHUNKS[:-2]), key.encode(), b"\r\n\r\n")).status == 404


BODYLESS = ["/v1/pools/guarded/pause", "/v1/pools/guarded/rotate", "/v1/claims/7/renew", "/v1/preloads/none/refresh"]


@pytest.mark.parametrize("path", BODYLESS)
@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Content-Length: 0",),
        ("Content-Type: text/plain", "Content-Length: 0"),
        ("Content-Type: application/x-www-form-urlencoded", "Origin: http://evil.org"),
        ("Content-Type: multipart/form-data; boundary=application/json",),
        ("Origin: http://evil.org",),
        ("Origin: null",),
        ("Authorization: Basic YTpi",),
    ],
)
async def test_a_post_that_another_site_could_have_sent_is_refused(server, port, path, headers):
    before = await server.put("guarded", size=0)
    async with connect(port) as connection:
        answer = await connection.ask(request("POST", path, *headers))
    assert (answer.status, answer.json["code"]) == (415, "unsupported-media-type")
    assert "Content-Type: application/json" in answer.json["detail"]
    assert (await server.pool("guarded"))["generation"] == before.json()["generation"]


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: application/json",
        "Content-Type: Application/JSON; charset=utf-8",
        "Authorization: Bearer a",
        "Origin: http://test",
    ],
    ids=["JSON", "JSON with a charset", "a token", "the service's own page"],
)
async def test_a_post_without_a_body_that_no_other_site_could_have_sent_is_served(server, port, header):
    await server.put("kept", size=0)
    async with connect(port) as connection:
        assert (await connection.ask(request("POST", "/v1/pools/kept/resume", header))).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("POST", path) for path in (*BODYLESS, "/v1/claim", "/v1/claims/batch", "/v1/manifests", "/v1/snapshots")],
        *[("PUT", "/v1/pools/form"), ("PATCH", "/v1/pools/form"), ("DELETE", "/v1/pools/form")],
    ],
)
async def test_what_a_form_sends_is_refused_by_every_route_that_changes_something(server, method, path, kind):
    answer = await server.client.request(method, path, content=b"a=b", headers={"Content-Type": kind})
    check(answer, Refused(415, "unsupported-media-type"))


@pytest.mark.parametrize(
    "sent",
    [
        request("POST", "/v1/pools/whole/pause", IS_JSON, "Content-Length: 20", body=b"{"),
        request("POST", "/v1/pools/whole/pause", IS_JSON, CHUNKED, body=b"2\r\n{}\r\n"),
        request("PUT", "/v1/pools/whole", IS_JSON, "Content-Length: 200", body=b'{"size": 3}'),
        request("DELETE", "/v1/pools/whole", IS_JSON, "Content-Length: 20", body=b"{"),
    ],
    ids=lambda sent: repr(sent[:40]),
)
async def test_half_a_request_does_nothing_and_is_no_failure_of_the_service(server, port, sent):
    before = (await server.put("whole", size=0)).json()
    name = 'emberpool_http_requests_total{operation="none",status="499"}'
    counted = (await figures(server)).get(name, 0)
    with capture_logs() as logged:
        async with connect(port) as connection:
            connection.send(sent)
            await connection.writer.drain()

        async def noticed():
            return (await figures(server)).get(name, 0) > counted

        await until(noticed)
    assert not [each for each in logged if each["log_level"] in {"error", "critical", "warning"}]
    after = await server.pool("whole")
    assert (after["spec"], after["generation"]) == (before["spec"], before["generation"])


@pytest.mark.parametrize("piece", [0, 1])
async def test_a_client_that_leaves_at_any_moment_is_no_failure_of_the_service(server, port, piece, caplog):
    await server.put("left", size=0)
    asked = [
        request("GET", "/v1/events", "Accept: text/event-stream"),
        request("PUT", "/v1/pools/left", IS_JSON, "Content-Length: 10", body=b'{"size":0}'),
        request("GET", "/v1/pools"),
        request("GET", "/openapi.json"),
        claim(LENGTH),
        request("POST", "/v1/claim", IS_JSON, "Content-Length: 36", body=b'{"pool": "left", "wait_seconds": 30}'),
    ]
    with capture_logs() as logged:
        for sent in asked:
            for turns in range(4):
                async with connect(port) as connection:
                    connection.send(sent[: len(sent) - piece])
                    for _ in range(turns):
                        await server.client.get("/healthz")
                    connection.writer.transport.abort()

        async def are_gone():
            name = "emberpool_http_connections"
            return (await figures(server))[name] == 0

        await until(are_gone)
    assert not [each for each in logged if each["log_level"] in {"error", "critical"}]
    assert not [each for each in caplog.records if each.levelname in {"ERROR", "CRITICAL"}]
