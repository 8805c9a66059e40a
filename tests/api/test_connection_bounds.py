"""What one client, and many together, may take of a process before a request of theirs is read."""

import asyncio
import contextlib
import itertools
import json

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.api.connections.lifecycle import Phase
from app.concurrency import first_of
from tests.support.raw_http import connect, request
from tests.support.service import bind, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
GET = request("GET", "/healthz")
JSON = "Content-Type: application/json"
CHUNKED = request("POST", "/v1/claims/7/renew", JSON, "Transfer-Encoding: chunked")
ENDLESS = 64 * 1024 * 1024


def padded(size, path="/healthz"):
    """A request whose head has this many bytes."""
    bare = len(request("GET", path, "X: "))
    return request("GET", path, f"X: {'x' * (size - bare)}")


def shared_by(server):
    return server.config.http_protocol_class.shared


def check(answer, status, code):
    assert (answer.status, answer.json["status"], answer.json["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"


async def push(connection, pieces, before=()):
    """Sends the pieces until there is an answer, after those with the statuses `before`. Returns it, and how much was sent."""

    async def answers():
        for status in before:
            assert (await connection.answer()).status == status
        return await connection.answer()

    answering, sent = asyncio.create_task(answers()), 0
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            if answering.done():
                break
            connection.send(piece)
            sent += len(piece)
            await connection.writer.drain()
            await asyncio.sleep(0)
    return await answering, sent


@contextlib.asynccontextmanager
async def connections(port, number):
    async with contextlib.AsyncExitStack() as closing:
        yield [await closing.enter_async_context(connect(port)) for _ in range(number)]


@pytest.mark.parametrize(
    "beginning",
    [
        request("GET", "/healthz", "X: ")[:-4],
        request("POST", "/v1/claim", JSON, "X: ")[:-4],
        b"GET /healthz HTTP/1.1\r\nX",
        GET + request("GET", "/healthz", "X: ")[:-4],
    ],
    ids=["a request", "a claim", "a name", "the second request"],
)
async def test_a_head_without_end_is_refused_when_little_of_it_was_taken(server, beginning):
    before = [200] if beginning.startswith(GET) else []
    pieces = itertools.chain([beginning], itertools.repeat(b"x" * 65536, ENDLESS // 65536))
    async with bind(server.app) as (serving, port):
        async with connect(port) as connection:
            answer, sent = await push(connection, pieces, before)
            check(answer, 431, "headers-too-large")
            assert sent < ENDLESS / 4  # and most of that lies in the buffers of the two kernels
            assert await connection.is_closed()

        async def is_gone():
            return not serving.server_state.connections

        await until(is_gone)
        assert shared_by(serving).held == 0


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (padded(4097), 431, "headers-too-large"),
        (request("GET", "/healthz", *[f"X-{n}: 1" for n in range(20)]), 431, "headers-too-large"),
        (request("GET", "/healthz?" + "x" * 1024), 414, "target-too-long"),
        (request("GET", "/healthz?" + "x" * 10_000), 414, "target-too-long"),
        (CHUNKED + b"2;" + b"x" * 20_000, 413, "body-too-large"),
        (CHUNKED + b"2;x\r\n{}\r\n0\r\n" + b"a: b\r\n" * 20, 431, "headers-too-large"),
        (CHUNKED + b"2;x\r\n{}\r\n0\r\na: " + b"b" * 20_000, 413, "body-too-large"),
        (CHUNKED + b"1\r\n \r\n" * 4000, 413, "body-too-large"),
        (CHUNKED + b"2000\r\n" + b" " * 8192 + b"\r\n", 413, "body-too-large"),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else str(value),
)
@pytest.mark.parametrize("piece", [70_000, 1000])
async def test_what_is_beyond_a_bound_is_refused_in_one_piece_or_in_many(server, sent, status, code, piece):
    bounds = {"max_head_bytes": 4096, "max_headers": 20, "max_target_bytes": 1024, "max_body_bytes": 8000}
    async with bind(server.app, **bounds) as (_, port), connect(port) as connection:
        answer, _ = await push(connection, (sent[at : at + piece] for at in range(0, len(sent), piece)))
        check(answer, status, code)
        assert await connection.is_closed()


async def test_what_is_just_within_the_bounds_is_served(server):
    bounds = {"max_head_bytes": 4096, "max_headers": 20, "max_target_bytes": 1024}
    many = request("GET", "/healthz", *[f"X-{n}: 1" for n in range(19)])
    long = request("GET", "/healthz?" + "x" * (1024 - len("/healthz?")))
    async with bind(server.app, **bounds) as (_, port), connect(port) as connection:
        for sent in (padded(4096), many, long, padded(4096) + many + long):
            connection.send(sent)
            for _ in range(sent.count(b"GET ")):
                assert (await connection.answer()).status == 200


async def test_a_large_body_after_others_on_one_connection_is_served(server):
    """What came before a request in the same piece of data is not counted as part of it."""
    body = json.dumps({"labels": {"a": "x" * 60_000}}).encode()
    wrong = request("POST", "/v1/claim", JSON, f"Content-Length: {len(body)}", body=body)
    async with bind(server.app) as (_, port), connect(port) as connection:
        connection.send(wrong * 8, padded(65_000), GET)
        for _ in range(8):
            assert (await connection.answer()).status == 422
        assert (await connection.answer()).status == 200
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET[:10], 408),
        (request("POST", "/v1/claims/7/renew", JSON, "Content-Length: 9", body=b"{"), 408),
        (CHUNKED, 408),
    ],
    ids=["head", "body", "chunks"],
)
async def test_what_comes_too_slowly_is_refused(server, sent, status):
    times = {"head_timeout_seconds": 0.1, "body_timeout_seconds": 0.1}
    async with bind(server.app, **times) as (_, port), connect(port) as connection:
        connection.send(sent)
        answer = await connection.answer()
        check(answer, status, "request-timeout")
        assert "within 0.1 s" in answer.json["detail"]
        assert await connection.is_closed()


async def test_a_head_that_goes_on_byte_by_byte_gets_no_more_time_for_that(server):
    async with bind(server.app, head_timeout_seconds=0.1) as (_, port), connect(port) as connection:
        answer, _ = await push(connection, itertools.chain([GET[:-2], b"X: "], itertools.repeat(b"x", 60_000)))
        check(answer, 408, "request-timeout")


async def test_a_new_connection_that_says_nothing_is_closed_without_a_word(server):
    async with bind(server.app, head_timeout_seconds=0.1) as (_, port), connect(port) as connection:
        assert await connection.is_closed()


async def test_a_connection_that_is_idle_for_long_is_closed(server):
    async with bind(server.app, idle_timeout_seconds=0.1) as (_, port), connect(port) as connection:
        assert (await connection.ask(GET)).status == 200
        assert await connection.is_closed()


async def test_a_client_that_reads_no_answers_is_dropped(server):
    async with bind(server.app, unread_timeout_seconds=0.1, max_pipelined_requests=500) as (serving, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request("GET", "/openapi.json") * 200)

        async def is_dropped():
            return not serving.server_state.connections

        await until(is_dropped)
        writer.close()


async def test_beyond_the_number_of_connections_in_use_a_new_one_is_refused_with_a_hint(server):
    half = request("POST", "/v1/claim", JSON, "Content-Length: 16", body=b'{"pool": ')
    async with bind(server.app, max_connections=3) as (serving, port), connections(port, 3) as busy:
        for connection in busy:
            connection.send(half)

        async def all_are_busy():
            phases = {each.phase for each in serving.server_state.connections}
            return phases == {Phase.BODY}

        await until(all_are_busy)
        async with connect(port) as refused:
            answer = await refused.answer()
            check(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == "1"
            assert await refused.is_closed()
        for connection in busy:
            assert (await connection.ask(b'"none"}')).status == 404


async def test_heads_that_do_not_end_keep_nobody_out(server):
    async with bind(server.app, max_connections=3) as (serving, port), connections(port, 3) as slow:
        for connection in slow:
            connection.send(GET[:20])

        async def all_are_in_their_heads():
            return {each.phase for each in serving.server_state.connections} == {Phase.HEAD}

        await until(all_are_in_their_heads)
        for _ in slow:
            async with connect(port) as other:
                assert (await other.ask(GET)).status == 200
        refused = [asyncio.create_task(connection.answer()) for connection in slow]
        done, waiting = await asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED)
        check(done.pop().result(), 503, "overloaded")
        for task in waiting:
            task.cancel()


async def test_an_idle_connection_makes_room_for_a_new_one(server):
    async with bind(server.app, max_connections=2) as (_, port), connections(port, 2) as (first, second):
        assert (await first.ask(GET)).status == 200
        assert (await second.ask(GET)).status == 200
        second.send(GET[:20])
        async with connect(port) as third:
            assert (await third.ask(GET)).status == 200
            assert await first.is_closed()
            assert (await second.ask(GET[20:])).status == 200


async def heard(attacker):
    """Its answer, for ever if there is none: a reset of the connection may overtake what was written before it."""
    try:
        return await attacker.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        await asyncio.Event().wait()


async def test_many_clients_with_large_heads_hold_no_more_than_the_bound_and_keep_nobody_out(server):
    most = 1024 * 1024
    seen = []
    async with bind(server.app, max_held_bytes=most) as (serving, port), connections(port, 300) as attackers:
        shared = shared_by(serving)
        for connection in attackers:
            connection.send(padded(60_000)[:-4])
            await connection.writer.drain()
            seen.append(shared.held)

        async def are_bounded():
            arriving = [each for each in serving.server_state.connections if each.is_reading]
            return 0 < shared.held <= most and len(arriving) * 59_000 <= most

        await until(are_bounded)
        assert max(seen) <= most
        told, *_ = await first_of(*(heard(each) for each in attackers))
        check(told.result(), 503, "overloaded")
        async with connect(port) as other:
            body = b'{"lease_seconds": 1}'
            small = request("POST", "/v1/claims/7/renew", JSON, f"Content-Length: {len(body)}", body=body)
            assert (await other.ask(small)).status == 422


async def test_half_read_bodies_count_and_the_largest_goes_first(server):
    async with (
        bind(server.app, max_held_bytes=300_000) as (serving, port),
        connections(port, 3) as (small, large, last),
    ):
        head = request("POST", "/v1/claims/7/renew", JSON, "Content-Length: 160000")
        for connection, size in ((small, 50_000), (large, 150_000)):
            connection.send(head, b" " * size)

        async def both_are_held():
            return shared_by(serving).held == 200_000

        await until(both_are_held)
        last.send(head, b" " * 120_000)
        check(await large.answer(), 503, "overloaded")
        assert await large.is_closed()

        async def others_are_held():
            return shared_by(serving).held == 170_000

        await until(others_are_held)
        assert (await small.ask(b" " * 110_000)).json["code"] == "malformed-body"

        async def one_is_held():
            return shared_by(serving).held == 120_000

        await until(one_is_held)


async def test_requests_that_wait_on_one_connection_are_bounded(server):
    async with bind(server.app, max_pipelined_requests=3) as (_, port), connect(port) as connection:
        connection.send(GET * 200)
        answers = [await connection.answer() for _ in range(4)]
        assert [answer.status for answer in answers] == [200] * 4
        assert [answer.headers.get("connection") for answer in answers] == [None, None, None, "close"]
        assert await connection.is_closed()


async def test_what_cannot_be_read_is_refused_after_all_that_was_asked_before(server):
    async with bind(server.app) as (_, port), connect(port) as connection:
        connection.send(GET, GET, b"nonsense\r\n\r\n")
        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
        check(await connection.answer(), 400, "malformed-request")
        assert await connection.is_closed()


async def test_a_body_that_cannot_be_read_is_refused_in_its_turn(server):
    async with bind(server.app) as (_, port), connect(port) as connection:
        connection.send(GET, CHUNKED, b"zz\r\n")
        assert (await connection.answer()).status == 200
        check(await connection.answer(), 400, "malformed-request")
        assert await connection.is_closed()


@pytest.mark.parametrize(
    "behind",
    [
        GET,
        GET * 5,
        GET[:9],
        b"nonsense",
        request("POST", "/v1/claim", JSON, "Content-Length: 300000", body=b" " * 200_000),
    ],
    ids=["one", "too many", "a part", "nonsense", "a body"],
)
async def test_a_client_that_leaves_is_noticed_whatever_it_had_sent_after_the_request_that_is_served(server, behind):
    stream = request("GET", "/v1/events", "Accept: text/event-stream")
    async with bind(server.app, max_pipelined_requests=3) as (serving, port):
        async with connect(port) as connection:
            connection.send(stream)
            assert (await connection.answer()).status == 200
            connection.send(behind)
            await connection.writer.drain()

        async def is_noticed():
            return not serving.server_state.tasks

        await until(is_noticed)


async def test_a_body_that_nobody_reads_ends_with_its_connection(server):
    """The answer is given at once; what comes after it is dropped, up to the size of a body."""
    refused = request("POST", "/v1/claim", "Content-Type: text/plain", "Content-Length: 50000000")
    async with bind(server.app, max_body_bytes=100_000) as (_, port), connect(port) as connection:
        assert (await connection.ask(refused)).status == 413
        with contextlib.suppress(ConnectionError):
            for _ in range(50_000_000 // 65536):
                connection.send(b"x" * 65536)
                await connection.writer.drain()
        assert await connection.is_closed()


FRAGMENTS = [
    *(GET, GET[:-2], GET[:9], CHUNKED, b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"2\r\n{}\r\n", b"zz", b"\0", b"X: 1\r\n"),
    request("POST", "/v1/claim", JSON, "Content-Length: 16", body=b'{"pool": "none"}'),
    request(
        "POST", "/v1/claim", JSON, "Content-Length: 16", "Connection: Upgrade", "Upgrade: h2c", body=b'{"pool": "none"}'
    ),
    request("POST", "/v1/claim", JSON, "Content-Length: 5", "Expect: 100-continue"),
    request("POST", "/v1/claim", "Content-Length: 3"),
    request("HEAD", "/v1/pools", "Connection: close"),
    request("GET", "/v1/events", "Accept: text/event-stream"),
    padded(5000),
]


@pytest_asyncio.fixture(loop_scope="module")
async def narrow(server):
    async with bind(server.app, max_head_bytes=4096, max_pipelined_requests=2) as (serving, port):
        yield serving, port


@given(
    sent=st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), min_size=1, max_size=12).map(b"".join),
    piece=st.sampled_from([1, 7, 100, 100_000]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_sent_makes_nothing_fail_and_leaves_nothing_behind(narrow, caplog, sent, piece):
    serving, port = narrow
    with capture_logs() as logged:
        async with connect(port) as connection:
            with contextlib.suppress(ConnectionError):
                for at in range(0, min(len(sent), 3000), piece):
                    connection.send(sent[at : at + piece])
                    await asyncio.sleep(0)
                connection.send(sent[3000:])
                await connection.writer.drain()

        async def is_gone():
            return not serving.server_state.connections and not serving.server_state.tasks

        await until(is_gone)
    shared = shared_by(serving)
    assert (shared.held, shared._open) == (0, set())
    assert not [each for each in logged if each["log_level"] in {"error", "critical"}]
    assert not [each for each in caplog.records if each.levelname in {"ERROR", "CRITICAL"}]
