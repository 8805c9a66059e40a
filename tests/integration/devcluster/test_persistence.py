"""A cluster with a state file goes on where it stopped, or was killed."""

import asyncio
import json
import signal
import sqlite3
import sys
from datetime import timedelta

import aiohttp
import pytest

from app.devcluster import DevCluster, DevClusterConfig, ManualClock
from app.devcluster.apiserver.persistence import StateFile
from app.devcluster.apiserver.registry import SECRETS
from app.devcluster.apiserver.store import Store
from tests.support.devcluster_bench import INSTANCES, MACHINES, Bench, machine, until
from tests.support.devcluster_disks import (
    CLAIMS,
    CONTENTS,
    CRONS,
    DATA_VOLUMES,
    SNAPSHOTS,
    claim,
    cron,
    data_volume,
    disk_machine,
    make,
    on_claim,
    vm_snapshot,
)


@pytest.fixture
async def start(tmp_path):
    """Starts a cluster on the same state file each time; the one before must have been stopped."""
    running = []

    async def begin(moment=None):
        clock = ManualClock(moment)
        config = DevClusterConfig(state=tmp_path / "state.db", jitter_share=0.0)
        cluster = DevCluster(config, clock=clock)
        await cluster.start()
        session = aiohttp.ClientSession()
        running.append((cluster, session))
        return Bench(cluster, clock, session)

    async def end():
        cluster, session = running.pop()
        await session.close()
        await cluster.stop()

    begin.end = end
    yield begin
    while running:
        await end()


async def test_running_vms_run_on_and_those_on_their_way_arrive(start):
    bench = await start()
    await bench.boot(machine("warm"))
    await bench.create(machine("booting"))
    await bench.clock.advance(5)
    before = await bench.get(f"{INSTANCES}/warm")
    listed = int((await bench.get(MACHINES))["metadata"]["resourceVersion"])
    await start.end()

    bench = await start()
    assert await bench.get(f"{INSTANCES}/warm") == before
    assert await bench.status("warm") == ("Running", "")
    assert int((await bench.get(MACHINES))["metadata"]["resourceVersion"]) > listed
    await bench.clock.advance(60)
    assert await bench.status("booting") == ("Running", "")
    addresses = {
        (await bench.get(f"{INSTANCES}/{name}"))["status"]["interfaces"][0]["ipAddress"] for name in ("warm", "booting")
    }
    assert len(addresses) == 2


async def test_a_watch_from_before_the_restart_is_too_old(start):
    bench = await start()
    await bench.create(machine("x"))
    listed = (await bench.get(MACHINES))["metadata"]["resourceVersion"]
    await start.end()

    bench = await start()
    path = f"{bench.cluster.url}{MACHINES}?watch=true&resourceVersion={listed}"
    async with bench.session.get(path) as response:
        event = json.loads(await response.content.readline())
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


async def test_a_deletion_under_way_is_finished(start):
    bench = await start()
    await bench.boot(machine("x"))
    await bench.call("DELETE", f"{MACHINES}/x", {"propagationPolicy": "Foreground"})
    await bench.clock.advance(0.5)
    assert (await bench.status("x"))[0] == "Terminating"
    await start.end()

    bench = await start()
    await bench.clock.advance(10)
    assert (await bench.call("GET", f"{MACHINES}/x"))[0] == 404
    assert (await bench.get("/api/v1/pods"))["items"] == []


async def test_a_crash_loop_keeps_its_backoff(start):
    bench = await start()
    await bench.order(kind="boot-fails")
    await bench.create(machine("x"))
    await bench.clock.advance(20)
    assert (await bench.status("x"))[0] == "CrashLoopBackOff"
    await start.end()

    bench = await start()
    await bench.clock.advance(1)
    assert (await bench.status("x"))[0] == "CrashLoopBackOff"
    await bench.clock.advance(120)
    assert await bench.status("x") == ("Running", "")


async def test_a_dead_node_stays_dead(start):
    bench = await start()
    await bench.call("POST", "/devcluster/v1/nodes/node1/kill")
    await bench.clock.advance(60)
    await start.end()

    bench = await start()
    nodes = (await bench.get("/devcluster/v1/nodes"))["items"]
    assert {node["name"]: node["alive"] for node in nodes} == {"node1": False, "node2": True, "node3": True}


def test_what_was_flushed_is_read_back_and_nothing_else(tmp_path):
    def secret(name):
        return {"metadata": {"name": name, "namespace": "default", "uid": name}, "data": {}}

    clock = ManualClock()
    store = Store()
    state = StateFile(tmp_path / "state.db")
    assert not state.load(store)
    kept = store.put(SECRETS, secret("kept"))
    state.attach(store, clock)
    state._db.close()

    other = Store()
    assert StateFile(tmp_path / "state.db").load(other)
    assert [stored.obj for stored in other.rows(SECRETS)] == [kept.obj]
    assert other.rv > store.rv


async def test_a_killed_process_loses_at_most_its_last_batch(tmp_path):
    """The command itself, killed with SIGKILL; the objects are there again under their uids."""
    arguments = ["--state", str(tmp_path / "state.db"), "--cold-boot-seconds", "0.2"]

    async def command():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.devcluster", *arguments, stdout=asyncio.subprocess.PIPE
        )
        return process, json.loads(await process.stdout.readline())["url"]

    async with aiohttp.ClientSession() as session:
        process, url = await command()
        warm = {}
        for name in ("a", "b", "c"):
            async with session.post(url + MACHINES, json=machine(name)) as answer:
                warm[name] = (await answer.json())["metadata"]["uid"]

        async def all_warm():
            return (await _state(session, url))["virtualmachines"]["warm"] == 3

        await until(all_warm)
        version = int((await _state(session, url))["resourceVersion"])
        await until(lambda: _saved_version(tmp_path / "state.db") >= version)
        process.send_signal(signal.SIGKILL)
        await process.wait()

        process, url = await command()
        async with session.get(url + MACHINES) as answer:
            items = (await answer.json())["items"]
        assert {item["metadata"]["name"]: item["metadata"]["uid"] for item in items} == warm
        assert (await _state(session, url))["virtualmachines"]["warm"] == 3
        process.terminate()
        assert await process.wait() == 0


async def _state(session, url):
    async with session.get(url + "/devcluster/v1/state") as answer:
        return await answer.json()


def _saved_version(path):
    with sqlite3.connect(path) as db:
        row = db.execute("SELECT value FROM counters").fetchone()
    db.close()
    return row[0]


async def test_an_import_goes_on_where_it_was(start):
    bench = await start()
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(31)
    before = (await bench.get(f"{DATA_VOLUMES}/image"))["status"]["progress"]
    await start.end()

    bench = await start()
    assert (await bench.get(f"{DATA_VOLUMES}/image"))["status"]["progress"] == before == "75.00%"
    await bench.clock.advance(11)
    assert (await bench.get(f"{DATA_VOLUMES}/image"))["status"]["phase"] == "Succeeded"


async def test_a_snapshot_under_way_gets_ready_and_what_was_booted_stays_warm(start):
    bench = await start()
    await make(bench, CLAIMS, claim("root"))
    await bench.boot(disk_machine("src", on_claim("root")))
    await make(bench, SNAPSHOTS, vm_snapshot("s1", "src"))
    await bench.clock.advance(1)
    await start.end()

    bench = await start()
    await bench.clock.advance(5)
    snapshot = await bench.get(f"{SNAPSHOTS}/s1")
    assert snapshot["status"]["readyToUse"] is True
    content = await bench.get(f"{CONTENTS}/{snapshot['status']['virtualMachineSnapshotContentName']}")
    await start.end()

    bench = await start()
    origin = content["spec"]["volumeBackups"][0]["volumeSnapshotName"]
    await make(bench, CLAIMS, claim("copy", snapshot=origin))
    await bench.create(disk_machine("fast", on_claim("copy")))
    await bench.clock.advance(13)
    assert await bench.status("fast") == ("Running", "")


async def test_a_deadline_passes_while_the_cluster_is_down(start):
    bench = await start()
    await bench.create(disk_machine("src", on_claim("root"), strategy="Halted"))
    await make(bench, SNAPSHOTS, vm_snapshot("s1", "src", failureDeadline="10s"))
    await bench.clock.advance(5)
    now = bench.clock.now()
    await start.end()

    bench = await start(now + timedelta(seconds=60))
    await bench.clock.advance(1)
    assert (await bench.get(f"{SNAPSHOTS}/s1"))["status"]["phase"] == "Failed"


async def test_a_cron_that_missed_its_time_looks_at_once(start):
    bench = await start()
    await make(bench, CRONS, cron())
    await bench.clock.advance(60)
    order = {"url": cron()["spec"]["template"]["spec"]["source"]["registry"]["url"], "digest": f"sha256:{'b' * 64}"}
    await bench.call("POST", "/devcluster/v1/images", order)
    now = bench.clock.now()
    await start.end()

    bench = await start(now + timedelta(hours=3))
    await bench.clock.advance(60)
    assert (await bench.get(f"{CRONS}/fedora"))["status"]["lastImportedPVC"]["name"] == "image-bbbbbbbbbbbb"


async def test_a_cluster_saved_before_it_had_storage_classes_gets_them(start, tmp_path):
    await start()
    await start.end()
    with sqlite3.connect(tmp_path / "state.db") as database:
        database.execute("DELETE FROM objects WHERE resource LIKE '%storage%'")

    bench = await start()
    await make(bench, DATA_VOLUMES, data_volume("image", storage={"storageClassName": "fast-ssd"}))
    await bench.clock.advance(45)
    assert (await bench.get(f"{DATA_VOLUMES}/image"))["status"]["phase"] == "Succeeded"
