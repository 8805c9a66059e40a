"""Each fault that can be ordered, seen from a client."""

import asyncio
import json

import aiohttp
import pytest

from tests.support.devcluster_bench import INSTANCES, MACHINES, SUBRESOURCES, machine, until

WATCH = MACHINES + "?watch=true&resourceVersion=0"


async def test_an_error_strikes_as_often_as_ordered_and_changes_nothing(bench):
    await bench.order(
        kind="error",
        verbs=["create"],
        resource="virtualmachines",
        count=2,
        settings={"status": 429, "retry_after": 3, "message": "slow down"},
    )

    for _ in range(2):
        async with bench.session.post(bench.cluster.url + MACHINES, json=machine("x")) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
            body = await answer.json()
            assert (body["kind"], body["reason"], body["message"]) == ("Status", "TooManyRequests", "slow down")
    assert (await bench.get(MACHINES))["items"] == []
    await bench.create(machine("x"))


@pytest.mark.parametrize(
    "matcher", [{"name": "a*"}, {"labels": "tier=gold"}, {"namespace": "def*", "name": "ab"}, {"verbs": ["get"]}]
)
async def test_a_fault_keeps_to_what_it_matches(bench, matcher):
    await bench.create(machine("ab", labels={"tier": "gold"}), machine("b", labels={"tier": "tin"}))
    await bench.order(kind="error", settings={"status": 503}, resource="virtualmachines", **matcher)

    assert (await bench.call("GET", f"{MACHINES}/ab"))[0] == 503
    assert (await bench.call("GET", f"{INSTANCES}"))[0] == 200
    other = (await bench.call("GET", f"{MACHINES}/b"))[0]
    assert other == (503 if matcher == {"verbs": ["get"]} else 200)


async def test_a_create_is_matched_by_what_its_body_names(bench):
    await bench.order(kind="error", verbs=["create"], name="bad-*", settings={"status": 503})
    await bench.order(kind="error", verbs=["create"], labels="tier=gold", settings={"status": 500})

    assert (await bench.call("POST", MACHINES, machine("bad-1")))[0] == 503
    assert (await bench.call("POST", MACHINES, machine("good", labels={"tier": "gold"})))[0] == 500
    assert (await bench.call("POST", MACHINES, machine("good", labels={"tier": "tin"})))[0] == 201


async def test_a_lifted_fault_strikes_no_more(bench):
    fault = await bench.order(kind="error", resource="virtualmachines")
    assert (await bench.call("GET", MACHINES))[0] == 500

    assert (await bench.get("/devcluster/v1/faults"))["items"][0]["struck"] == 1
    assert (await bench.call("DELETE", f"/devcluster/v1/faults/{fault}"))[0] == 200
    assert (await bench.call("GET", MACHINES))[0] == 200
    assert (await bench.call("DELETE", f"/devcluster/v1/faults/{fault}"))[0] == 404


async def test_a_fault_with_a_probability_strikes_some_requests(bench):
    await bench.order(kind="error", resource="virtualmachines", probability=0.5)

    statuses = [(await bench.call("GET", MACHINES))[0] for _ in range(60)]
    assert {200, 500} == set(statuses)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ({"kind": "sunspots"}, "kind"),
        ({}, "kind"),
        ({"kind": "error", "speed": 1}, "speed"),
        ({"kind": "error", "count": 0}, "count"),
        ({"kind": "error", "count": "two"}, "count"),
        ({"kind": "error", "probability": 2}, "probability"),
        ({"kind": "error", "verbs": [1]}, "verbs"),
        ({"kind": "error", "name": 1}, "name"),
        ({"kind": "error", "labels": "=x"}, "identifier"),
        ({"kind": "delay", "settings": {"seconds": "long"}}, "seconds"),
        ({"kind": "import-fails", "settings": {"percent": 101}}, "percent"),
    ],
)
async def test_an_order_that_is_not_understood_is_refused(bench, order, told):
    status, body = await bench.call("POST", "/devcluster/v1/faults", order)

    assert (status, body["reason"]) == (400, "BadRequest")
    assert told in body["message"]
    assert (await bench.get("/devcluster/v1/faults"))["items"] == []


async def test_a_delay_lets_the_request_through_later(bench):
    await bench.order(kind="delay", verbs=["list"], resource="virtualmachines", settings={"seconds": 5}, count=1)
    waiting = asyncio.create_task(bench.call("GET", MACHINES))
    await until(lambda: bench.cluster.faults.all()[0].struck == 1)

    await bench.clock.advance(4)
    assert not waiting.done()
    await bench.clock.advance(2)
    assert (await waiting)[0] == 200


async def test_a_hang_ends_when_it_is_lifted(bench):
    fault = await bench.order(kind="hang", verbs=["create"], resource="virtualmachines")
    waiting = asyncio.create_task(bench.call("POST", MACHINES, machine("x")))
    await until(lambda: bench.cluster.faults.all()[0].struck == 1)
    await bench.clock.advance(3600)
    assert not waiting.done()

    await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    with pytest.raises(aiohttp.ClientConnectionError):
        await waiting
    assert (await bench.get(MACHINES))["items"] == []


@pytest.mark.parametrize(("kind", "left"), [("reset-before", []), ("reset-after", ["x"])])
async def test_a_reset_loses_the_answer_with_or_without_the_effect(bench, kind, left):
    await bench.order(kind=kind, verbs=["create"], resource="virtualmachines", count=1)

    with pytest.raises(aiohttp.ClientConnectionError):
        await bench.call("POST", MACHINES, machine("x"))
    names = [item["metadata"]["name"] for item in (await bench.get(MACHINES))["items"]]
    assert names == left


REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


async def review(bench, verb, resource):
    """Status of the answer to the question whether we may, and what it says."""
    attributes = {"verb": verb, "group": "kubevirt.io", "resource": resource, "namespace": "default"}
    status, body = await bench.call("POST", REVIEWS, {"spec": {"resourceAttributes": attributes}})
    return status, body.get("status", {}) if isinstance(body.get("status"), dict) else {}


async def test_a_right_can_be_taken_and_a_review_says_so(bench):
    assert await review(bench, "create", "virtualmachines") == (201, {"allowed": True})
    fault = await bench.order(kind="forbidden", verbs=["create"], resource="virtualmachines")

    status, body = await bench.call("POST", MACHINES, machine("x"))
    assert (status, body["reason"]) == (403, "Forbidden")
    assert 'User "system:admin" cannot create resource "virtualmachines" in API group "kubevirt.io"' in body["message"]
    assert await review(bench, "create", "virtualmachines") == (201, {"allowed": False})
    assert await review(bench, "list", "virtualmachines") == (201, {"allowed": True})
    await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.create(machine("x"))


async def test_where_all_rights_are_taken_the_review_is_refused_too(bench):
    await bench.order(kind="forbidden")
    assert (await review(bench, "create", "virtualmachines"))[0] == 403
    assert (await bench.call("GET", "/api/v1/nodes"))[0] == 403


async def test_a_review_without_a_question_is_refused(bench):
    assert (await bench.call("POST", REVIEWS, {"spec": {}}))[0] == 400


async def test_a_kind_can_be_missing(bench):
    await bench.order(kind="unserved", resource="virtualmachines")
    assert await bench.call("GET", MACHINES) == (404, "404 page not found\n")
    assert (await bench.call("GET", INSTANCES))[0] == 200


async def test_a_busy_server_takes_so_many_at_a_time_and_sends_others_away_once_its_queue_is_full(bench):
    await bench.order(
        kind="busy", resource="virtualmachines", settings={"seats": 1, "seconds": 2, "queue": 1, "retry_after": 3}
    )
    calls = [asyncio.create_task(bench.call("GET", MACHINES)) for _ in range(3)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    (sent_away,) = done
    status, body = await sent_away
    assert (status, body["reason"], body["details"]) == (429, "TooManyRequests", {"retryAfterSeconds": 3})
    await bench.clock.advance(2)
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await bench.clock.advance(2)
    assert [(await call)[0] for call in waiting] == [200, 200]


async def test_a_quota_on_objects_refuses_with_403(bench):
    await bench.order(kind="quota", resource="virtualmachines", settings={"limit": 1, "name": "q"})
    await bench.create(machine("one"))

    status, body = await bench.call("POST", MACHINES, machine("two"))
    counted = "count/virtualmachines.kubevirt.io"
    told = (
        f'virtualmachines.kubevirt.io "two" is forbidden: exceeded quota: q, requested: {counted}=1, used: {counted}=1, '
        f"limited: {counted}=1"
    )
    assert (status, body["message"], body["reason"]) == (403, told, "Forbidden")


async def test_a_quota_on_memory_lets_the_vm_in_and_keeps_its_pod_out(bench):
    fault = await bench.order(kind="quota", settings={"memory": "300Mi", "name": "q"})
    await bench.create(machine("big"))
    await bench.clock.advance(10)

    condition = await bench.condition("big", "Synchronized")
    assert (condition["status"], condition["reason"]) == ("False", "FailedCreate")
    # Exactly the figure that KubeVirt v1.9.0's pod asked of a real quota.
    assert condition["message"].endswith(
        "is forbidden: exceeded quota: q, requested: requests.memory=1389760192, used: requests.memory=0, "
        "limited: requests.memory=300Mi"
    )
    assert (await bench.status("big"))[0] == "Starting"

    await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.clock.advance(60)
    assert await bench.status("big") == ("Running", "")


async def test_a_hung_webhook_fails_writes_after_its_timeout_and_leaves_reads(bench):
    await bench.create(machine("x", strategy="Halted"))
    await bench.order(kind="webhook-hang")
    waiting = asyncio.create_task(bench.call("POST", MACHINES, machine("y")))
    await until(lambda: bench.cluster.faults.all()[0].struck == 1)
    await bench.clock.advance(9)
    assert not waiting.done()
    await bench.clock.advance(2)

    status, body = await waiting
    assert (status, body["reason"]) == (500, "InternalError")
    assert body["message"].endswith("context deadline exceeded")
    assert (await bench.call("GET", f"{MACHINES}/x"))[0] == 200
    assert (await bench.call("DELETE", f"{MACHINES}/x"))[0] == 200


async def test_a_dead_virt_api_fails_writes_and_subresources_at_once(bench):
    await bench.create(machine("x", strategy="Manual"))
    await bench.order(kind="virt-api-down")

    status, body = await bench.call("POST", MACHINES, machine("y"))
    assert (status, body["message"].rsplit(": ", 1)[1]) == (500, "connection refused")
    assert (await bench.call("PUT", f"{SUBRESOURCES}/virtualmachines/x/start"))[0] == 503


class Reader:
    """A watch read in the background."""

    def __init__(self, bench, path=WATCH):
        self.bench = bench
        self.path = path
        self.events = []
        self.ended = None

    async def __aenter__(self):
        self._response = await self.bench.session.get(self.bench.cluster.url + self.path)
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        self._response.close()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self):
        try:
            async for line in self._response.content:
                self.events.append(json.loads(line))
            self.ended = "cleanly"
        except aiohttp.ClientPayloadError:
            self.ended = "broken"

    @property
    def names(self):
        return [event["object"]["metadata"].get("name") for event in self.events if event["type"] == "ADDED"]


@pytest.mark.parametrize("running", [False, True])
async def test_a_watch_breaks_in_the_middle(bench, running):
    order = {"kind": "watch-break", "resource": "virtualmachines", "settings": {"running": running, "seconds": 3}}
    if not running:
        await bench.order(**order, count=1)
    async with Reader(bench) as reader:
        await bench.create(machine("x"))
        if running:
            await bench.order(**order)
        else:
            await until(lambda: reader.names == ["x"])
            await bench.clock.advance(4)
        await until(lambda: reader.ended)
    assert (reader.ended, reader.names) == ("broken", ["x"])


@pytest.mark.parametrize("running", [False, True])
async def test_a_silent_watch_stays_open_and_says_nothing(bench, running):
    order = {"kind": "watch-silent", "resource": "virtualmachines", "settings": {"running": running}}
    if not running:
        await bench.order(**order, count=1)
    async with Reader(bench, WATCH + "&allowWatchBookmarks=true") as silent:
        if running:
            await bench.order(**order)
            await bench.call("DELETE", "/devcluster/v1/faults")
        async with Reader(bench) as other:
            await bench.create(machine("x"))
            await bench.clock.advance(300)
            await until(lambda: other.names == ["x"])
        assert (silent.events, silent.ended) == ([], None)


async def test_an_expired_watch_ends_in_410_until_the_client_lists_again(bench):
    await bench.create(machine("x"))
    listed = (await bench.get(MACHINES))["metadata"]["resourceVersion"]
    await bench.create(machine("y"))
    await bench.call("POST", "/devcluster/v1/compact")

    async with Reader(bench, f"{MACHINES}?watch=true&resourceVersion={listed}") as reader:
        await until(lambda: reader.ended)
    assert [event["type"] for event in reader.events] == ["ERROR"]
    assert (reader.events[0]["object"]["code"], reader.events[0]["object"]["reason"]) == (410, "Expired")

    again = (await bench.get(MACHINES))["metadata"]["resourceVersion"]
    async with Reader(bench, f"{MACHINES}?watch=true&resourceVersion={again}") as reader:
        await bench.create(machine("z"))
        await until(lambda: reader.names == ["z"])


async def test_a_running_watch_can_be_told_that_it_is_too_old(bench):
    async with Reader(bench) as reader:
        await bench.order(kind="watch-expire", settings={"running": True})
        await until(lambda: reader.ended)
    assert [event["object"]["code"] for event in reader.events] == [410]


async def test_a_vm_that_never_boots_stays_on_its_way_until_the_fault_is_lifted(bench):
    await bench.order(kind="never-boots", name="x")
    await bench.boot(machine("x"), machine("y"))
    assert await bench.status("x") == ("Starting", "GuestNotRunning")
    assert await bench.status("y") == ("Running", "")

    await bench.call("DELETE", "/devcluster/v1/faults")
    await bench.clock.advance(60)
    assert await bench.status("x") == ("Running", "")


async def test_a_guest_fault_with_a_count_strikes_that_many_vms(bench):
    await bench.order(kind="boot-fails", count=1)
    await bench.create(machine("x"), machine("y"))
    await bench.clock.advance(17)

    assert {(await bench.status(name))[0] for name in ("x", "y")} == {"Running", "CrashLoopBackOff"}
    assert (await bench.get("/devcluster/v1/faults"))["items"][0]["struck"] == 1


async def test_a_crash_loop_backs_off_and_recovers(bench):
    await bench.order(kind="boot-fails", name="x")
    await bench.create(machine("x"))
    await bench.clock.advance(16)
    status = (await bench.get(f"{MACHINES}/x"))["status"]
    assert status["printableStatus"] == "CrashLoopBackOff"
    assert status["startFailure"]["consecutiveFailCount"] == 1

    await bench.call("DELETE", "/devcluster/v1/faults")
    await bench.clock.advance(60)
    status = (await bench.get(f"{MACHINES}/x"))["status"]
    assert (status["printableStatus"], "startFailure" in status) == ("Running", False)


async def test_a_lost_agent_takes_readiness_with_it_and_comes_back(bench):
    await bench.boot(machine("x"), machine("bare", probe=False))
    await bench.order(kind="agent-lost")
    await bench.clock.advance(1)
    assert await bench.condition("x", "AgentConnected") is None
    assert await bench.status("x") == ("Running", "ContainersNotReady")
    assert await bench.status("bare") == ("Running", "")

    await bench.call("DELETE", "/devcluster/v1/faults")
    await bench.clock.advance(60)
    assert (await bench.condition("x", "AgentConnected"))["status"] == "True"
    assert await bench.status("x") == ("Running", "")


async def test_without_a_probe_readiness_precedes_the_guest(bench):
    await bench.order(kind="no-agent")
    await bench.boot(machine("bare", probe=False), machine("probed"))

    assert await bench.status("bare") == ("Running", "")
    assert await bench.condition("bare", "AgentConnected") is None
    assert await bench.status("probed") == ("Running", "ContainersNotReady")


async def test_a_guest_that_dies_fails_its_vmi_and_the_vm_starts_another(bench):
    await bench.boot(machine("x"))
    first = (await bench.get(f"{INSTANCES}/x"))["metadata"]["uid"]
    await bench.order(kind="guest-dies", name="x", count=1)
    await bench.clock.advance(0.1)
    assert (await bench.get(f"{INSTANCES}/x"))["status"]["phase"] == "Failed"

    await bench.clock.advance(60)
    vmi = await bench.get(f"{INSTANCES}/x")
    assert (vmi["status"]["phase"], vmi["metadata"]["uid"] == first) == ("Running", False)


async def test_a_flapping_vm_is_ready_and_not_ready_by_turns(bench):
    await bench.boot(machine("x"))
    await bench.order(kind="flapping", name="x", settings={"seconds": 2})
    seen = []
    await bench.clock.advance(0.5)
    for _ in range(4):
        await bench.clock.advance(2)
        seen.append((await bench.condition("x", "Ready"))["status"])

    assert seen == ["False", "True", "False", "True"]


async def test_an_image_that_cannot_be_pulled_is_tried_again_and_again(bench):
    await bench.order(kind="image-error", settings={"message": "no such image"})
    await bench.create(machine("x"))
    seen = []
    for _ in range(30):
        await bench.clock.advance(1)
        seen.append((await bench.status("x"))[0])
    assert {"ErrImagePull", "ImagePullBackOff"} < set(seen)

    await bench.call("DELETE", "/devcluster/v1/faults")
    await bench.clock.advance(60)
    assert await bench.status("x") == ("Running", "")


async def test_a_restarted_api_server_comes_back_with_the_same_objects(bench):
    await bench.boot(machine("x"))
    async with Reader(bench) as reader:
        await until(lambda: reader.names == ["x"])
        await bench.call("POST", "/devcluster/v1/restart", {"down": 5, "starting": 4})
        await bench.clock.advance(1)
        await until(lambda: reader.ended)
    assert reader.ended == "broken"
    with pytest.raises(aiohttp.ClientConnectionError):
        await bench.call("GET", MACHINES)

    await bench.clock.advance(5)
    assert (await bench.call("GET", MACHINES))[0] == 503
    assert (await bench.call("GET", "/readyz"))[0] == 500
    await bench.clock.advance(4)
    assert await bench.status("x") == ("Running", "")
