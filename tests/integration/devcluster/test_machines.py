"""Run strategies and subresources: when a VM's guest starts, stops, and starts again."""

import pytest

from tests.support.devcluster_bench import INSTANCES, MACHINES, SUBRESOURCES, machine


async def put(bench, plural, name, verb):
    status, body = await bench.call("PUT", f"{SUBRESOURCES}/{plural}/{name}/{verb}", {})
    return status, body


async def instance(bench, name="x"):
    status, body = await bench.call("GET", f"{INSTANCES}/{name}")
    return body if status == 200 else None


@pytest.mark.parametrize(
    ("strategy", "state"),
    [
        ("Always", "Running"),
        ("Once", "Running"),
        ("RerunOnFailure", "Running"),
        ("Manual", "Stopped"),
        ("Halted", "Stopped"),
    ],
)
async def test_what_a_strategy_starts_by_itself(bench, strategy, state):
    await bench.boot(machine("x", strategy=strategy))

    assert (await bench.status("x"))[0] == state


@pytest.mark.parametrize(
    ("strategy", "restarts"), [("Always", True), ("RerunOnFailure", True), ("Once", False), ("Manual", False)]
)
async def test_what_follows_a_guest_that_failed(bench, strategy, restarts):
    await bench.create(machine("x", strategy=strategy))
    if strategy == "Manual":
        await bench.clock.advance(1)
        assert (await put(bench, "virtualmachines", "x", "start"))[0] == 202
    await bench.clock.advance(60)
    first = (await instance(bench))["metadata"]["uid"]
    await bench.order(kind="guest-dies", count=1)
    await bench.clock.advance(90)

    vmi = await instance(bench)
    assert vmi["status"]["phase"] == ("Running" if restarts else "Failed")
    assert (vmi["metadata"]["uid"] != first) is restarts


async def test_a_restart_keeps_the_vm_and_gives_it_a_new_instance_and_address(bench):
    await bench.boot(machine("x"))
    vm, before = await bench.get(f"{MACHINES}/x"), await instance(bench)
    assert (await put(bench, "virtualmachines", "x", "restart"))[0] == 202
    await bench.clock.advance(60)

    after = await instance(bench)
    assert (await bench.get(f"{MACHINES}/x"))["metadata"]["uid"] == vm["metadata"]["uid"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["status"]["interfaces"][0]["ipAddress"] != before["status"]["interfaces"][0]["ipAddress"]
    assert await bench.status("x") == ("Running", "")


async def test_stop_and_start_turn_the_strategy_over(bench):
    await bench.boot(machine("x"))
    assert (await put(bench, "virtualmachines", "x", "stop"))[0] == 202
    await bench.clock.advance(10)
    assert (await bench.get(f"{MACHINES}/x"))["spec"]["runStrategy"] == "Halted"
    assert await instance(bench) is None
    assert (await put(bench, "virtualmachines", "x", "stop"))[1]["message"].endswith("VM is not running")

    assert (await put(bench, "virtualmachines", "x", "start"))[0] == 202
    await bench.clock.advance(60)
    assert await bench.status("x") == ("Running", "")


@pytest.mark.parametrize("strategy", ["Manual", "RerunOnFailure"])
async def test_a_requested_stop_lasts_until_a_requested_start(bench, strategy):
    await bench.create(machine("x", strategy=strategy))
    await bench.clock.advance(1)
    if strategy == "Manual":
        await put(bench, "virtualmachines", "x", "start")
    await bench.clock.advance(60)
    assert await bench.status("x") == ("Running", "")

    assert (await put(bench, "virtualmachines", "x", "stop"))[0] == 202
    await bench.clock.advance(120)
    assert (await bench.status("x"))[0] == "Stopped"
    assert "stateChangeRequests" not in (await bench.get(f"{MACHINES}/x"))["status"]
    assert (await put(bench, "virtualmachines", "x", "start"))[0] == 202
    await bench.clock.advance(60)
    assert await bench.status("x") == ("Running", "")


async def test_a_paused_vm_is_never_ready(bench):
    await bench.boot(machine("x"))
    assert (await put(bench, "virtualmachineinstances", "x", "pause"))[0] == 200
    await bench.clock.advance(1)
    assert await bench.status("x") == ("Paused", "ReadinessGatesNotReady")
    status, body = await put(bench, "virtualmachineinstances", "x", "pause")
    assert (status, body["message"].rsplit(": ", 1)[1]) == (409, "VMI is already paused")

    assert (await put(bench, "virtualmachineinstances", "x", "unpause"))[0] == 200
    await bench.clock.advance(1)
    assert await bench.status("x") == ("Running", "")


async def test_a_soft_reboot_loses_the_agent_for_as_long_as_the_guest_boots(bench):
    await bench.boot(machine("x"))
    before = await instance(bench)
    assert (await put(bench, "virtualmachineinstances", "x", "softreboot"))[0] == 200
    await bench.clock.advance(1)
    assert await bench.condition("x", "AgentConnected") is None

    await bench.clock.advance(30)
    assert await bench.status("x") == ("Running", "")
    assert (await instance(bench))["metadata"]["uid"] == before["metadata"]["uid"]


async def test_a_cold_boot_takes_its_configured_time_and_a_warm_image_less(bench):
    durations = bench.cluster.config.durations
    await bench.create(machine("x"))
    await bench.clock.advance(durations.cold_boot - 0.5)
    assert (await bench.status("x"))[1] != ""
    await bench.clock.advance(1)
    assert await bench.status("x") == ("Running", "")
    phases = (await instance(bench))["status"]["phaseTransitionTimestamps"]
    assert [item["phase"] for item in phases] == ["Pending", "Scheduling", "Scheduled", "Running"]


async def test_an_instance_by_itself_goes_when_its_vm_is_orphaned_away(bench):
    await bench.boot(machine("x"))
    uid = (await bench.get(f"{MACHINES}/x"))["metadata"]["uid"]
    status, _ = await bench.call("DELETE", f"{MACHINES}/x", {"preconditions": {"uid": uid}})
    assert status == 200
    await bench.clock.advance(20)

    assert (await bench.call("GET", f"{MACHINES}/x"))[0] == 404
    assert await instance(bench) is None
    assert (await bench.get("/api/v1/pods"))["items"] == []


async def test_a_namespace_comes_and_goes_with_what_is_in_it(bench):
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    status, namespace = await bench.call("POST", "/api/v1/namespaces", body)
    assert (status, namespace["status"]) == (201, {"phase": "Active"})
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": "team"}
    team = MACHINES.replace("default", "team")
    assert (await bench.call("POST", team, machine("x")))[0] == 201
    await bench.clock.advance(60)

    assert (await bench.call("DELETE", "/api/v1/namespaces/team"))[0] == 200
    await bench.clock.advance(20)
    assert (await bench.get(team))["items"] == []
    assert (await bench.get("/api/v1/pods"))["items"] == []


async def test_nothing_is_left_behind_by_many_vms(bench):
    """What the controllers keep in memory goes with the objects."""
    for _ in range(3):
        names = [f"vm{number}" for number in range(20)]
        await bench.boot(*(machine(name) for name in names))
        for name in names:
            await bench.call("DELETE", f"{MACHINES}/{name}", {"propagationPolicy": "Foreground"})
        await bench.clock.advance(60)

    cluster = bench.cluster
    assert (await bench.get("/devcluster/v1/state"))["virtualmachines"]["total"] == 0
    assert [controller for controller in cluster._controllers if controller._timers._running] == []
    assert cluster.store._dependents == {}
    assert all(not any(cluster.ledger.used(f"node{number}").values()) for number in (1, 2, 3))
