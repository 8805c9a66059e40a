"""The command, from its first line of output to its end."""

import asyncio
import json
import signal
import sys

import aiohttp
import pytest
import yaml

from tests.support.devcluster_bench import MACHINES, machine
from tests.support.patience import PATIENCE


async def run(*arguments):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.devcluster",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_listens_and_stops_cleanly(tmp_path, number):
    kubeconfig, ready = tmp_path / "kube" / "config", tmp_path / "ready"
    process = await run(
        "--cold-boot-seconds",
        "0.1",
        "--nodes",
        "2",
        "--namespace",
        "team",
        "--kubeconfig-out",
        kubeconfig,
        "--ready-file",
        ready,
    )
    line = json.loads(await process.stdout.readline())

    assert json.loads(ready.read_text()) == line
    assert yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"] == line["url"]
    async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE):
        async with session.get(line["url"] + "/version") as answer:
            assert answer.headers["Server"] == "emberpool-devcluster"
            assert (await answer.json())["gitVersion"].endswith("emberpool-devcluster")
        async with session.get(line["url"] + "/api/v1/nodes") as answer:
            assert len((await answer.json())["items"]) == 2
        path = line["url"] + MACHINES.replace("default", "team")
        async with session.post(path, json=machine("x")) as answer:
            assert answer.status == 201
        async with session.get(path + "?watch=true&resourceVersion=0") as watch:
            async for event in watch.content:
                if json.loads(event)["object"].get("status", {}).get("ready"):
                    break
            process.send_signal(number)
            assert await process.wait() == 0
    assert (await process.stderr.read()).decode() == ""


@pytest.mark.parametrize("option", [("--node-memory", "much"), ("--cold-boot-seconds", "-1"), ("--nodes", "many")])
async def test_a_bad_option_is_told_and_nothing_is_served(option):
    process = await run(*option)
    output, complaint = await process.communicate()

    assert (process.returncode, output) == (2, b"")
    assert option[0] in complaint.decode()
