"""What the dev cluster costs: boots VMs in a process of its own and prints its memory and CPU time as JSON.

`python bench/devcluster_cost.py [--vms 200] [--cold-boot-seconds 30] [--idle-seconds 10]`
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

VMS = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
WARM_BOUND = 300.0


def machine(name):
    labels = {"bench": "cost"}
    domain = {
        "cpu": {"cores": 1},
        "memory": {"guest": "256Mi"},
        "devices": {
            "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
            "interfaces": [{"name": "default", "masquerade": {}}],
        },
    }
    spec = {
        "domain": domain,
        "networks": [{"name": "default", "pod": {}}],
        "readinessProbe": {"guestAgentPing": {}},
        "volumes": [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:42"}}],
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "labels": labels},
        "spec": {"runStrategy": "Always", "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def usage(pid):
    """Resident MiB and CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = os.sysconf("SC_CLK_TCK")
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return round(resident, 1), round((int(fields[11]) + int(fields[12])) / ticks, 2)


async def watch(session, url, plural):
    """A client that follows a kind, as the service does; counts what it reads."""
    count = 0
    path = f"{url}/apis/kubevirt.io/v1/{plural}?watch=true&resourceVersion=0"
    async with session.get(path, timeout=aiohttp.ClientTimeout(total=None)) as response:
        async for _ in response.content:
            count += 1
    return count


async def measure(url, pid, options):
    figures = {"vms": options.vms, "start": usage(pid)}
    async with aiohttp.ClientSession() as session:
        watches = [
            asyncio.create_task(watch(session, url, plural))
            for plural in ("virtualmachines", "virtualmachineinstances")
        ]
        begun = time.monotonic()
        gate = asyncio.Semaphore(8)

        async def create(number):
            async with gate, session.post(f"{url}{VMS}?fieldValidation=Strict", json=machine(f"vm-{number}")) as answer:
                answer.raise_for_status()

        await asyncio.gather(*(create(number) for number in range(options.vms)))
        figures["created_after_s"] = round(time.monotonic() - begun, 2)
        while time.monotonic() - begun < WARM_BOUND:
            async with session.get(f"{url}/devcluster/v1/state") as answer:
                state = await answer.json()
            if state["virtualmachines"]["warm"] == options.vms:
                break
            await asyncio.sleep(0.1)
        figures["warm_after_s"] = round(time.monotonic() - begun, 2)
        figures["warm"] = state["virtualmachines"]["warm"]
        figures["booted"] = usage(pid)
        figures["boot_cpu_share"] = round((figures["booted"][1] - figures["start"][1]) / figures["warm_after_s"], 3)
        times = []
        for _ in range(10):
            begun = time.monotonic()
            async with session.get(url + VMS) as answer:
                await answer.read()
            times.append(time.monotonic() - begun)
        figures["list_ms"] = round(sorted(times)[5] * 1000, 1)
        before = usage(pid)
        await asyncio.sleep(options.idle_seconds)
        after = usage(pid)
        figures["idle_cpu_share"] = round((after[1] - before[1]) / options.idle_seconds, 4)
        figures["end"] = after
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
    return figures


async def main(options):
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "app.devcluster",
            "--cold-boot-seconds",
            str(options.cold_boot_seconds),
            "--nodes",
            "8",
            *(["--state", str(Path(folder) / "state.db")] if options.state else []),
            stdout=asyncio.subprocess.PIPE,
        )
        url = json.loads(await process.stdout.readline())["url"]
        try:
            figures = await measure(url, process.pid, options)
        finally:
            process.terminate()
            await process.wait()
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=200)
    parser.add_argument("--cold-boot-seconds", type=float, default=30.0)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    parser.add_argument("--state", action="store_true", help="keep the state in a file, as `up` does")
    asyncio.run(main(parser.parse_args()))
