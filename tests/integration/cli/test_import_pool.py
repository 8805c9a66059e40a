"""import-pool, as people call it."""

import pytest

from app.api import examples

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_is_not_there_is_told_in_a_sentence(run):
    said = await run("import-pool", "default/nobody", "--dry-run")
    assert (said.code, said.out) == (1, "")
    assert "There is no VirtualMachinePool nobody" in said.err


@pytest.mark.parametrize("given", ["nobody", "/nobody", "default/"])
async def test_a_name_without_a_namespace_is_refused_before_anything_is_asked(run, given):
    said = await run("import-pool", given)
    assert said.code == 2
    assert "is not NAMESPACE/NAME" in said.err


async def test_another_namespace_is_refused(run):
    said = await run("import-pool", "elsewhere/web-servers")
    assert said.code == 1
    assert "this service works in namespace 'default' only" in said.err


async def test_a_name_that_no_pool_can_have_asks_for_another(run):
    said = await run("import-pool", "default/web.servers")
    assert said.code == 1
    assert "cannot be the name of a pool" in said.err


async def test_the_changes_are_told_and_the_vms_listed(run, monkeypatch):
    class Canned:
        """A service that answers as in the document."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def import_pool(self, body):
            assert (body["vm_pool"], body["dry_run"]) == ("web-servers", True)
            return examples.load()["schemas"]["ImportView"][0]

    monkeypatch.setattr("app.cli.client.import_pool.connect", lambda *_: Canned())
    said = await run("import-pool", "default/web-servers", "--dry-run", "--name", "web")
    assert said.code == 0
    assert [line.split(maxsplit=1) for line in said.out.splitlines()] == [
        ["VM", "BECOMES"],
        ["web-servers-0", "a warm VM of pool web"],
        ["web-servers-1", "a warm VM of pool web"],
    ]
    assert "web-servers: scaleInStrategy becomes unmanaged" in said.err
    assert "Nothing was changed: this was a dry run." in said.err
