"""VolumeSnapshots of claims, by themselves."""

import pytest

from tests.support.devcluster_bench import MACHINES
from tests.support.devcluster_disks import (
    CLAIMS,
    CSI,
    VOLUME_SNAPSHOTS,
    claim,
    disk_machine,
    make,
    on_claim,
)


def volume_snapshot(name, source, snapshot_class=None):
    spec = {"source": {"persistentVolumeClaimName": source}}
    if snapshot_class:
        spec["volumeSnapshotClassName"] = snapshot_class
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("cut", "absent"), 'cannot get claim from snapshot: persistentvolumeclaims "absent" not found'),
        (("cut", "waiting"), "the PVC waiting is not yet bound to a PV, will not attempt to take a snapshot"),
        (("cut", "plain"), "cannot find default snapshot class"),
        (("cut", "good", "nope"), 'volumesnapshotclass.snapshot.storage.k8s.io "nope" not found'),
    ],
)
async def test_a_volume_snapshot_says_why_it_cannot_be_taken(bench, given, told):
    await make(bench, CLAIMS, claim("good"), claim("plain", storage_class="no-snapshots"))
    await make(bench, CLAIMS, claim("waiting", storage_class="local-wait"))
    await make(bench, VOLUME_SNAPSHOTS, volume_snapshot(*given))
    await bench.clock.advance(5)

    status = (await bench.get(f"{VOLUME_SNAPSHOTS}/cut"))["status"]
    assert status["readyToUse"] is False
    assert status["error"]["message"].endswith(told)


@pytest.mark.parametrize("marked", [True, False])
async def test_of_several_snapshot_classes_the_default_is_taken(bench, marked):
    other = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": {"name": "zzz"},
        "driver": "csi.devcluster",
        "deletionPolicy": "Delete",
    }
    if marked:
        other["metadata"]["annotations"] = {"snapshot.storage.kubernetes.io/is-default-class": "true"}
    await make(bench, f"{CSI}/volumesnapshotclasses", other)
    storage = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "csi.devcluster"}
    await make(bench, "/apis/storage.k8s.io/v1/storageclasses", {**storage, "metadata": {"name": "late"}})
    await bench.clock.advance(1)
    await make(bench, CLAIMS, claim("root", storage_class="late"))
    await bench.create(disk_machine("vm", on_claim("root"), strategy="Halted"))
    await bench.clock.advance(1)

    status = (await bench.get(f"{MACHINES}/vm"))["status"]["volumeSnapshotStatuses"]
    problem = {"name": "root", "enabled": False, "reason": "2 matching VolumeSnapshotClasses for late"}
    assert status == [{"name": "root", "enabled": True} if marked else problem]


async def test_snapshot_faults_strike_a_volume_snapshot_of_its_own(bench):
    await make(bench, CLAIMS, claim("good"))
    await bench.order(kind="snapshot-fails", name="cut")
    await make(bench, VOLUME_SNAPSHOTS, volume_snapshot("cut", "good"), volume_snapshot("other", "good"))
    await bench.clock.advance(5)

    ready = {
        item["metadata"]["name"]: item["status"]["readyToUse"] for item in (await bench.get(VOLUME_SNAPSHOTS))["items"]
    }
    assert ready == {"cut": False, "other": True}
