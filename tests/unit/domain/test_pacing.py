"""How many creates are under way at once, against servers of several kinds."""

import heapq
from dataclasses import dataclass

import pytest

from app.domain.pacing import CreatePacer, Pushback

LIMIT = 32


@dataclass
class Server:
    """Serves `seats` requests at a time, each for `seconds`; with `queue` only so many more wait, and the others get a 429."""

    seats: int = 1
    seconds: float = 0.016
    queue: int = 10_000
    pushed_back: int = 0


def rate_of(server, pacer, *, count=400):
    """Creates a second that a pacer gets out of a server, and the most that were under way, in a simulation of both."""
    now, under_way, done, most, seats = 0.0, 0, 0, 0, [0.0] * server.seats
    events = []
    while done < count:
        for _ in range(pacer.room(under_way, now)):
            under_way += 1
            waiting = sum(1 for end, _, pushed in events if not pushed) - server.seats
            if waiting >= server.queue:
                server.pushed_back += 1
                heapq.heappush(events, (now + 0.001, now, True))
                continue
            free = max(now, heapq.heappop(seats)) + server.seconds
            heapq.heappush(seats, free)
            heapq.heappush(events, (free, now, False))
        most = max(most, under_way)
        if not events:
            now += 0.05
            continue
        now, begun_at, pushed = heapq.heappop(events)
        if pushed:
            pacer.pushed_back(Pushback(begun_at, 1.0), now)
        else:
            pacer.succeeded(now - begun_at, under_way=under_way)
            done += 1
        under_way -= 1
    return done / now, most


@pytest.mark.parametrize("seats", [1, 4, 16])
def test_it_gets_nine_tenths_of_what_the_server_gives_and_does_not_flood_it(seats):
    server = Server(seats=seats)
    pacer = CreatePacer(start=8, limit=LIMIT)
    rate, most = rate_of(server, pacer)
    assert rate >= 0.9 * seats / server.seconds
    assert most <= 2 * (seats + 4)
    assert pacer.window <= seats + 8


def test_a_server_that_turns_requests_away_is_asked_less():
    server = Server(seats=1, queue=2)
    pacer = CreatePacer(start=8, limit=LIMIT)
    rate_of(server, pacer)
    assert server.pushed_back <= 12
    assert pacer.window <= 4


def test_the_number_never_leaves_its_bounds():
    pacer = CreatePacer(start=100, limit=4)
    assert pacer.window == 4
    for _ in range(50):
        pacer.succeeded(0.02, under_way=4)
        assert pacer.window == 4
    for number in range(10):
        pacer.pushed_back(Pushback(float(number)), float(number))
    assert pacer.window == 1


def test_what_was_not_used_does_not_grow():
    pacer = CreatePacer(start=4, limit=LIMIT)
    for _ in range(100):
        pacer.succeeded(0.02, under_way=1)
    assert pacer.window == 4


def test_many_that_are_pushed_back_together_count_once():
    pacer = CreatePacer(start=16, limit=LIMIT)
    for _ in range(16):
        pacer.pushed_back(Pushback(begun_at=1.0), now=2.0)
    assert pacer.window == 8
    pacer.pushed_back(Pushback(begun_at=3.0), now=4.0)
    assert pacer.window == 4


def test_nothing_is_begun_before_the_server_wants_to_be_asked_again():
    pacer = CreatePacer(start=4, limit=LIMIT)
    pacer.pushed_back(Pushback(begun_at=0.0, retry_after=2.0), now=10.0)
    assert [pacer.room(0, now) for now in (10.0, 11.9, 12.0)] == [0, 0, 2]


def test_without_a_time_the_rest_grows_up_to_a_bound_and_a_success_ends_that():
    pacer, rests, now = CreatePacer(start=4, limit=LIMIT), [], 0.0
    for _ in range(6):
        pacer.pushed_back(Pushback(begun_at=now), now)
        begun, step = now, 0.25
        while not pacer.room(0, now):
            now += step
        rests.append(now - begun)
    assert rests == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    pacer.succeeded(0.02, under_way=1)
    pacer.pushed_back(Pushback(begun_at=now), now)
    assert pacer.room(0, now + 0.5) == 1
