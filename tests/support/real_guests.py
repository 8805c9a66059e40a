"""A dev cluster whose guests really run, and what a test asks of it. Skips where they cannot run here, saying why."""

import os
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from app.devcluster import DevCluster, DevClusterConfig, Durations
from app.devcluster.guests.choosing import choose_guests
from app.devcluster.guests.settings import RealGuests
from tests.support.devcluster_bench import INSTANCES, MACHINES, Bench, until

EVENTS = "/api/v1/namespaces/default/events"
BOOT_PATIENCE = 240.0
"""Seconds for a guest to boot where it is emulated and the machine has other work."""


def new_folder():
    """A short path: QEMU's own files lie below it."""
    return Path(tempfile.mkdtemp(prefix="emberpool-test-"))


async def real_guests(folder, **wishes):
    """Settings for guests that run; skips the test where there can be none."""
    choice = await choose_guests("auto", RealGuests(folder=folder, **wishes), print)
    if choice.guests is None:
        pytest.skip(choice.note)
    return choice.guests


@asynccontextmanager
async def running_cluster(guests, **config):
    config = DevClusterConfig(guests=guests, durations=Durations.for_real_guests(), nodes=1, **config)
    timeout = aiohttp.ClientTimeout(total=BOOT_PATIENCE)
    async with DevCluster(config) as cluster, aiohttp.ClientSession(timeout=timeout) as session:
        yield RealBench(cluster, _RealTime(), session)


class _RealTime:
    async def settle(self):
        """Nothing to wait for: a test waits for what it wants to see."""


class RealBench(Bench):
    async def vmi(self, name="x"):
        status, body = await self.call("GET", f"{INSTANCES}/{name}")
        return body if status == 200 else None

    async def boot(self, *machines):
        await self.create(*machines)
        for each in machines:
            await self.ready(each["metadata"]["name"])

    async def ready(self, name="x", *, other_than=None):
        """Wait until the VM has a ready instance (other than the one with that UID); gives it."""

        async def is_ready():
            vmi = await self.vmi(name)
            return (
                vmi is not None
                and vmi["metadata"]["uid"] != other_than
                and holds(vmi, "Ready")
                and holds(vmi, "AgentConnected")
            )

        await until(is_ready, BOOT_PATIENCE)
        return await self.vmi(name)

    async def phase(self, *phases, name="x"):
        """Wait until the instance is in one of the phases; gives it."""

        async def is_there():
            vmi = await self.vmi(name)
            return vmi is not None and (vmi.get("status") or {}).get("phase") in phases

        await until(is_there, BOOT_PATIENCE)
        return await self.vmi(name)

    async def gone(self, name="x"):
        async def is_gone():
            return (await self.call("GET", f"{MACHINES}/{name}"))[0] == 404

        await until(is_gone, BOOT_PATIENCE)

    async def events(self, reason):
        return [item["message"] for item in (await self.get(EVENTS))["items"] if item["reason"] == reason]

    def guest(self, vmi):
        """The machine behind an instance."""
        return self.cluster._real.runtime.find(vmi["metadata"]["uid"]).machine


def holds(vmi, kind):
    found = (vmi.get("status") or {}).get("conditions") or ()
    return any(item["type"] == kind and item["status"] == "True" for item in found)


def is_alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def processes_below(folder):
    """The processes that name the folder in their command line."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdecimal() and int(each.name) != os.getpid():
            try:
                command = (each / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command and is_alive(each.name):
                found.append(int(each.name))
    return found


async def died(*pids):
    await until(lambda: not any(is_alive(pid) for pid in pids), BOOT_PATIENCE)
