"""The service as the commands see it, where it does not answer as it should."""

import httpx
import pytest

from app.cli.client import claim as claiming
from app.cli.client.get import follow
from app.cli.client.listings import LISTINGS, Kind
from app.cli.client.printing import Output, seconds, size
from app.cli.client.progress import NotReady, progress_of, watch_progress
from emberpool.client import Client


def answer(code=200, /, **body):
    return httpx.Response(code, json=body)


def test_a_claim_that_is_broken_off_while_it_waits_is_released(capsys):
    calls = []

    def respond(request):
        calls.append((request.method, request.url.path))
        if request.method == "GET":
            raise KeyboardInterrupt
        return answer(202, id="c", state="pending", ended_at=None)

    asked = Client("http://emberpool", transport=httpx.MockTransport(respond))
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
    asked = Client(
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
    asked = Client("http://emberpool", transport=httpx.MockTransport(lambda _: answer(**failed)))
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
