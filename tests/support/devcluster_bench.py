"""A dev cluster on a clock that the test moves, the VMs that tests make there, and where they are found over HTTP."""

import asyncio
import inspect
import json

from tests.support.patience import PATIENCE

IMAGE = "quay.io/containerdisks/fedora:42"
MACHINES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
INSTANCES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"
SUBRESOURCES = "/apis/subresources.kubevirt.io/v1/namespaces/default"


def machine(name, *, strategy="Always", guest="1Gi", probe=True, labels=None, **domain):
    """A VM as users write it; `domain` goes over what stands in spec.template.spec.domain."""
    labels = labels or {"app": "test"}
    spec = {
        "domain": {
            "cpu": {"cores": 1},
            "memory": {"guest": guest},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "masquerade": {}}],
            },
            **domain,
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": IMAGE}}],
    }
    if probe:
        spec["readinessProbe"] = {"guestAgentPing": {}}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "labels": labels},
        "spec": {"runStrategy": strategy, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


class Bench:
    """A cluster on a clock that the test moves, and a client of it."""

    def __init__(self, cluster, clock, session):
        self.cluster = cluster
        self.clock = clock
        self.session = session

    async def call(self, method, path, body=None, **options):
        """Status and body (parsed where it is JSON)."""
        headers = {"Accept": "*/*", **options.pop("headers", {})}
        data = None if body is None else json.dumps(body)
        headers.setdefault("Content-Type", "application/json")
        async with self.session.request(
            method, self.cluster.url + path, data=data, headers=headers, **options
        ) as answer:
            text = await answer.text()
            await self.clock.settle()
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text

    async def get(self, path):
        status, body = await self.call("GET", path)
        assert status == 200, body
        return body

    async def create(self, *machines):
        for obj in machines:
            status, body = await self.call("POST", MACHINES, obj)
            assert status == 201, body

    async def boot(self, *machines):
        await self.create(*machines)
        await self.clock.advance(60)

    async def order(self, **fault):
        status, body = await self.call("POST", "/devcluster/v1/faults", fault)
        assert status == 201, body
        return body["id"]

    async def status(self, name):
        """Printable status of a VM, and the reason why it is not ready ("" where it is)."""
        vm = await self.get(f"{MACHINES}/{name}")
        ready = next(item for item in vm["status"]["conditions"] if item["type"] == "Ready")
        return vm["status"]["printableStatus"], "" if ready["status"] == "True" else ready.get("reason")

    async def condition(self, name, kind):
        vmi = await self.get(f"{INSTANCES}/{name}")
        return next((item for item in vmi["status"].get("conditions", []) if item["type"] == kind), None)


async def until(condition, bound=PATIENCE):
    """Wait for a condition that real I/O or another process brings about; it may be a coroutine function."""
    async with asyncio.timeout(bound):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(0.005)
