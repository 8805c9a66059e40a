"""The history over HTTP, as pages and as a stream."""

import asyncio

import pytest

from tests.support.event_stream import follow, take
from tests.support.service import Refused, check, listen, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_history_is_read_a_page_at_a_time(server):
    await server.fill("paged", size=1)
    whole = (await server.client.get("/v1/events", params={"pool": "paged", "limit": 500})).json()
    assert [event["type"] for event in whole["items"]][:2] == ["pool.created", "vm.planned"]
    seen, after = [], {}
    while True:
        page = (await server.client.get("/v1/events", params={"pool": "paged", "limit": 2, **after})).json()
        if not page["items"]:
            break
        seen += page["items"]
        after = {"after": page["next"]}
    assert seen[: len(whole["items"])] == whole["items"]
    assert page["next"] == after["after"]  # where a later look goes on


async def test_the_newest_events_come_first_where_that_is_asked_for(server):
    await server.fill("backwards", size=1)
    whole = (await server.client.get("/v1/events", params={"pool": "backwards", "limit": 500})).json()["items"]
    seen, after = [], {}
    while True:
        query = {"pool": "backwards", "limit": 2, "order": "newest", **after}
        page = (await server.client.get("/v1/events", params=query)).json()
        seen += page["items"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == whole[::-1]
    stream = await server.client.get("/v1/events", params={"order": "newest"}, headers={"Accept": "text/event-stream"})
    check(stream, Refused(422, "invalid-request", "order", says="leave order out"))
    check(
        await server.client.get("/v1/events", params={"order": "desc"}),
        Refused(422, "invalid-request", "order", says="'oldest' or 'newest'"),
    )


async def test_the_history_is_filtered_by_kind(server):
    await server.fill("kinds", size=1)
    await server.claim_one("kinds")
    for kind in ("pool", "vm", "claim"):
        found = (await server.client.get("/v1/events", params={"pool": "kinds", "kind": kind})).json()["items"]
        assert found or kind == "claim"
        assert {event["type"].partition(".")[0] for event in found} <= {kind}
    check(
        await server.client.get("/v1/events", params={"kind": "tree"}),
        Refused(422, "invalid-request", "kind", says="'pool', 'vm', 'claim'"),
    )


async def test_a_stream_tells_what_happens_from_now_on(server):
    await server.put("before", size=0)
    async with listen(server.app) as client, follow(client, kind="pool") as events:
        following = asyncio.create_task(take(events, 1))

        async def followed():
            return server.services.tail._followers

        await until(followed)
        # The stream's own look at the end of the history is not ours to see: whatever comes after one event is new.
        while not following.done():
            await server.put("now", size=0)
            await server.client.post("/v1/pools/now/pause")
            await server.client.post("/v1/pools/now/resume")
            await asyncio.wait([following], timeout=0.05)
        ((_, kind, data),) = await following
    assert data["pool"] == "now"
    assert kind == data["type"]


async def test_a_broken_stream_goes_on_where_it_broke(server):
    await server.fill("resumes", size=2)
    whole = (await server.client.get("/v1/events", params={"pool": "resumes", "limit": 500})).json()["items"]
    async with listen(server.app) as client:
        async with follow(client, after="0-0", pool="resumes") as events:
            first = await take(events, 3)
        assert [data for _, _, data in first] == whole[:3]
        last_id, last_type, last = first[-1]
        assert (last_id, last_type) == (last["cursor"], last["type"])
        async with follow(client, headers={"Last-Event-ID": last_id}, pool="resumes") as events:
            rest = await take(events, len(whole) - 3)
    assert [data for _, _, data in rest] == whole[3:]


async def test_a_stream_tells_of_its_pool_and_kind_alone(server):
    await server.fill("quiet", size=0)
    await server.fill("loud", size=1)
    await server.client.post("/v1/pools/quiet/pause")
    async with listen(server.app) as client, follow(client, after="0-0", pool="quiet", kind="pool") as events:
        found = await take(events, 2)
    assert [(kind, data["pool"]) for _, kind, data in found] == [("pool.created", "quiet"), ("pool.paused", "quiet")]


async def test_a_stream_outlives_the_clients_that_leave(server):
    async with listen(server.app) as client:
        async with follow(client, after="0-0"):
            pass

        async def left():
            return server.services.tail._followers == 0

        await until(left)


@pytest.mark.parametrize(
    "cursor", ["x", "1", "1-", "-1-1", "1-2-3", "18446744073709551616-1", "1-9223372036854775808", "٣-٣"]
)
async def test_a_cursor_that_is_none_is_refused(server, cursor):
    for field, request in (
        ("after", {"params": {"after": cursor}}),
        ("Last-Event-ID", {"headers": {"Last-Event-ID": cursor.encode()}}),
    ):
        check(await server.client.get("/v1/events", **request), Refused(422, "invalid-request", field))
