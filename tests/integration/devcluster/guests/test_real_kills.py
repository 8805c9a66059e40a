"""A dev cluster that is killed leaves nothing of its guests behind."""

import asyncio
import json
import shutil
import signal
import sys

import aiohttp
import pytest

from tests.support.devcluster_bench import INSTANCES, MACHINES, machine, until
from tests.support.real_guests import BOOT_PATIENCE, new_folder, processes_below, real_guests

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]


@pytest.fixture
async def folder():
    made = new_folder()
    await real_guests(made)
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def test_a_killed_cluster_leaves_no_guest_and_no_file(folder):
    guests = folder / "guests"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.devcluster", "--guests", "qemu", "--guest-folder", str(guests)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        while "url" not in (told := json.loads(await process.stdout.readline())):
            assert told.keys() == {"progress"}  # the guest is being made
        assert told["guests"].startswith("qemu (")
        async with aiohttp.ClientSession() as session:
            async with session.post(told["url"] + MACHINES, json=machine("x")) as answer:
                assert answer.status == 201

            async def runs():
                async with session.get(f"{told['url']}{INSTANCES}/x") as answer:
                    body = await answer.json()
                return answer.status == 200 and body["status"]["phase"] == "Running"

            await until(runs, BOOT_PATIENCE)
        assert processes_below(guests)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()

    await until(lambda: not processes_below(guests), BOOT_PATIENCE)
    await until(lambda: not guests.exists(), BOOT_PATIENCE)


async def test_qemu_that_is_asked_for_and_missing_is_told_and_auto_simulates(tmp_path):
    for kind in ("qemu", "auto"):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.devcluster", "--guests", kind),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        )
        line = await process.stdout.readline()
        if kind == "auto":
            told = json.loads(line)
            assert told["guests"] == "simulated"
            assert "apt-get install qemu-system-x86" in told["note"]
            process.terminate()
        _, problem = await process.communicate()
        if kind == "qemu":
            assert process.returncode == 1
            assert b"apt-get install qemu-system-x86" in problem
