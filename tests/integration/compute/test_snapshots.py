"""Snapshots in a cluster: what is sent holds to the schema, what comes back is read right, and a dev cluster goes along."""

import copy

import pytest

from app.compute.capabilities import Capability
from app.compute.kubevirt import labels
from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.connection import configure
from app.compute.kubevirt.kinds import VM_SNAPSHOTS, VMS
from app.compute.kubevirt.memory import START_FROM
from app.compute.kubevirt.snapshots import (
    KubeVirtSnapshots,
    judge_volume,
    read_disk,
    read_source,
    read_status,
    snapshot_manifest,
)
from app.compute.kubevirt.templates.expand import expand
from app.config import Settings
from app.domain.observation import WarmWhen
from app.domain.paths import FromSnapshot, MemoryImage
from app.domain.snapshots import VolumeVerdict
from app.errors import ClusterConflict, ClusterError, ClusterNotFound
from app.ids import new_id, vm_name
from tests.support.crd_schemas import complaints
from tests.support.kubevirt_documents import WITH_DATA_VOLUME, vm
from tests.support.recorded import exchange
from tests.support.rows import eventually

SNAPSHOTS = "snapshot.kubevirt.io/virtualmachinesnapshots"
TAKE_ID = "01a206d8-517b-7231-a079-9e6d21989c09"
MANIFEST = {
    "name": "ready-x",
    "namespace": "vms",
    "instance": "emberpool",
    "snapshot": "ready",
    "take_id": TAKE_ID,
    "vm": "vm-1",
    "deadline_seconds": 600,
}
PVC = {"persistentVolumeClaim": {"claimName": "root"}}


def recorded(step):
    """The last state of the object that a recorded step answered with."""
    return exchange("snapshot", step)["response"]["body"]


class TestWhatIsSent:
    def test_holds_to_the_schema(self):
        assert complaints(SNAPSHOTS, snapshot_manifest(**MANIFEST)) == []
        broken = snapshot_manifest(**MANIFEST)
        broken["spec"]["unheard-of"] = 1
        assert complaints(SNAPSHOTS, broken)

    def test_carries_our_labels_and_a_deadline(self):
        body = snapshot_manifest(**MANIFEST)
        assert body["metadata"]["labels"] == {
            labels.MANAGED_BY: "emberpool",
            labels.INSTANCE: "emberpool",
            labels.SNAPSHOT: "ready",
            labels.TAKE: TAKE_ID,
        }
        assert body["spec"]["failureDeadline"] == "600s"
        assert body["spec"]["source"] == {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "vm-1"}


class TestVolumes:
    @pytest.mark.parametrize(
        ("source", "enabled", "says"),
        [
            ({"dataVolume": {"name": "a"}}, True, None),
            ({"persistentVolumeClaim": {"claimName": "a"}}, True, None),
            ({"containerDisk": {"image": "a"}}, False, "a container disk is read from its image at each boot"),
            ({"emptyDisk": {"capacity": "1Gi"}}, False, "an empty disk is created again"),
            ({"ephemeral": {"persistentVolumeClaim": {"claimName": "a"}}}, False, "an ephemeral disk loses"),
            ({"cloudInitNoCloud": {"userData": "x"}}, False, "a cloudInitNoCloud volume has no disk"),
        ],
    )
    def test_what_could_ever_be_in_a_snapshot(self, source, enabled, says):
        verdict = judge_volume({"name": "v", **source})
        assert verdict.enabled is enabled
        assert says is None or says in verdict.reason

    def test_of_a_vm_by_kubevirts_own_word(self):
        given = vm(status={"created": True, "volumeSnapshotStatuses": []})
        given["spec"] = copy.deepcopy(given["spec"])
        given["spec"]["template"]["spec"]["volumes"] = [
            {"name": "root", **PVC},
            {"name": "data", **PVC},
            {"name": "new", **PVC},
            {"name": "image", "containerDisk": {"image": "a"}},
        ]
        given["status"]["volumeSnapshotStatuses"] = [
            {"name": "root", "enabled": True},
            {"name": "data", "enabled": False, "reason": "PVC not found"},
            {
                "name": "image",
                "enabled": False,
                "reason": "Snapshot is not supported for this volumeSource type [image]",
            },
        ]
        root, data, new, image = read_source(given).volumes
        assert (root, new) == (VolumeVerdict("root", enabled=True), VolumeVerdict("new", enabled=True))
        assert data == VolumeVerdict("data", enabled=False, reason="PVC not found")
        assert "container disk" in image.reason


class TestSources:
    @pytest.mark.parametrize(
        ("strategy", "status", "running", "halted"),
        [
            ({"runStrategy": "Always"}, {"created": True}, True, False),
            ({"runStrategy": "Always"}, {}, True, False),  # it may start the next moment
            ({"runStrategy": "Halted"}, {"created": True, "printableStatus": "Stopping"}, True, True),
            ({"runStrategy": "Halted"}, {"printableStatus": "Stopping"}, True, True),
            ({"runStrategy": "Halted"}, {"printableStatus": "Stopped"}, False, True),
            ({"running": False}, {"printableStatus": "Stopped"}, False, True),
        ],
    )
    def test_whether_it_runs(self, strategy, status, running, halted):
        given = vm(status=status)
        given["spec"] = {**{key: value for key, value in given["spec"].items() if key != "runStrategy"}, **strategy}
        found = read_source(given)
        assert (found.running, found.halted) == (running, halted)

    def test_the_shape_is_that_of_its_template_whatever_admission_filled_in(self):
        template = {
            "spec": {
                "domain": {"cpu": {"cores": 2}, "memory": {"guest": "1Gi"}, "devices": {}},
                "volumes": [{"name": "root", **PVC}],
            }
        }
        expanded = expand(template, WarmWhen.RUNNING)
        spec = copy.deepcopy(expanded.spec)
        vmi = spec["template"]["spec"]
        vmi["architecture"] = "amd64"
        vmi["domain"] |= {"machine": {"type": "q35"}, "firmware": {"uuid": "1", "serial": "2"}, "resources": {}}
        vmi["domain"]["devices"]["interfaces"] = [{"masquerade": {}, "name": "default"}]
        vmi["networks"] = [{"name": "default", "pod": {}}]
        spec["template"]["metadata"] = {"annotations": {"kubevirt.io/pci-topology-version": "v3"}}
        for strategy in ({"runStrategy": "Always"}, {"runStrategy": "Halted"}, {"running": False}):
            found = {**{key: value for key, value in spec.items() if key != "runStrategy"}, **strategy}
            assert read_source({**vm(), "spec": found}).shape == expanded.shape
        vmi["domain"]["firmware"]["bootloader"] = {"efi": {}}
        assert read_source({**vm(), "spec": spec}).shape != expanded.shape


class TestSights:
    def test_of_a_real_one(self):
        sight = read_status(recorded("GET the snapshot, ready"))
        assert (sight.ready, sight.failed, sight.deleting) == (True, False, False)
        assert (sight.included, sight.excluded) == (("root",), ("scratch",))
        assert sight.content.startswith("vmsnapshot-content-")
        assert sight.error is None

    def test_of_a_real_one_that_waits(self):
        sight = read_status(recorded("GET it"))
        assert not sight.ready
        assert sight.progress == "Source does not exist"

    def test_of_a_real_vm(self):
        found = read_source(recorded("GET the source VM, running"))
        assert (found.name, found.running, found.deleting) == ("src", True, False)
        assert [volume.enabled for volume in found.volumes] == [True, False]

    def test_of_real_disks(self):
        content = recorded("GET its content")
        (backup,) = content["spec"]["volumeBackups"]
        disk = read_disk(backup, recorded("GET the VolumeSnapshot"))
        assert (disk.volume, disk.size, disk.storage_class) == ("root", "2Gi", "rig-fast")
        assert (disk.access_modes, disk.volume_mode) == (("ReadWriteMany",), "Block")
        assert KubeVirtSnapshots(Settings(), None).count_bytes((disk, disk)) == 4 * 1024**3

    def test_a_failure_is_told_with_its_cause(self):
        status = {
            "phase": "Failed",
            "error": {"message": "VolumeSnapshot a error: no space"},
            "conditions": [{"type": "Failure", "status": "True", "reason": "snapshot deadline exceeded"}],
        }
        sight = read_status({"metadata": {"name": "a", "uid": "u"}, "status": status})
        assert sight.failed
        assert sight.error == "snapshot deadline exceeded: VolumeSnapshot a error: no space"
        assert sight.take_id is None

    def test_a_remark_on_what_was_left_out_is_kept(self):
        status = {"sourceIndications": [{"indication": "PartialSnapshot", "message": "Not all were included."}]}
        assert read_status({"metadata": {"name": "a", "uid": "u"}, "status": status}).hint == "Not all were included."


class TestDisks:
    @pytest.mark.parametrize(
        ("asked", "holds", "size"),
        [("2Gi", "1Gi", "2Gi"), ("1Gi", "1500Mi", "1500Mi"), (None, "1Gi", "1Gi"), ("1Gi", None, "1Gi")],
    )
    def test_are_as_large_as_both_need(self, asked, holds, size):
        spec = {"resources": {"requests": {"storage": asked}} if asked else {}}
        backup = {"volumeName": "root", "volumeSnapshotName": "vs", "persistentVolumeClaim": {"spec": spec}}
        assert read_disk(backup, {"status": {"restoreSize": holds} if holds else {}}).size == size

    @pytest.mark.parametrize("size", [None, "large"])
    def test_whose_size_is_told_nowhere_are_no_disks(self, size):
        spec = {"resources": {"requests": {"storage": size}} if size else {}}
        backup = {"volumeName": "root", "volumeSnapshotName": "vs", "persistentVolumeClaim": {"spec": spec}}
        with pytest.raises(ClusterError, match="size"):
            KubeVirtSnapshots(Settings(), None).count_bytes((read_disk(backup, {}),))


class TestOnADevCluster:
    @pytest.fixture
    async def source(self, gateway):
        """A VM with an imported disk, ready to be snapshotted."""
        template = gateway.expand(WITH_DATA_VOLUME, WarmWhen.READY)
        vm_id = new_id()
        name = vm_name("src", vm_id)
        await gateway.create_vm(name=name, pool="src", vm_id=str(vm_id), spec=template.spec)

        async def has_disks():
            found = await gateway.snapshots.source(name)
            return found if any(volume.enabled for volume in found.volumes) and found.running else None

        return await eventually(has_disks)

    async def taken(self, gateway, source, **given):
        take = {"name": "ready-x", "snapshot": "ready", "take_id": TAKE_ID, "vm": source.name, "deadline_seconds": 60}
        return await gateway.snapshots.take(**{**take, **given})

    async def ready(self, gateway, name="ready-x"):
        async def look():
            sight = await gateway.snapshots.look(name)
            return sight if sight.ready else None

        return await eventually(look)

    async def test_taken_asked_for_again_read_started_from_and_removed(self, gateway, source):
        made = await self.taken(gateway, source)
        assert (await self.taken(gateway, source)).uid == made.uid
        sight = await self.ready(gateway)
        assert sight.included == ("rootdisk",)
        (disk,) = await gateway.snapshots.disks(sight)
        assert (disk.volume, disk.size) == ("rootdisk", "10Gi")
        vm_id = new_id()
        template = gateway.expand(WITH_DATA_VOLUME, WarmWhen.READY)
        name = vm_name("new", vm_id)
        start = FromSnapshot("ready", (disk,))
        await gateway.create_vm(name=name, pool="new", vm_id=str(vm_id), spec=template.spec, start=start)

        async def boots():
            listed = await gateway.list_vms()
            return any(seen.name == name and seen.ready for seen in listed.observations)

        await eventually(boots)
        remove = {"name": "ready-x", "uid": made.uid, "take_id": TAKE_ID}
        await eventually(lambda: _gone(gateway, remove))
        assert not await gateway.snapshots.remove(**remove)
        assert await gateway.snapshots.all() == ()

    async def test_a_name_of_others_is_left_alone(self, gateway, source):
        made = await self.taken(gateway, source)
        with pytest.raises(ClusterConflict, match="not ours"):
            await self.taken(gateway, source, take_id=str(new_id()))
        assert not await gateway.snapshots.remove(name="ready-x", uid=None, take_id=str(new_id()))
        assert not await gateway.snapshots.remove(name="ready-x", uid=str(new_id()), take_id=TAKE_ID)
        assert (await gateway.snapshots.look("ready-x")).uid == made.uid

    async def test_a_lost_uid_is_found_by_the_name(self, gateway, source):
        await self.taken(gateway, source)
        await eventually(lambda: _gone(gateway, {"name": "ready-x", "uid": None, "take_id": TAKE_ID}))

    async def test_stopped_it_stays_stopped_and_only_that_uid_is(self, gateway, source):
        with pytest.raises(ClusterConflict, match="another object"):
            await gateway.snapshots.stop(name=source.name, uid=str(new_id()))
        with pytest.raises(ClusterNotFound):
            await gateway.snapshots.stop(name="nobody", uid=source.uid)
        await gateway.snapshots.stop(name=source.name, uid=source.uid)

        async def stopped():
            found = await gateway.snapshots.source(source.name)
            return found.halted and not found.running

        await eventually(stopped)
        await self.taken(gateway, source)
        await self.ready(gateway)

    async def test_what_is_not_there_is_none(self, gateway):
        assert await gateway.snapshots.source("nobody") is None
        assert await gateway.snapshots.look("nothing") is None
        assert await gateway.snapshots.all() == ()

    async def test_snapshots_of_others_are_not_ours(self, gateway, source, tmp_path):
        settings = Settings(kubeconfig=tmp_path / "kubeconfig")
        client = KubeVirtClient(settings, await configure(settings))
        try:
            body = snapshot_manifest(**{**MANIFEST, "namespace": "default", "vm": source.name, "instance": "another"})
            await client.create(VM_SNAPSHOTS, body)
            assert await gateway.snapshots.all() == ()
            assert (await client.get(VMS, source.name))["metadata"]["uid"] == source.uid
        finally:
            await client.close()


async def _gone(gateway, remove):
    return not await gateway.snapshots.remove(**remove) and await gateway.snapshots.look(remove["name"]) is None


class TestMemory:
    async def test_kept_on_a_dev_cluster_read_and_started_from(self, gateway):
        assert await gateway.unavailable(Capability.MEMORY) is None
        template = gateway.expand(WITH_DATA_VOLUME, WarmWhen.READY)
        source = await made(gateway, template, "src")
        take = {"name": "kept-x", "snapshot": "kept", "take_id": TAKE_ID, "vm": source, "deadline_seconds": 60}
        await gateway.snapshots.take(**take, memory=True)

        async def kept():
            status = await gateway.snapshots.look("kept-x")
            return status if status.ready else None

        status = await eventually(kept)
        assert status.memory.fingerprint
        assert status.memory.stale_reason is None
        start = FromSnapshot("kept", await gateway.snapshots.disks(status), MemoryImage("kept-x", template.spec))
        clone = await made(gateway, template, "clone", start)
        body = await gateway._client.get(VMS, clone)
        assert body["metadata"]["annotations"][START_FROM] == "kept-x"
        assert START_FROM not in (body["spec"]["template"]["metadata"].get("annotations") or {})

    async def test_a_cluster_without_the_group_keeps_none(self, gateway, monkeypatch):
        async def versions(_group):
            return ()

        monkeypatch.setattr(gateway.snapshots._client, "versions", versions)
        assert "as KubeVirt does not" in await gateway.unavailable(Capability.MEMORY)


async def made(gateway, template, pool, start=None):
    """The name of a VM that is ready."""
    vm_id = new_id()
    name = vm_name(pool, vm_id)
    await gateway.create_vm(name=name, pool=pool, vm_id=str(vm_id), spec=template.spec, start=start)

    async def is_ready():
        listed = await gateway.list_vms()
        return any(seen.name == name and seen.ready for seen in listed.observations)

    await eventually(is_ready)
    return name
