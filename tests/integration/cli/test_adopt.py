"""adopt and disown, as an operator calls them."""

import json

import pytest

from app.store import installation
from tests.support.service import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def hold(server, *uids):
    """As if a sweep had found these, of a kind that none of this service's tells anything of."""
    async with server.services.db.begin() as tx:
        await installation.hold(
            tx, "VirtualMachineRestore", uids=list(uids), told="1 without an installation's id (left-over)"
        )

    async def described():
        found = (await server.client.get("/v1/installation")).json()
        return found["adopt"]["does"]

    await until(described)


async def test_where_there_is_nothing_to_decide_they_say_so(run):
    for word in ("adopt", "disown"):
        said = await run(word, "--yes")
        assert (said.code, said.err) == (
            0,
            "There is nothing to decide: all VMs that carry this service's labels are its own.",
        )


async def test_they_list_what_they_would_do_and_do_it_only_when_told(run, server):
    await hold(server, "uid-1")
    tried = await run("adopt", "--dry-run")
    assert tried.code == 0
    assert "Held: 1 of kind VirtualMachineRestore, 1 without an installation's id (left-over)." in tried.err
    assert "emberpool adopt removes 1 objects of kind VirtualMachineRestore that no row knows." in tried.err
    asked = await run("adopt")
    assert (asked.code, "Nothing was changed." in asked.err) == (1, True)
    told = await run("disown", "--yes")
    assert (told.code, "Disowned: leaves 1 objects that no row knows alone for good." in told.err) == (0, True)
    found = json.loads((await run("disown", "--dry-run", "-o", "json")).out)
    assert (found["state"], found["held"]) == ("working", [])
