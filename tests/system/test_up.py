"""`emberpool up`, killed and started again on its folder: what it promised before, it keeps."""

import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml

from app.embedded.folder import lock_folder
from app.embedded.postgres import stop_leftover
from tests.support.processes import QUICK, NeverCame, Program, until
from tests.support.system_calls import Calls
from tests.support.system_invariants import list_vms

SIZE: Final = 2
_ADDRESS: Final = re.compile(rb"serves at\s+(http://127\.0\.0\.1:\d+)")


class Up(Program):
    """`up` on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        arguments = ["app", "up", "--port", "0", "--data-dir", str(self.folder), "--cold-boot-seconds", "0.3"]
        super().__init__("up", arguments, log=folder / "up.log", settings=QUICK)

    async def serve(self) -> str:
        """Its address. Each life has a log of its own."""
        self.log.unlink(missing_ok=True)
        await self.start()

        async def greets() -> str | None:
            found = _ADDRESS.search(self.log.read_bytes())
            if found is None and not self.is_running:
                raise NeverCame(f"`up` ended at once; its log ends\n{self.tail()}")
            return found and found[1].decode()

        return str(await until(greets, "`up` says where it serves"))

    def cluster(self) -> str:
        kubeconfig = yaml.safe_load((self.folder / "cluster" / "kubeconfig").read_text(encoding="utf-8"))
        return str(kubeconfig["clusters"][0]["cluster"]["server"])


@pytest.fixture
async def up() -> AsyncIterator[Up]:
    """Directly in the system's temporary folder, as the tests' own Postgres and for its reason."""
    folder = Path(tempfile.mkdtemp(prefix="emberpool-up-"))
    up = Up(folder)
    try:
        yield up
    finally:
        await up.close()
        with lock_folder(up.folder) as held:
            stop_leftover(held)
        shutil.rmtree(folder, ignore_errors=True)


async def test_pools_and_claims_outlive_a_kill(up, session):
    calls = Calls(session, await up.serve())
    await calls.put_pool("kept", size=SIZE)
    await until(lambda: calls.is_full("kept", SIZE), "the pool is full")
    claim = await calls.claim("kept", labels={"job": "long"})
    await until(lambda: calls.is_full("kept", SIZE), "the pool is full again")
    before = await describe(session, up, claim)

    await up.kill()
    calls = Calls(session, await up.serve())

    assert await calls.look(claim["id"]) == claim
    await until(lambda: calls.is_full("kept", SIZE), "the pool is as it was")
    assert await describe(session, up, claim) == before
    another = await calls.claim("kept")
    assert another["vm"]["name"] != claim["vm"]["name"]
    await calls.release(claim["id"])
    await until(lambda: has_gone(session, up, claim), "the released VM leaves the cluster")

    up.terminate()
    assert await up.wait() == 0, up.tail()


async def describe(session: aiohttp.ClientSession, up: Up, claim: dict[str, Any]) -> dict[str, Any]:
    """Who the claimed VM is, in the cluster's own words: another boot of it would have another instance and address."""
    vm = (await list_vms(session, up.cluster()))[claim["vm"]["name"]]
    url = f"{up.cluster()}/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/{claim['vm']['name']}"
    async with session.get(url) as response:
        instance = await response.json()
    addresses = [interface["ipAddress"] for interface in instance["status"]["interfaces"]]
    assert addresses == claim["vm"]["addresses"]
    return {"vm": vm["metadata"]["uid"], "instance": instance["metadata"]["uid"], "addresses": addresses}


async def has_gone(session: aiohttp.ClientSession, up: Up, claim: dict[str, Any]) -> bool:
    return claim["vm"]["name"] not in await list_vms(session, up.cluster())
