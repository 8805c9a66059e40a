"""Whole files, as users write them: applied twice over HTTP and twice by the command, on a cluster of their own each."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.devcluster import DevCluster, DevClusterConfig, Durations
from tests.support.checkout import ROOT, USER_MANIFESTS
from tests.support.clusters import COLD_BOOT_SECONDS
from tests.support.postgres import clone_database
from tests.support.service import Server, listen, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
OURS = sorted((ROOT / "examples").glob("*.yaml"))
THEIRS = sorted(USER_MANIFESTS.glob("*.yaml"))
NAMES = ("hugepages-vm", "pinned-vm", "pool", "preload", "snapshot")
PREPARED = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "VirtualMachine",
    "metadata": {"name": "ubuntu-template"},
    "spec": {
        "runStrategy": "Always",
        "template": {
            "spec": {
                "domain": {
                    "memory": {"guest": "1Gi"},
                    "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
                },
                "volumes": [{"name": "root", "dataVolume": {"name": "ubuntu-template-root"}}],
            }
        },
        "dataVolumeTemplates": [
            {
                "metadata": {"name": "ubuntu-template-root"},
                "spec": {
                    "source": {"http": {"url": "https://example.com/ubuntu.qcow2"}},
                    "storage": {"resources": {"requests": {"storage": "4Gi"}}},
                },
            }
        ],
    },
}
"""What the users' snapshot is taken of: a VM that somebody made and prepared."""


@dataclass
class Place:
    """A service, and a way to apply a body to it that gives the documents of the answer."""

    server: Server
    address: str
    way: str

    async def apply(self, run, body: bytes) -> list[dict[str, Any]]:
        if self.way == "http":
            answer = await self.server.client.post(
                "/v1/manifests", content=body, headers={"Content-Type": "application/yaml"}
            )
            assert answer.status_code == 200, answer.text
            return answer.json()["documents"]
        said = await run("apply", "-f", "-", "-o", "json", stdin=body)
        assert said.code == 0, said.err
        return json.loads(said.out)["documents"]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["http", "command"])
async def place(request, postgres, template_database, tmp_path_factory) -> AsyncIterator[Place]:
    config = DevClusterConfig(durations=Durations.for_cold_boot(COLD_BOOT_SECONDS))
    folder = tmp_path_factory.mktemp("service")
    async with (
        DevCluster(config) as cluster,
        clone_database(postgres, template_database) as url,
        serve(url, cluster, folder) as server,
        listen(server.app) as client,
    ):
        await prepare(cluster)
        yield Place(server, str(client.base_url).rstrip("/"), request.param)


@pytest.fixture
def address(place) -> str:
    return place.address


async def prepare(cluster: DevCluster) -> None:
    """A VM of somebody's own, whose disk can be snapshotted."""
    path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
    async with httpx.AsyncClient(base_url=cluster.url, trust_env=False) as client:
        made = await client.post(path, json=PREPARED)
        assert made.status_code == 201, made.text

        async def snapshottable() -> bool:
            vm = (await client.get(f"{path}/ubuntu-template")).json()
            verdicts = vm.get("status", {}).get("volumeSnapshotStatuses", [])
            return any(verdict["enabled"] for verdict in verdicts) and vm["status"].get("ready", False)

        await until(snapshottable)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
async def test_an_example_works(place, run, path):
    await works(place, run, path.read_bytes())


@pytest.mark.parametrize("path", THEIRS, ids=lambda path: path.stem)
async def test_a_users_manifest_works(place, run, path):
    await works(place, run, path.read_bytes())


async def test_there_is_an_example_of_each():
    assert tuple(path.stem for path in OURS) == NAMES


async def works(place: Place, run, body: bytes) -> None:
    """It is applied, comes to be, is unchanged when it is applied again, and goes."""
    made = await place.apply(run, body)
    assert [each["action"] for each in made] == ["created"] * len(made)
    again = await place.apply(run, body)
    assert [(each["action"], each["resource"]["href"]) for each in again] == [
        ("unchanged", each["resource"]["href"]) for each in made
    ]
    hrefs = [each["resource"]["href"] for each in made]
    await asyncio.gather(*(there(place, href) for href in hrefs))
    assert [each["action"] for each in await place.apply(run, body)] == ["unchanged"] * len(made)
    for href in reversed(hrefs):
        force = {} if href.startswith("/v1/claims/") else {"force": "true"}
        gone = await place.server.client.delete(href, params=force)
        assert gone.is_success, gone.text


async def there(place: Place, href: str) -> None:
    async def holds() -> bool:
        found = (await place.server.client.get(href)).json()
        if "status" in found:
            return found["status"]["counts"]["ready"] >= found["spec"]["size"]
        assert found["state"] not in {"failed", "expired", "released"}, found
        return found["state"] in {"ready", "bound"}

    await until(holds)
