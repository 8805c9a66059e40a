"""What each way to a real guest costs: from the order until its agent answers (ready), and until a first command ran over ssh.

`python -m bench.guests [--rounds 7] [--clones 10] [--identities 50]` needs QEMU and ssh; see bench/README.md. The ways are measured
in turns, so that what else the machine does meets all of them. Writes bench/results/guests.json.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.devcluster.guests.images.seed import make_seed
from app.devcluster.guests.qemu.machine import Machine
from app.devcluster.guests.qemu.plan import Disk
from tests.support.machines import (
    Heard,
    Rig,
    create_disk,
    find_guest,
    find_qemu,
    layer_of,
    open_machines,
    overlay,
    shell,
    template_plan,
)

RESULTS = Path(__file__).parent / "results" / "guests.json"
WAYS = ("cold", "snapshot", "memory", "resume", "running")
RESTORED_SHARE = 0.1
"""A restored guest with its identity may take at most this share of a cold boot."""
PSS_SHARE = 0.5
"""An idle clone may take at most this share of a booted guest's memory."""


class Bench:
    def __init__(self, rig: Rig, folder: Path, seed: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.seed = seed
        self.taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        self._count = 0

    async def cold(self) -> dict[str, float]:
        """An empty disk, which the guest formats, and a boot."""
        began = time.monotonic()
        name = self._name("cold")
        return await self._boot(began, name, await asyncio.to_thread(create_disk, self.folder, f"{name}.qcow2"))

    async def snapshot(self) -> dict[str, float]:
        """A boot from a new layer over the disk of a guest that has booted before."""
        began = time.monotonic()
        name = self._name("snapshot")
        return await self._boot(
            began, name, await asyncio.to_thread(overlay, self.folder, f"{name}.qcow2", "template.qcow2")
        )

    async def memory(self) -> dict[str, float]:
        began = time.monotonic()
        machine, _, identity = await self.rig.clone()
        ready = time.monotonic() - began
        await self._ssh(machine, identity.host_key.public)
        ssh = time.monotonic() - began
        await machine.kill()
        return {"ready": ready, "ssh": ssh, **machine.stages}

    async def awake(self, machine: Machine, key: str, *, paused: bool) -> dict[str, float]:
        if paused:
            await machine.pause()
        began = time.monotonic()
        if paused:
            await machine.resume()
        await machine.ping()
        ready = time.monotonic() - began
        await self._ssh(machine, key)
        return {"ready": ready, "ssh": time.monotonic() - began}

    async def _boot(self, began: float, name: str, disk: Path) -> dict[str, float]:
        plan = replace(self.rig.plan, name=name, disks=(Disk("root", disk),))
        heard = Heard()
        machine = await self.rig.machines.start(plan, heard)
        await heard.until("connected")
        ready = time.monotonic() - began
        await self._ssh(machine, None)
        ssh = time.monotonic() - began
        await machine.kill()
        return {"ready": ready, "ssh": ssh}

    async def _ssh(self, machine: Machine, host_key: str | None) -> None:
        """Runs a command in the guest. With a host key the guest must show that one."""
        end = machine.endpoint(22)
        assert end is not None
        known = self.folder / "known_hosts"
        known.write_text(f"[{end.host}]:{end.port} {host_key}\n" if host_key else "")
        process = await asyncio.create_subprocess_exec(
            *("ssh", "-F", "none", "-q", "-i", str(self.folder / "key"), "-p", str(end.port), "-o", "BatchMode=yes"),
            *("-o", f"UserKnownHostsFile={known}", "-o", "GlobalKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60"),
            *("-o", f"StrictHostKeyChecking={'yes' if host_key else 'no'}", f"root@{end.host}", "true"),
        )
        assert await process.wait() == 0, f"no ssh into {machine.name}"

    def _name(self, way: str) -> str:
        self._count += 1
        return f"{way}-{self._count}"


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    found, guest = await asyncio.to_thread(find_qemu), await asyncio.to_thread(find_guest)
    with tempfile.TemporaryDirectory(prefix="bench-guests-") as name:
        folder = Path(name)
        seed = make_login(folder)
        plan = replace(template_plan(folder, guest), seed=seed)
        create_disk(folder, "template.qcow2")
        async with open_machines(folder, found) as machines:
            heard = Heard()
            template = await machines.start(plan, heard)
            await heard.until("connected")
            await shell(template, "sync")
            image = await template.save_memory(folder / "memory", layer_of("template.qcow2"), go_on=False)
            await template.kill()
            await heard.until_ended()
            bench = Bench(Rig(folder, found, machines, plan, image), folder, seed)
            await take_turns(bench, options.rounds)
            return {
                "qemu": found.text,
                "acceleration": found.acceleration,
                "guest": {"memory_mib": plan.memory_bytes >> 20, "cpus": plan.cpus, **kernel_of(guest.versions)},
                "load": [round(load, 1) for load in os.getloadavg()],
                "rounds": options.rounds,
                "seconds": {way: summed(taken) for way, taken in bench.taken.items()},
                "kept": {"mib": round(image.bytes / 2**20, 1), "stood_still_seconds": round(image.stood_still, 3)},
                "memory": await weigh(bench, options.clones),
                "identities": await tell_apart(bench, options.identities),
            }


def make_login(folder: Path) -> Path:
    """A seed that lets a new key in."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    keys = json.dumps({"ssh_authorized_keys": [(folder / "key.pub").read_text().strip()]})
    seed = folder / "seed.iso"
    make_seed(seed, user_data=f"#cloud-config\n{keys}\n".encode(), meta_data=b'{"instance-id": "bench"}')
    return seed


async def take_turns(bench: Bench, rounds: int) -> None:
    awake, _, identity = await bench.rig.clone()
    key = identity.host_key.public
    turns: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
        "cold": bench.cold,
        "snapshot": bench.snapshot,
        "memory": bench.memory,
        "resume": lambda: bench.awake(awake, key, paused=True),
        "running": lambda: bench.awake(awake, key, paused=False),
    }
    for number in range(rounds):
        for way, turn in turns.items():
            bench.taken[way].append(await turn())
        say(
            f"round {number + 1} of {rounds}: "
            + ", ".join(f"{way} {bench.taken[way][-1]['ready']:.3f}" for way in WAYS)
        )
    await awake.kill()


async def weigh(bench: Bench, clones: int) -> dict[str, Any]:
    """The memory of idle guests: of clones beside each other, and of booted ones. Shared pages count in parts (PSS)."""
    booted = []
    for number in range(2):
        plan = replace(
            bench.rig.plan, name=f"weigh-{number}", disks=(Disk("root", create_disk(bench.folder, f"w{number}.qcow2")),)
        )
        heard = Heard()
        booted.append(await bench.rig.machines.start(plan, heard))
        await heard.until("connected")
    of_booted = [pss(machine.pid) for machine in booted]
    for machine in booted:
        await machine.kill()
    cloned = [(await bench.rig.clone())[0] for _ in range(clones)]
    of_clones = [pss(machine.pid) for machine in cloned]
    for machine in cloned:
        await machine.kill()
    return {
        "clones": clones,
        "pss_mib_clone": round(statistics.median(of_clones), 1),
        "pss_mib_booted": round(statistics.median(of_booted), 1),
    }


async def tell_apart(bench: Bench, count: int) -> dict[str, int]:
    """How many different values clones have of what must never be the same twice."""
    names = ("random", "machine_id", "host_key")
    script = "od -An -N16 -tx1 /dev/urandom; cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub"
    seen: dict[str, set[str]] = {name: set() for name in names}
    for _ in range(count):
        machine, _, _ = await bench.rig.clone()
        for name, value in zip(names, (await shell(machine, script)).split("\n"), strict=True):
            seen[name].add(value)
        await machine.kill()
    return {"clones": count, **{name: len(values) for name, values in seen.items()}}


def summed(taken: list[dict[str, float]]) -> dict[str, Any]:
    """Of each figure the median, the least and the most."""
    figures = {name: [one[name] for one in taken] for name in taken[0]}
    return {
        name: {"p50": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}
        for name, values in figures.items()
    }


def kernel_of(versions: dict[str, str]) -> dict[str, str]:
    return {"kernel": next((name for name in versions if name.startswith("linux-image")), "unknown")}


def pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def judge(result: dict[str, Any]) -> list[str]:
    """What does not hold, in sentences."""
    seconds, memory, identities = result["seconds"], result["memory"], result["identities"]
    share = seconds["memory"]["ready"]["p50"] / seconds["cold"]["ready"]["p50"]
    weight = memory["pss_mib_clone"] / memory["pss_mib_booted"]
    failures = []
    if share > RESTORED_SHARE:
        failures.append(f"a restore takes {share:.0%} of a cold boot; at most {RESTORED_SHARE:.0%} is the aim")
    if weight > PSS_SHARE:
        failures.append(
            f"an idle clone takes {weight:.0%} of a booted guest's memory; at most {PSS_SHARE:.0%} is the aim"
        )
    failures += [
        f"{identities['clones']} clones have {count} different {name}"
        for name, count in identities.items()
        if count != identities["clones"]
    ]
    return failures


def show(result: dict[str, Any]) -> None:
    say(f"QEMU {result['qemu']}, {result['acceleration']}; load {result['load']}")
    for way in WAYS:
        row = result["seconds"][way]
        say(
            f"{way:>10}  ready {row['ready']['p50']:.3f} ({row['ready']['min']:.3f}-{row['ready']['max']:.3f})  ssh {row['ssh']['p50']:.3f}"
        )
    stages = {name: one["p50"] for name, one in result["seconds"]["memory"].items()}
    say(f"a restore's stages: {stages}")
    say(f"memory: {result['memory']}, kept: {result['kept']}, identities: {result['identities']}")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clones", type=int, default=10)
    parser.add_argument("--identities", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    failures = judge(result)
    for failure in failures:
        say(f"does not hold: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
