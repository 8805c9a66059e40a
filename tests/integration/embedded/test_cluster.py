"""The dev cluster as `up` runs it: there when the block begins, back when it dies, gone when the block ends."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import psutil
import pytest
import yaml

from app.embedded.cluster import DevClusterFailed, _Starting, run_cluster
from app.embedded.folder import lock_folder
from tests.support.patience import PATIENCE

DIES_HOLDING = """
import asyncio, os, signal, sys
from pathlib import Path
from app.embedded.cluster import run_cluster
from app.embedded.folder import lock_folder

async def main():
    with lock_folder(Path(sys.argv[1])) as folder:
        async with run_cluster(folder):
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/version") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():  # noqa: ASYNC110  # what is waited for is in other processes: it can set no event here
            await asyncio.sleep(0.05)


def url_in(kubeconfig: Path) -> str:
    (cluster,) = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))["clusters"]
    return cluster["cluster"]["server"]


def clusters_of(folder: Path) -> list[psutil.Process]:
    """The processes that keep their state in the folder."""
    state = str(folder / "cluster" / "state.sqlite")
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if state in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def test_it_listens_on_loopback_while_the_block_lasts(tmp_path):
    with lock_folder(tmp_path) as folder:
        async with run_cluster(folder) as cluster:
            url = url_in(cluster.kubeconfig)
            assert url.startswith("http://127.0.0.1:")
            assert await answers(url)
        assert not await answers(url)
    assert clusters_of(tmp_path) == []


async def test_it_comes_back_at_its_address_when_it_dies(tmp_path):
    with lock_folder(tmp_path) as folder:
        async with run_cluster(folder) as cluster:
            url = url_in(cluster.kubeconfig)
            for _ in range(2):
                (before,) = clusters_of(tmp_path)
                before.kill()
                before.wait(PATIENCE)
                await until(lambda: answers(url))
        assert not await answers(url)
    assert clusters_of(tmp_path) == []


async def test_it_does_not_outlive_a_killed_starter(tmp_path):
    command = [sys.executable, "-c", DIES_HOLDING, str(tmp_path)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    url = url_in(tmp_path / "cluster" / "kubeconfig")
    _, alive = psutil.wait_procs(clusters_of(tmp_path), timeout=PATIENCE)
    assert not alive
    assert not await answers(url)


async def test_what_it_prepares_and_what_its_guests_are_is_passed_on(tmp_path):
    told = []
    said = [
        {"progress": "Making the guest."},
        {"url": "http://127.0.0.1:1", "guests": "qemu (tcg)", "note": "It is slow."},
    ]
    starting = _Starting(tmp_path / "log", PATIENCE, told.append)
    process, ready = await starting.start(printing(*said))
    await process.wait()
    assert told == ["Making the guest."]
    assert (ready["guests"], ready["note"]) == ("qemu (tcg)", "It is slow.")


async def test_a_reason_in_a_sentence_is_told_instead_of_the_log(tmp_path):
    starting = _Starting(tmp_path / "log", PATIENCE, lambda _: None)
    with pytest.raises(DevClusterFailed) as raised:
        await starting.start(printing({"error": "QEMU is not installed: apt-get install qemu-system-x86."}))
    assert str(raised.value) == "QEMU is not installed: apt-get install qemu-system-x86."


def printing(*lines: dict[str, str]) -> list[str]:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return [sys.executable, "-c", f"import sys; sys.stdout.write({text!r})"]


async def test_one_that_cannot_start_says_why(tmp_path):
    with (
        lock_folder(tmp_path) as folder,
        pytest.raises(DevClusterFailed, match=r"(?s)It ended at once.*--no-such-flag"),
    ):
        await run_cluster(folder, arguments=["--no-such-flag"]).__aenter__()
    assert clusters_of(tmp_path) == []
