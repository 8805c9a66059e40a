"""The bounds that connections share, on connections that are only numbers."""

import asyncio
from dataclasses import dataclass, field

from app.api.connections.shared import NEVER, Connections
from app.config import Settings


@dataclass(eq=False)
class Numbers:
    held: int = 0
    deadline: float = NEVER
    read_deadline: float = NEVER
    is_idle: bool = False
    is_in_head: bool = False
    is_reading: bool = False
    said: list[str] = field(default_factory=list)

    def expire(self) -> None:
        self.said.append("expire")

    def close_idle(self) -> None:
        self.said.append("close")

    def refuse_overload(self) -> None:
        self.said.append("refuse")
        self.is_reading = False
        self.shared.held -= self.held


async def entered(shared, *connections):
    for connection in connections:
        assert shared.enter(connection)
        connection.shared = shared
        shared.held += connection.held


async def test_the_largest_requests_that_are_arriving_go_until_the_rest_fits():
    shared = Connections(Settings(max_held_bytes=1024))
    small, large, larger = (Numbers(held=held, is_reading=True) for held in (300, 600, 700))
    served = Numbers(held=650)
    await entered(shared, small, large, larger, served)
    shared.relieve()
    assert [each.said for each in (small, large, larger, served)] == [[], ["refuse"], ["refuse"], []]
    assert shared.held == 950


async def test_what_is_served_is_not_taken_back():
    shared = Connections(Settings(max_held_bytes=1024))
    served, empty = Numbers(held=2000), Numbers(is_reading=True)
    await entered(shared, served, empty)
    shared.relieve()
    assert served.said == empty.said == []


async def test_the_connection_that_is_idle_for_the_longest_time_makes_room():
    shared = Connections(Settings(max_connections=3))
    busy, old, young = Numbers(deadline=1), Numbers(deadline=5, is_idle=True), Numbers(deadline=6, is_idle=True)
    await entered(shared, busy, old, young)
    assert shared.enter(Numbers())
    assert (busy.said, old.said, young.said) == ([], ["close"], [])
    assert shared.enter(Numbers())
    assert young.said == ["close"]
    assert not shared.enter(Numbers())
    shared.leave(busy)
    assert shared.enter(Numbers())


async def test_the_head_that_has_been_arriving_for_the_longest_time_makes_room_where_none_is_idle():
    shared = Connections(Settings(max_connections=3))
    served, old, young = Numbers(), Numbers(deadline=5, is_in_head=True), Numbers(deadline=6, is_in_head=True)
    await entered(shared, served, old, young)
    assert shared.enter(Numbers(deadline=1))
    assert (served.said, old.said, young.said) == ([], ["refuse"], [])


async def test_deadlines_pass_on_a_clock_that_does_not_count_what_the_process_was_stopped_for():
    shared = Connections(Settings())
    late, unread, early = Numbers(deadline=1), Numbers(read_deadline=1), Numbers(deadline=100)
    await entered(shared, late, unread, early)
    shared._swept_at -= 1000  # as after a stop
    shared._sweep()
    assert shared.clock == 2
    assert (late.said, unread.said, early.said) == (["expire"], ["expire"], [])


async def test_nothing_wakes_a_process_without_connections():
    shared = Connections(Settings())
    connection = Numbers()
    await entered(shared, connection)
    assert shared._timer is not None
    shared.leave(connection)
    shared._sweep()
    assert shared._timer is None
    await asyncio.sleep(0)
    await entered(shared, connection)
    assert shared._timer is not None
