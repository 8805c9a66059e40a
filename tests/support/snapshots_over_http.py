"""VMs whose disks are imported, their snapshots over the API, and a client of the cluster below."""

from contextlib import asynccontextmanager

from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.connection import configure
from app.config import Settings
from tests.support.service import until

URL = "https://images.example.com/fedora.qcow2"


def template(*, image=URL, storage_class="standard", memory="64Mi"):
    """A VM whose disk is imported."""
    return {
        "spec": {
            "dataVolumeTemplates": [
                {
                    "metadata": {"name": "root"},
                    "spec": {
                        "source": {"http": {"url": image}},
                        "storage": {
                            "accessModes": ["ReadWriteMany"],
                            "storageClassName": storage_class,
                            "resources": {"requests": {"storage": "2Gi"}},
                        },
                    },
                }
            ],
            "template": {
                "spec": {
                    "domain": {
                        "memory": {"guest": memory},
                        "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
                    },
                    "volumes": [
                        {"name": "root", "dataVolume": {"name": "root"}},
                        {"name": "scratch", "containerDisk": {"image": "registry.local/disk:1"}},
                    ],
                }
            },
        }
    }


@asynccontextmanager
async def kubernetes(server):
    settings = Settings(kubeconfig=server.services.settings.kubeconfig)
    client = KubeVirtClient(settings, await configure(settings))
    try:
        yield client
    finally:
        await client.close()


async def ready(client, name, *, number=1):
    async def look():
        found = (await client.get(f"/v1/snapshots/{name}")).json()
        assert found["state"] != "failed", found["reason"]
        return found if found["ready"] and found["takes"][0]["number"] == number and not found["refreshing"] else None

    return await until(look)
