"""`emberpool console`, as people call it."""

import asyncio
import sys

import pytest

from tests.support.service import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def a_vm(server, pool="consoles"):
    await server.fill(pool, size=1)
    (vm, *_) = (await server.client.get("/v1/vms", params={"pool": pool, "state": "ready"})).json()["items"]
    return vm


async def test_the_log_of_a_vm_is_shown_by_name_and_by_id(run, server):
    vm = await a_vm(server)
    shown = await run("console", vm["name"])
    assert (shown.code, shown.err) == (0, "")
    assert "simulated" in shown.out.splitlines()[0]
    for other in (vm["id"], f"vm/{vm['name']}"):
        assert (await run("console", other)).out == shown.out
    assert (await run("console", vm["name"], "--lines", "1")).out.splitlines() == shown.out.splitlines()[-1:]


async def test_a_log_that_is_followed_ends_with_the_vm_and_says_so(run, server):
    vm = await a_vm(server, "followed")
    following = asyncio.create_task(run("console", vm["name"], "--follow"))

    async def followed():
        return server.services.consoles._streams

    await until(followed)
    await server.client.delete(f"/v1/vms/{vm['id']}")
    said = await following
    assert said.code == 0
    assert "simulated" in said.out
    assert f"The log ended; VM {vm['name']} is" in said.err


async def test_a_vm_that_is_unknown_or_has_ended_is_told_in_a_sentence(run, server):
    said = await run("console", "nobody")
    assert (said.code, said.out) == (1, "")
    assert "no VM has the id or the name nobody" in said.err.replace("No VM", "no VM")

    vm = await a_vm(server, "ending")
    await server.client.delete(f"/v1/vms/{vm['id']}")

    async def gone():
        return (await server.client.get(f"/v1/vms/{vm['id']}")).json()["state"] == "deleted"

    await until(gone)
    said = await run("console", vm["id"])
    assert (said.code, said.out) == (1, "")
    assert f"VM {vm['name']} is deleted, and its console log went with it" in said.err


async def test_on_a_terminal_the_guest_does_not_control_it(run, server, monkeypatch):
    vm = await a_vm(server)
    monkeypatch.setattr(
        server.services.consoles, "tail", said(b"\x1b[2J\x1b]0;title\x07one\r\n\xe2\x9c\x93 t\xffwo\x00\n")
    )
    assert (await run("console", vm["id"])).out == "\x1b[2J\x1b]0;title\x07one\r\n✓ t\ufffdwo\x00\n"
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True, raising=False)
    assert (await run("console", vm["id"])).out == "0;titleone\n✓ t\ufffdwo\n"


async def test_an_empty_log_is_told(run, server, monkeypatch):
    vm = await a_vm(server)
    monkeypatch.setattr(server.services.consoles, "tail", said(b""))
    shown = await run("console", vm["id"])
    assert (shown.code, shown.out) == (0, "")
    assert f"VM {vm['name']} has written nothing to its console yet." in shown.err


def said(text):
    async def tail(_vm_id, **_):
        return text

    return tail
