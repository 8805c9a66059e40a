"""The service as the commands see it, where it does not answer as it should."""

import httpx
import pytest

from app.cli.client import claim as claiming
from app.cli.client.get import follow
from app.cli.client.listings import LISTINGS, Kind
from app.cli.client.printing import Output, seconds, size
from app.cli.client.progress import NotReady, progress_of, watch_progress
from app.cli.client.service import Service, ServiceRefused, ServiceUnreachable
from tests.support.flaky_transport import Flaky


def service(transport, *, token=None):
    pauses = []
    return Service("http://emberpool", token, transport=transport, pause=pauses.append), pauses


def answer(code=200, /, **body):
    return httpx.Response(code, json=body)


def test_a_broken_connection_is_tried_again_with_the_same_key():
    transport = Flaky(httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, answer=answer(201, id="c"))
    asked, pauses = service(transport, token="secret")
    assert asked.ask("POST", "/v1/claim", json={"pool": "web"}, headers={"Idempotency-Key": "k"}) == {"id": "c"}
    assert {request.headers["idempotency-key"] for request in transport.requests} == {"k"}
    assert {request.headers["authorization"] for request in transport.requests} == {"Bearer secret"}
    assert len(pauses) == 3
    assert pauses == sorted(pauses)


def test_one_that_stays_broken_is_told():
    transport = Flaky(*[httpx.ConnectError] * 9, answer=answer())
    asked, _ = service(transport)
    with pytest.raises(ServiceUnreachable, match="http://emberpool: broken; start the service"):
        asked.get("/v1/pools")
    assert len(transport.requests) == 5


@pytest.mark.parametrize(
    "other",
    [httpx.Response(200, text="<html>"), httpx.Response(502, text="bad gateway"), httpx.Response(200, json=[1])],
)
def test_what_is_another_service_is_told(other):
    asked, _ = service(Flaky(answer=other))
    with pytest.raises(ServiceUnreachable, match="http://emberpool is not an Emberpool service"):
        asked.get("/v1/pools")


def test_a_problem_is_its_sentence():
    asked, _ = service(Flaky(answer=answer(404, code="pool-not-found", detail="no pool is named 'x'")))
    with pytest.raises(ServiceRefused, match="no pool is named 'x'"):
        asked.get("/v1/pools/x")


def test_lists_are_read_page_by_page():
    pages = iter(
        [
            answer(items=[{"n": 1}, {"n": 2}], next="after-2"),
            answer(items=[{"n": 3}], next="after-3"),
            answer(items=[], next=None),
        ]
    )
    asked_for = []

    def respond(request):
        asked_for.append(dict(request.url.params))
        return next(pages)

    asked = Service("http://emberpool", transport=httpx.MockTransport(respond))
    assert [item["n"] for item in asked.pages("/v1/vms", {"pool": "web"})] == [1, 2, 3]
    assert asked_for == [
        {"pool": "web", "limit": "500"},
        {"limit": "500", "pool": "web", "after": "after-2"},
        {"limit": "500", "pool": "web", "after": "after-3"},
    ]


def test_a_claim_that_is_broken_off_while_it_waits_is_released(capsys):
    calls = []

    def respond(request):
        calls.append((request.method, request.url.path))
        if request.method == "GET":
            raise KeyboardInterrupt
        return answer(202, id="c", state="pending")

    asked = Service("http://emberpool", transport=httpx.MockTransport(respond))
    with pytest.raises(KeyboardInterrupt):
        claiming._claim(asked, {"pool": "web"}, "k", 60)
    assert calls == [("POST", "/v1/claim"), ("GET", "/v1/claims/c"), ("DELETE", "/v1/claims/c")]
    assert "Interrupted: the claim is released." in capsys.readouterr().err


def test_following_shows_changes_alone(capsys):
    looks = iter(
        [[pool_at(1)], [pool_at(1)], [pool_at(2)]],
    )
    beats = iter([None, None])

    def pause():
        if next(beats, "over") == "over":
            raise KeyboardInterrupt

    follow(lambda: next(looks), LISTINGS[Kind.POOLS], Output.TABLE, pause=pause)
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["NAME", "PHASE", "READY"], ["web", "filling", "1/2"], ["web", "filling", "2/2"]]


def pool_at(ready):
    counts = dict.fromkeys(("planned", "creating", "booting", "claimed", "waiting"), 0) | {"ready": ready}
    return {
        "name": "web",
        "spec": {"size": 2},
        "created_at": "2026-01-12T09:00:00Z",
        "status": {"phase": "filling", "reason": None, "counts": counts, "boot_seconds": {"p50": None}},
    }


def test_progress_ends_with_the_last_thing(capsys):
    claim = {"id": "c", "labels": {"name": "one"}, "estimate": None, "reason": None}
    answers = {
        "/v1/pools/web": [pool_at(1), pool_at(2), pool_at(2)],
        "/v1/preloads/near": [
            {"state": "importing", "reason": None, "progress": {"percent": 43.2}},
            {"state": "importing", "reason": None, "progress": {"percent": 90.0}},
            {"state": "ready", "reason": None, "progress": {"percent": 100.0}},
        ],
        "/v1/claims/c": [
            {**claim, "state": "pending", "estimate": {"seconds": 12.0}},
            {**claim, "state": "bound", "vm": {"name": "vm-1", "addresses": ["10.0.0.1"]}},
            {**claim, "state": "bound", "vm": {"name": "vm-1", "addresses": ["10.0.0.1"]}},
        ],
    }
    asked = Service(
        "http://emberpool", transport=httpx.MockTransport(lambda request: answer(**answers[request.url.path].pop(0)))
    )
    watch_progress(asked, list(answers), pause=lambda: None)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "pools/web: 1/2 ready",
        "preloads/near: importing, 43 %",
        "claims/one: pending",
        "pools/web: 2/2 ready",
        "preloads/near: importing, 90 %",
        "claims/one: vm-1 at 10.0.0.1",
        "preloads/near: ready",
    ]


@pytest.mark.parametrize("phase", ["stalled", "paused", "drained", "deleting"])
def test_a_pool_that_nobody_fills_is_not_waited_for(phase):
    pool = pool_at(1)
    pool["status"] |= {"phase": phase, "reason": "because"}
    item = progress_of("/v1/pools/web", pool)
    assert (item.failed, item.text) == (True, f"1/2 ready, {phase}: because")


def test_progress_says_what_failed(capsys):
    failed = {"state": "failed", "reason": "ImportFailed: 404", "progress": {"percent": 60.0}}
    asked = Service("http://emberpool", transport=httpx.MockTransport(lambda _: answer(**failed)))
    with pytest.raises(NotReady, match="preloads/near: failed: ImportFailed: 404"):
        watch_progress(asked, ["/v1/preloads/near"], pause=lambda: None)
    assert capsys.readouterr().err


@pytest.mark.parametrize(("state", "share"), [("taking", 0.0), ("ready", 1.0)])
def test_a_snapshot_has_no_percentage(state, share):
    assert progress_of("/v1/snapshots/taken", {"state": state, "reason": None}).share == share


def test_durations_and_sizes_are_for_people():
    assert [seconds(each) for each in (None, 0.0048, 1.96, 90, 600, 7300, 900_000)] == [
        *("-", "4.8ms", "2.0s", "90.0s", "10m", "2h", "10d"),
    ]
    assert [size(each) for each in (None, 10, 2048, 10 * 1024**3, 5 * 1024**4)] == [
        "-",
        "10B",
        "2.0KiB",
        "10.0GiB",
        "5.0TiB",
    ]
