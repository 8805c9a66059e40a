"""The guest program itself, in the shells and with the clients that guests have, against the service."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from app.devcluster import DevCluster, DevClusterConfig, Durations
from app.lifecycle.guest_program import FILES, identity_files
from tests.support.clusters import COLD_BOOT_SECONDS
from tests.support.guests import identity_of, serve_guests
from tests.support.postgres import clone_database, postgres, template_database
from tests.support.service import until

__all__ = ["postgres", "template_database"]
pytestmark = pytest.mark.asyncio(loop_scope="module")
TOOLS = (
    "cat",
    "mkdir",
    "rm",
    "sed",
    "head",
    "tail",
    "sleep",
    "od",
    "mv",
    "mkfifo",
    "grep",
    "dd",
    "timeout",
    "mount",
    "env",
)
KINDS = ("dash with curl", "dash with wget", "busybox alone")


def shell_of(kind: str, folder: Path) -> str:
    """The shell that runs the program, with a folder of the tools that it finds; skips where they are not installed."""
    shell, _, client = kind.partition(" with ")
    needed = ["busybox"] if kind == "busybox alone" else [shell, client, *TOOLS]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        pytest.skip(f"install {', '.join(missing)} to run the guest program with {kind}")
    folder.mkdir(parents=True)
    if kind == "busybox alone":
        subprocess.run(["busybox", "--install", "-s", str(folder)], check=True)
        return str(folder / "sh")
    for name in needed:
        (folder / name).symlink_to(shutil.which(name))
    return str(folder / shell)


class Program:
    """The program in a folder that stands for a guest's root."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.hooks = root / "etc/emberpool"
        self._shell = shell_of(kind, root / "bin")
        for name in ("claimed.d", "released.d"):
            (self.hooks / name).mkdir(parents=True)

    def insert(self, disk: dict[str, str]) -> None:
        place = self.root / "run/emberpool/disk"
        place.mkdir(parents=True, exist_ok=True)
        for name, content in disk.items():
            (place / name).write_text(content, encoding="utf-8")

    def hook(self, name: str, script: str) -> None:
        path = self.hooks / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    @asynccontextmanager
    async def running(self, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
        environment = {
            "PATH": str(self.root / "bin"),
            "EMBERPOOL_ROOT": str(self.root),
            "EMBERPOOL_BOOT_ID": "boot-1",
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            self._shell,
            str(self.root / "run/emberpool/disk/guest.sh"),
            env={**environment, "HOME": os.environ.get("HOME", "/")},
            start_new_session=True,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                os.killpg(process.pid, 9)
            await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster():
    async with DevCluster(DevClusterConfig(durations=Durations.for_cold_boot(COLD_BOOT_SECONDS))) as cluster:
        cluster.guest_hooks = None
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(postgres, template_database, cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    async with clone_database(postgres, template_database) as url, serve_guests(url, cluster, folder) as server:
        yield server


async def program_in_a_vm(server, cluster, pool, root, kind=KINDS[0]):
    program = Program(root, kind)
    await server.fill(pool, size=1, auto_replenish=False, guest={"channel": True, "release_seconds": 60})
    (vm,) = (await server.client.get("/v1/vms", params={"pool": pool, "state": "ready"})).json()["items"]
    program.insert(identity_of(cluster, vm["name"]))
    return program, vm


async def until_over(server, claim):
    async def over():
        found = (await server.client.get(f"/v1/claims/{claim['id']}")).json()["handover"]
        return found if found["state"] in {"done", "failed"} else None

    return await until(over)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_hooks_get_the_claim_and_the_claimant_what_they_print(server, cluster, tmp_path, kind):
    program, _ = await program_in_a_vm(server, cluster, f"runs-{KINDS.index(kind)}", tmp_path / "root", kind)
    program.hook("claimed.d/10-first", 'echo "job $JOB of $EMBERPOOL_POOL"; cat > "$EMBERPOOL_ROOT/seen"')
    program.hook("claimed.d/20-second", "echo second >&2")
    (program.hooks / "claimed.d/30-no-program").write_text("exit 1\n", encoding="utf-8")
    async with program.running():
        pool = f"runs-{KINDS.index(kind)}"
        claim = await server.claim_one(
            pool, handover={"data": {"env": {"JOB": "it's 1"}}, "wait": True, "wait_seconds": 60}
        )
        found = await until_over(server, claim)
    assert (found["state"], found["exit_code"]) == ("done", 0), found
    assert found["output"] == f"job it's 1 of {pool}\nsecond\n"
    assert '"JOB":"it\'s 1"' in (program.root / "seen").read_text(encoding="utf-8")
    kept = program.root / "run/emberpool/claim.json"
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hook_that_fails_ends_the_others_and_its_exit_code_is_told(server, cluster, tmp_path, kind):
    pool = f"hook-fails-{KINDS.index(kind)}"
    program, _ = await program_in_a_vm(server, cluster, pool, tmp_path / "root", kind)
    program.hook("claimed.d/10-fails", "echo no; exit 3")
    program.hook("claimed.d/20-never", "echo never")
    async with program.running():
        claim = await server.claim_one(pool, handover={"data": None, "wait": True, "wait_seconds": 60})
        found = await until_over(server, claim)
    assert (found["state"], found["exit_code"], found["output"]) == ("failed", 3, "no\n")


async def test_a_hook_that_hangs_is_ended(server, cluster, tmp_path):
    program, _ = await program_in_a_vm(server, cluster, "hook-hangs", tmp_path / "root")
    program.hook("claimed.d/10-hangs", "echo begins; exec sleep 3600")
    async with program.running(EMBERPOOL_HOOK_SECONDS="1"):
        claim = await server.claim_one("hook-hangs", handover={"data": 1})
        found = await until_over(server, claim)
    assert (found["state"], found["exit_code"], found["output"]) == ("failed", 124, "begins\n")


async def test_a_hook_that_prints_megabytes_goes_on_to_its_end(server, cluster, tmp_path):
    program, _ = await program_in_a_vm(server, cluster, "hook-prints", tmp_path / "root")
    program.hook("claimed.d/10-prints", 'head -c 5000000 /dev/zero | tr "\\\\0" x; touch "$EMBERPOOL_ROOT/ended"')
    (program.root / "bin/tr").symlink_to(shutil.which("tr"))
    (program.root / "bin/touch").symlink_to(shutil.which("touch"))
    async with program.running():
        claim = await server.claim_one("hook-prints", handover={"data": 1})
        found = await until_over(server, claim)
    assert (found["state"], len(found["output"])) == ("done", 4096)
    assert (program.root / "ended").exists()


async def test_what_a_hook_leaves_running_keeps_nobody_waiting(server, cluster, tmp_path):
    program, _ = await program_in_a_vm(server, cluster, "hook-leaves", tmp_path / "root")
    program.hook("claimed.d/10-starts", "echo started; sleep 3600 &")
    async with program.running():
        claim = await server.claim_one("hook-leaves", handover={"data": 1})
        found = await until_over(server, claim)
    assert (found["state"], found["output"]) == ("done", "started\n")


async def test_the_hooks_run_once_although_the_program_is_started_anew(server, cluster, tmp_path):
    program, _ = await program_in_a_vm(server, cluster, "once", tmp_path / "root")
    program.hook("claimed.d/10-counts", 'echo run >> "$EMBERPOOL_ROOT/runs"; exec sleep 3600')
    runs = program.root / "runs"

    async def begun():
        return runs.exists()

    async with program.running():
        claim = await server.claim_one("once", handover={"data": 1})
        await until(begun)
    async with program.running():
        found = await until_over(server, claim)
    assert (found["state"], found["exit_code"]) == ("failed", 130)
    assert runs.read_text(encoding="utf-8") == "run\n"


async def test_a_release_runs_the_hooks_for_it_and_then_the_vm_goes(server, cluster, tmp_path):
    program, vm = await program_in_a_vm(server, cluster, "releases", tmp_path / "root")
    program.hook("released.d/10-ends", 'echo "$EMBERPOOL_CLAIM" > "$EMBERPOOL_ROOT/released"')
    async with program.running() as process:
        claim = await server.claim_one("releases", handover={"data": 1, "wait": True, "wait_seconds": 60})
        await until_over(server, claim)
        await server.client.delete(f"/v1/claims/{claim['id']}")
        assert await process.wait() == 0
        assert (program.root / "released").read_text(encoding="utf-8") == f"{claim['id']}\n"

        async def gone():
            return (await server.client.get(f"/v1/vms/{vm['id']}")).json()["state"] == "deleted"

        await until(gone)


async def test_a_guest_whose_token_is_unknown_gives_up_and_says_why(server, cluster, tmp_path):
    program, _ = await program_in_a_vm(server, cluster, "unknown", tmp_path / "root")
    program.insert({"token": "nobody-has-it"})
    async with program.running() as process:
        assert await process.wait() == 1
        said = (await process.stderr.read()).decode()
    assert "refuses this guest (401)" in said
    assert "nobody-has-it" not in said


async def test_a_vm_without_an_identity_disk_has_no_channel(tmp_path):
    program = Program(tmp_path / "root", KINDS[0])
    program.insert(dict.fromkeys(FILES, "") | {"guest.sh": identity_files(None)["guest.sh"]})
    async with program.running() as process:
        assert await process.wait() == 1
        assert "no disk with the label EMBERPOOL" in (await process.stderr.read()).decode()
