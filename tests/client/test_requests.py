"""How the Python clients send a request: with which token, how often, and what they raise."""

import sys

import httpx
import pytest

from emberpool.client import Client, EmberpoolError, Invalid, Misconfigured, NotFound, NoVm, Unavailable, Unreachable
from tests.support.python_client import Scripted, call, entered

POOLS = httpx.Response(200, json={"items": [], "next": None})


def problem(status: int, code: str, /, *, headers: dict[str, str] | None = None, **more) -> httpx.Response:
    body = {"type": "x", "title": "A title", "status": status, "detail": "a sentence", "code": code, **more}
    return httpx.Response(status, json=body, headers=headers)


def away(seconds: int, code: str = "database-unavailable") -> httpx.Response:
    return problem(503, code, headers={"Retry-After": str(seconds)})


@pytest.fixture
def made(kind):
    """A client with that transport, and the pauses that it makes, which take no time."""

    def made(transport, **given):
        client = kind("http://emberpool", transport=transport, **given)
        pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        client._sleep = pauses.append if kind is Client else sleep
        return client, pauses

    return made


async def test_a_broken_connection_is_tried_again_with_longer_pauses_and_the_same_key(made):
    transport = Scripted(
        httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.Response(201, json={"id": "c"})
    )
    client, pauses = made(transport, token="secret")
    assert await call(client.create_claim, {"pool": "web"}, idempotency_key="k") == {"id": "c"}
    assert {request.headers["idempotency-key"] for request in transport.requests} == {"k"}
    assert {request.headers["authorization"] for request in transport.requests} == {"Bearer secret"}
    assert len(pauses) == 3
    assert pauses == sorted(pauses)


async def test_a_503_is_tried_again_when_the_service_says(made):
    client, pauses = made(Scripted(away(3), away(4), POOLS))
    assert await call(client.list_pools) == {"items": [], "next": None}
    assert [3 <= pauses[0] <= 3.3, 4 <= pauses[1] <= 4.4, len(pauses)] == [True, True, 2]


@pytest.mark.parametrize(
    "refused",
    [
        away(60),  # longer than the client's patience
        away(1, code="no-warm-vm"),  # an answer, and no outage
        problem(503, "cluster-error"),  # it names no time
    ],
)
async def test_a_503_that_waiting_would_not_help_is_raised_at_once(made, refused):
    transport = Scripted(refused)
    client, pauses = made(transport)
    with pytest.raises(Unavailable, match="a sentence"):
        await call(client.create_claim, {"pool": "web"})
    assert (len(transport.requests), pauses) == (1, [])


async def test_a_claim_that_may_wait_is_tried_again_while_there_is_no_vm(made):
    bound = httpx.Response(201, json={"id": "c", "state": "bound"})
    transport = Scripted(away(20, "no-warm-vm"), away(20, "no-warm-vm"), bound)
    client, pauses = made(transport)
    assert await call(client.obtain, {"pool": "web"}, wait=60) == {"id": "c", "state": "bound"}
    assert len(pauses) == 2
    assert len({request.headers["idempotency-key"] for request in transport.requests}) == 1
    assert len({request.content for request in transport.requests}) == 1


async def test_a_claim_that_gets_no_vm_in_time_is_released_and_told(made):
    pending = {"id": "c", "state": "pending", "reason": "none is ready", "vm": None, "ended_at": None}
    transport = Scripted(httpx.Response(202, json=pending))
    client, _ = made(transport)
    with pytest.raises(NoVm, match=r"claim c got no VM in 0.1 s; it is pending: none is ready"):
        async with entered(client.claim("web", wait=0.1)):
            raise AssertionError("there is no VM")
    methods = [request.method for request in transport.requests]
    assert (methods[0], methods[-1], set(methods[1:-1])) == ("POST", "DELETE", {"GET"})


async def test_an_outcome_that_the_service_does_not_know_is_looked_up_by_the_key(made):
    bound = httpx.Response(201, json={"id": "c", "state": "bound"})
    transport = Scripted(away(1, "outcome-unknown"), bound)
    client, _ = made(transport)
    assert (await call(client.obtain, {"pool": "web"}))["id"] == "c"
    first, second = transport.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


async def test_an_error_has_what_the_problem_says(made):
    errors = [{"field": "size", "message": "must be 0 or more"}, {"field": "template", "message": "is missing"}]
    client, _ = made(Scripted(problem(422, "invalid-request", errors=errors)))
    with pytest.raises(Invalid) as caught:
        await call(client.put_pool, "web", {})
    error = caught.value
    assert (error.status, error.code, error.title, error.detail) == (422, "invalid-request", "A title", "a sentence")
    assert (error.field, [each.message for each in error.problems]) == ("size", ["must be 0 or more", "is missing"])
    assert error.problem["type"] == "x"
    client, _ = made(Scripted(problem(404, "pool-not-found")))
    with pytest.raises(NotFound):
        await call(client.get_pool, "web")


@pytest.mark.parametrize("other", [httpx.Response(200, text="<html>"), httpx.Response(200, json=[1])])
async def test_what_is_another_service_is_told(made, other):
    client, pauses = made(Scripted(other))
    with pytest.raises(Unreachable, match="http://emberpool is not an Emberpool service: GET /v1/pools gave HTTP 200"):
        await call(client.list_pools)
    assert pauses == []


async def test_what_a_proxy_says_while_the_service_is_away_is_tried_again(made):
    client, _ = made(Scripted(httpx.Response(502, text="bad gateway"), httpx.Response(504), POOLS))
    assert (await call(client.list_pools))["items"] == []


async def test_a_name_does_not_leave_its_place_in_the_path(made):
    transport = Scripted(problem(404, "pool-not-found"))
    client, _ = made(transport)
    with pytest.raises(NotFound):
        await call(client.get_pool, "../claims?x")
    assert transport.requests[0].url.raw_path == b"/v1/pools/..%2Fclaims%3Fx"


async def test_a_manifest_is_sent_as_it_is(made):
    transport = Scripted(httpx.Response(200, json={"documents": []}))
    client, _ = made(transport)
    await call(client.apply_manifests, "kind: VirtualMachine", dry_run=True)
    (request,) = transport.requests
    assert (request.content, request.headers["content-type"]) == (b"kind: VirtualMachine", "application/yaml")
    assert request.url.query == b"dry_run=true"


async def test_a_token_in_a_file_is_read_again_when_it_is_refused(made, tmp_path):
    file = tmp_path / "token"
    file.write_text("one\n", encoding="utf-8")
    transport = Scripted(POOLS, problem(401, "unauthenticated"), POOLS)
    client, _ = made(transport, token_file=file)
    await call(client.list_pools)
    file.write_text("two\n", encoding="utf-8")
    await call(client.list_pools)
    assert transport.tokens == ["Bearer one", "Bearer one", "Bearer two"]


async def test_a_command_prints_the_token(made):
    transport = Scripted(POOLS)
    client, _ = made(transport, token_command=[sys.executable, "-c", "print('printed')"])
    await call(client.list_pools)
    assert transport.requests[0].headers["authorization"] == "Bearer printed"


async def test_a_command_that_fails_is_told_with_its_words(made):
    client, _ = made(Scripted(POOLS), token_command=[sys.executable, "-c", "raise SystemExit('no vault here')"])
    with pytest.raises(Misconfigured, match="ended with 1: no vault here"):
        await call(client.list_pools)


@pytest.mark.parametrize(
    ("environment", "address", "token"),
    [
        ({}, "http://127.0.0.1:8080", None),
        ({"EMBERPOOL_URL": "https://pool.example/"}, "https://pool.example", None),
        ({"EMBERPOOL_SERVER": "https://pool.example", "EMBERPOOL_API_TOKEN": "t"}, "https://pool.example", "Bearer t"),
    ],
)
async def test_the_environment_says_where_the_service_is(kind, monkeypatch, environment, address, token):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    transport = Scripted(POOLS)
    client = kind(transport=transport)
    await call(client.list_pools)
    (request,) = transport.requests
    assert str(request.url) == f"{address}/v1/pools"
    assert request.headers.get("authorization") == token


@pytest.mark.parametrize("given", [{"url": "nowhere"}, {"token": "to\nken"}, {"token": "a", "token_file": "b"}])
def test_what_cannot_be_used_is_told_before_anything_is_sent(kind, given):
    with pytest.raises(Misconfigured):
        kind(**given)


async def test_every_error_of_the_client_has_one_ancestor(made):
    client, _ = made(Scripted(httpx.UnsupportedProtocol))
    with pytest.raises(EmberpoolError, match="http://emberpool: broken"):
        await call(client.list_pools)
