"""The dev cluster held against what a real API server and real KubeVirt controllers answered."""

import pytest

from app.devcluster.apiserver.registry import STORAGE_CLASSES
from app.devcluster.faults.disruptions import Stage
from app.devcluster.storage.storage_classes import PROVISIONER
from tests.support.contract_steps import SCENARIOS, steps_of
from tests.support.replay import Replay


def machine(name, **labels):
    spec = {"runStrategy": "Halted", "template": {"spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}}}}
    metadata = {"name": name, "namespace": "rec", "labels": labels}
    return {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": metadata, "spec": spec}


def source():
    """The VM that the recorder had already created: one disk on a claim, one on a container image."""
    domain = {
        "cpu": {"cores": 1},
        "memory": {"guest": "1Gi"},
        "devices": {
            "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "scratch", "disk": {"bus": "virtio"}}],
            "interfaces": [{"name": "default", "masquerade": {}}],
        },
    }
    volumes = [
        {"name": "root", "persistentVolumeClaim": {"claimName": "src-root"}},
        {"name": "scratch", "containerDisk": {"image": "quay.io/containerdisks/fedora:42"}},
    ]
    spec = {
        "domain": domain,
        "networks": [{"name": "default", "pod": {}}],
        "terminationGracePeriodSeconds": 30,
        "volumes": volumes,
    }
    labels = {"app": "rec-snap"}
    obj = machine("src", **labels)
    return {**obj, "spec": {"runStrategy": "Always", "template": {"metadata": {"labels": labels}, "spec": spec}}}


SETUP = {
    "lists": [
        machine("a", app="rec-lists", tier="gold"),
        machine("b", app="rec-lists", tier="silver"),
        machine("c", app="rec-lists"),
        machine("d", app="other", tier="gold"),
        machine("e", app="other"),
    ],
    "snapshot": [source()],
    "server-restart": [machine("keep", app="rec-restart"), machine("keep2", app="rec-restart")],
}


# The storage class that the recorder's claims name.
STORAGE = {
    "snapshot": [
        (
            STORAGE_CLASSES,
            {"metadata": {"name": "rig-fast", "uid": "rig-fast"}, "provisioner": PROVISIONER},
        )
    ]
}


async def terminate(cluster):
    await cluster.interrupt(kill=False)


async def kill(cluster):
    await cluster.interrupt(kill=True)


async def listen(cluster):
    await cluster.recover(Stage.NO_CUSTOM_PATHS)


async def serve_custom_kinds(cluster):
    cluster.disruptions.stage = Stage.NOT_READY


async def be_ready(cluster):
    cluster.disruptions.stage = Stage.UP


async def stop_virt_api(cluster):
    cluster.faults.order(kind="virt-api-down")


async def start_virt_api(cluster):
    cluster.faults.lift_all()


ACTIONS = {
    "server-restart": [
        (3.1, terminate),
        (63.5, listen),
        (64.4, serve_custom_kinds),
        (65.7, be_ready),
        (69.7, kill),
        (70.15, listen),
        (71.0, serve_custom_kinds),
        (72.0, be_ready),
        (79.0, stop_virt_api),
        (130.0, start_virt_api),
    ],
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_dev_cluster_answers_as_was_recorded(scenario):
    replay = Replay(
        steps_of(scenario),
        setup=SETUP.get(scenario, ()),
        storage=STORAGE.get(scenario, ()),
        actions=ACTIONS.get(scenario, ()),
    )

    complaints = await replay.run()

    assert not complaints, f"{len(complaints)} differences:\n" + "\n".join(complaints)
