"""Lists wait for each other, on connections of their own, and for nobody else; nobody else waits for them."""

import asyncio

import pytest
import pytest_asyncio

from app.api import lists
from tests.support.service import Refused, check, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
LISTS = ("claims", "vms", "events", "pools", "snapshots", "preloads", "nodes", "paths")


@pytest_asyncio.fixture(loop_scope="module")
async def held(server):
    """Every turn of a list is taken."""
    turns = [server.services.lists.turn() for _ in range(server.services.settings.list_connections)]
    for turn in turns:
        await turn.__aenter__()
    yield
    for turn in turns:
        await turn.__aexit__(None, None, None)


async def test_a_list_is_as_its_schema_says(server):
    await server.fill("listed", size=2)
    await server.claim_one("listed", labels={"job": "1"})
    for name in LISTS:
        answer = await server.client.get(f"/v1/{name}", params={"limit": 1})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        page = answer.json()
        assert set(page) >= {"items", "next"}
    page = (await server.client.get("/v1/vms", params={"limit": 1})).json()
    assert page["next"] is not None
    rest = (await server.client.get("/v1/vms", params={"limit": 500, "after": page["next"]})).json()
    assert page["items"][0]["id"] not in {vm["id"] for vm in rest["items"]}


async def test_claims_and_readiness_do_not_wait_for_lists(server, held):
    await server.fill("calm", size=1)
    await server.claim_one("calm")
    assert (await server.client.get("/readyz")).status_code == 200
    assert (await server.client.get("/v1/pools/calm")).status_code == 200


async def test_a_list_waits_for_its_turn(server):
    turns = [server.services.lists.turn() for _ in range(server.services.settings.list_connections)]
    for turn in turns:
        await turn.__aenter__()
    waiting = asyncio.create_task(server.client.get("/v1/claims"))

    async def waits():
        return bool(server.services.lists._turns._waiters)

    await until(waits)
    assert not waiting.done()
    for turn in turns:
        await turn.__aexit__(None, None, None)
    assert (await waiting).status_code == 200


@pytest.mark.parametrize("name", LISTS)
async def test_a_list_that_gets_no_turn_is_told_to_come_back(server, held, monkeypatch, name):
    monkeypatch.setattr(lists, "_WAIT_SECONDS", 0.05)
    answer = await server.client.get(f"/v1/{name}")
    check(answer, Refused(503, "too-many-lists", says="other lists were read"))
    assert int(answer.headers["retry-after"]) >= 1
