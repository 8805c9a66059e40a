"""The guest agent's protocol, against an agent of the test's own at the other end of a socket pair."""

import asyncio
import base64
import json
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.devcluster.guests.qemu.agent import GuestAgent, Ran
from app.devcluster.guests.qemu.errors import AgentSilent, GuestRefused
from app.devcluster.guests.qemu.facts import Interface, ask_facts

SHORT = 0.2  # for an answer that never comes


@asynccontextmanager
async def agent_that(answer: Callable[[str, dict[str, Any]], bytes]):
    """A GuestAgent whose other end gives `answer(command, arguments)`, and does a sync by itself."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)

    async def serve() -> None:
        while line := (await reader.readline()).lstrip(b"\xff"):
            order = json.loads(line)
            if order["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + said(order["arguments"]["id"]))
            else:
                writer.write(answer(order["execute"], order.get("arguments", {})))

    serving = asyncio.create_task(serve())
    agent = GuestAgent("web", ours)
    try:
        yield agent
    finally:
        agent.close()
        serving.cancel()
        writer.close()


def said(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


async def test_a_command_returns_what_the_agent_answers():
    async with agent_that(lambda command, arguments: said([command, arguments])) as agent:
        assert await agent.call("guest-info", {"a": 1}) == ["guest-info", {"a": 1}]


async def test_a_refusal_is_a_sentence_with_the_agents_reason():
    refusal = json.dumps({"error": {"class": "GenericError", "desc": "no such file"}}).encode() + b"\n"
    async with agent_that(lambda *_: refusal) as agent:
        with pytest.raises(GuestRefused, match="The guest web refused guest-exec: no such file"):
            await agent.run("/bin/none")


async def test_an_answer_that_came_too_late_is_not_taken_for_that_of_the_next_command():
    answers = iter([b"", said("late") + said("second")])
    async with agent_that(lambda *_: next(answers)) as agent:
        with pytest.raises(AgentSilent, match="did not answer first within"):
            await agent.call("first", seconds=SHORT)
        # The late answer stands before that of the sync, which the next command begins with.
        agent._streams[0].feed_data(said("late"))
        assert await agent.call("again") == "late"
        assert await agent.call("second") == "second"


async def test_an_agent_that_talks_nonsense_counts_as_silent():
    async with agent_that(lambda *_: b"[1, 2]\n") as agent:
        with pytest.raises(AgentSilent, match="in its protocol"):
            await agent.call("guest-info")


async def test_an_agent_whose_machine_ended_counts_as_silent():
    ours, theirs = socket.socketpair()
    agent = GuestAgent("web", ours)
    theirs.close()
    with pytest.raises(AgentSilent, match="the machine has ended"):
        await agent.call("guest-info")
    agent.close()


async def test_a_program_is_waited_for_and_gives_its_code_and_output():
    looks = iter([{"exited": False}, {"exited": True, "exitcode": 3, "out-data": base64.b64encode(b"out").decode()}])
    seen: list[dict[str, Any]] = []

    def answer(command, arguments):
        seen.append(arguments)
        return said({"pid": 7} if command == "guest-exec" else next(looks))

    async with agent_that(answer) as agent:
        assert await agent.run("/bin/x", "a", stdin=b"in") == Ran(3, b"out", b"")
    assert seen[0] == {"path": "/bin/x", "arg": ["a"], "capture-output": True, "input-data": "aW4="}
    assert seen[1] == {"pid": 7}


async def test_a_program_that_a_signal_ended_has_the_code_that_a_shell_gives_it():
    def answer(command, _):
        return said({"pid": 7} if command == "guest-exec" else {"exited": True, "signal": 9})

    async with agent_that(answer) as agent:
        assert (await agent.run("/bin/x")).code == 137


async def test_facts_are_what_the_guest_tells_and_empty_where_it_refuses():
    told = {
        "guest-get-osinfo": {"id": "debian", "pretty-name": "Debian 12"},
        "guest-network-get-interfaces": [
            {"name": "lo", "ip-addresses": []},
            {
                "name": "eth0",
                "hardware-address": "52:54:00:AA:00:01",
                "ip-addresses": [
                    {"ip-address": "10.0.2.15", "ip-address-type": "ipv4"},
                    {"ip-address": "fe80::1", "ip-address-type": "ipv6"},
                ],
            },
        ],
    }
    refusal = json.dumps({"error": {"desc": "disabled"}}).encode() + b"\n"

    async with agent_that(lambda command, _: said(told[command]) if command in told else refusal) as agent:
        facts = await ask_facts(agent)
    assert (facts.os.id, facts.os.pretty_name, facts.os.version, facts.hostname) == ("debian", "Debian 12", "", "")
    assert facts.interfaces == (Interface("eth0", "52:54:00:aa:00:01", ("10.0.2.15",), ("fe80::1",)),)
