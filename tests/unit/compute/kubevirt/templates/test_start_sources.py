"""What a VM starts from, put into its spec; each result is held against the schemas too."""

import copy
from dataclasses import replace

import pytest

from app.compute.kubevirt import labels
from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.manifests import vm_manifest
from app.compute.kubevirt.templates.start_sources import begin, has_own_disk, infers, keeps_state, pvcs_of
from app.domain.observation import WarmWhen
from app.domain.paths import FromImage, FromSnapshot, FromVolume, ImageKind, ImageRef, SnapshotDisk
from tests.support.crd_schemas import complaints
from tests.support.kubevirt_documents import SHORT, VM_ID, VM_SPEC, WITH_DATA_VOLUME, changed
from tests.support.kubevirt_documents import vm as cluster_vm

NAME = "web-aaaa"
FEDORA = ImageRef(ImageKind.REGISTRY, "docker://quay.io/containerdisks/fedora:42")
DISK = SnapshotDisk("rootdisk", "vmsnapshot-1-volume-rootdisk", "10Gi", "fast", ("ReadWriteOnce",), "Block")
SNAPSHOT = FromSnapshot("ready", (DISK,))
PRELOAD = FromVolume("fedora", FEDORA, "preload-fedora-1", "12Gi", "fast", ("ReadWriteOnce",), "Filesystem")
DISKLESS = changed(VM_SPEC, "template.spec.volumes", ...)
CLOUD_INIT = {"name": "cloud", "cloudInitNoCloud": {"userData": "#cloud-config"}}


def begun(template, start, *, diskless=False):
    spec = expand(template, WarmWhen.AGENT, diskless=diskless).spec
    before = copy.deepcopy(spec)
    result = begin(spec, start, vm=NAME, namespace="vms")
    assert spec == before  # a pool's spec makes many VMs
    return result


def volumes(spec):
    return {volume["name"]: volume for volume in spec["template"]["spec"].get("volumes", ())}


def disks(spec):
    return spec["template"]["spec"]["domain"]["devices"]["disks"]


def test_without_a_start_nothing_changes():
    assert begun(VM_SPEC, None) == expand(VM_SPEC, WarmWhen.AGENT).spec


class TestSnapshot:
    def test_its_disk_takes_the_place_of_the_import(self):
        spec = begun(WITH_DATA_VOLUME, SNAPSHOT)
        assert "dataVolumeTemplates" not in spec
        assert volumes(spec) == {
            "rootdisk": {"name": "rootdisk", "persistentVolumeClaim": {"claimName": f"{NAME}-rootdisk"}}
        }
        assert "disks" not in spec["template"]["spec"]["domain"]["devices"]

    def test_other_volumes_and_imports_stay(self):
        template = copy.deepcopy(WITH_DATA_VOLUME)
        second = copy.deepcopy(template["dataVolumeTemplates"][0])
        second["metadata"]["name"] = "data"
        template["dataVolumeTemplates"].append(second)
        template["template"]["spec"]["volumes"] += [{"name": "datadisk", "dataVolume": {"name": "data"}}, CLOUD_INIT]
        spec = begun(template, SNAPSHOT)
        assert [each["metadata"]["name"] for each in spec["dataVolumeTemplates"]] == ["data"]
        assert volumes(spec)["datadisk"] == {"name": "datadisk", "dataVolume": {"name": "data"}}
        assert volumes(spec)["cloud"] == CLOUD_INIT

    def test_a_template_without_the_volume_gets_it_before_its_own(self):
        spec = begun(changed(VM_SPEC, "template.spec.volumes", [CLOUD_INIT]), SNAPSHOT)
        assert list(volumes(spec)) == ["rootdisk", "cloud"]
        assert disks(spec) == [{"name": "rootdisk"}]  # KubeVirt attaches the other volumes after it

    @pytest.mark.parametrize("start", [SNAPSHOT, PRELOAD], ids=["snapshot", "preload"])
    @pytest.mark.parametrize(
        ("template", "bus"),
        [
            pytest.param({"memory": "1Gi"}, "virtio", id="the short form"),
            pytest.param({"memory": "1Gi", "user_data": "#cloud-config"}, "virtio", id="the short form with user data"),
            pytest.param(changed(VM_SPEC, "template.spec.volumes", []), None, id="a long form without volumes"),
            pytest.param(
                changed(DISKLESS, "template.spec.domain.devices.disks", [{"name": "c", "cdrom": {"bus": "sata"}}]),
                None,
                id="a long form with disks of its own",
            ),
        ],
    )
    def test_the_bus_of_an_added_disk_is_ours_to_choose_only_in_the_short_form(self, template, bus, start):
        spec = begun(template, start, diskless=True)
        first = disks(spec)[0]
        assert first.get("disk", {}).get("bus") == bus

    def test_its_claims_belong_to_the_vm(self):
        vm = cluster_vm(NAME, uid="the-uid")
        (claim,) = pvcs_of(vm, SNAPSHOT, DISKLESS)
        assert claim["metadata"]["name"] == f"{NAME}-rootdisk"
        assert claim["metadata"]["ownerReferences"] == [
            {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": NAME, "uid": "the-uid"}
        ]
        assert claim["metadata"]["labels"][labels.VM_ID] == VM_ID
        assert claim["spec"] == {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "10Gi"}},
            "dataSource": {
                "apiGroup": "snapshot.storage.k8s.io",
                "kind": "VolumeSnapshot",
                "name": "vmsnapshot-1-volume-rootdisk",
            },
            "storageClassName": "fast",
            "volumeMode": "Block",
        }

    def test_a_users_label_is_not_carried_to_the_claim(self):
        vm = cluster_vm(NAME)
        vm["metadata"]["labels"]["team"] = "a"
        assert "team" not in pvcs_of(vm, SNAPSHOT, DISKLESS)[0]["metadata"]["labels"]

    def test_the_cluster_decides_what_the_snapshot_leaves_open(self):
        disk = SnapshotDisk("rootdisk", "s", "1Gi", None, ("ReadWriteOnce",), None)
        (claim,) = pvcs_of(cluster_vm(NAME), FromSnapshot("ready", (disk,)), DISKLESS)
        assert not claim["spec"].keys() & {"storageClassName", "volumeMode"}

    @pytest.mark.parametrize("start", [None, PRELOAD, FromImage("i", "a:1")])
    def test_no_other_start_has_claims_of_its_own(self, start):
        assert pvcs_of(cluster_vm(NAME), start, DISKLESS) == []


@pytest.mark.parametrize(
    ("field", "value", "keeps"),
    [
        ("devices.tpm", {"persistent": True}, True),
        ("devices.tpm", {}, False),
        ("devices.tpm", {"persistent": False}, False),
        ("firmware", {"bootloader": {"efi": {"persistent": True}}}, True),
        ("firmware", {"bootloader": {"efi": {}}}, False),
        ("firmware", None, False),
    ],
)
def test_a_persistent_tpm_or_efi_is_state_that_no_snapshot_brings_back(field, value, keeps):
    assert keeps_state(changed(VM_SPEC, f"template.spec.domain.{field}", value)) is keeps


@pytest.mark.parametrize("field", ["instancetype", "preference"])
def test_what_is_read_from_the_labels_of_a_volume_is_not_in_a_copy_of_it(field):
    assert infers(changed(VM_SPEC, field, {"inferFromVolume": "root"}))
    assert not infers(changed(VM_SPEC, field, {"name": "u1.small"}))
    assert not infers(VM_SPEC)


class TestOneBootDisk:
    @pytest.mark.parametrize("image", ["https://images.example/a.qcow2", "docker://r.example/a:1", "r.example/a:1"])
    def test_the_disk_of_a_snapshot_takes_the_place_of_the_image_of_the_short_form(self, image):
        spec = begun({"image": image, "memory": "1Gi", "user_data": "#cloud-config"}, SNAPSHOT, diskless=True)
        assert list(volumes(spec)) == ["boot", "cloud-init"]
        assert volumes(spec)["boot"]["persistentVolumeClaim"] == {"claimName": f"{NAME}-rootdisk"}
        assert "dataVolumeTemplates" not in spec
        assert [disk["name"] for disk in disks(spec)] == ["boot", "cloud-init"]

    def test_volumes_may_have_other_names_than_in_the_vm_of_the_snapshot(self):
        template = copy.deepcopy(WITH_DATA_VOLUME)
        template["template"]["spec"]["volumes"][0]["name"] = "system"
        spec = begun(template, SNAPSHOT)
        assert list(volumes(spec)) == ["system"]
        assert "dataVolumeTemplates" not in spec

    def test_a_further_disk_comes_after_the_one_that_the_vm_boots_from(self):
        second = replace(DISK, volume="data")
        spec = begun(WITH_DATA_VOLUME, FromSnapshot("ready", (DISK, second)))
        assert list(volumes(spec)) == ["rootdisk", "data"]

    def test_a_driver_cd_is_no_image_to_boot_from(self):
        cd = {"name": "drivers", "containerDisk": {"image": "registry.example/virtio-win:1"}}
        template = changed(VM_SPEC, "template.spec.volumes", [cd])
        template = changed(
            template, "template.spec.domain.devices.disks", [{"name": "drivers", "cdrom": {"bus": "sata"}}]
        )
        spec = begun(template, SNAPSHOT)
        assert volumes(spec)["drivers"] == cd
        assert [disk["name"] for disk in disks(spec)] == ["rootdisk", "drivers"]


FIELDS = [
    pytest.param({}, {"size": "12Gi"}, id="nothing but the least size"),
    pytest.param({"size": "20Gi"}, {"size": "20Gi"}, id="a larger size"),
    pytest.param({"size": "1Gi"}, {"size": "12Gi"}, id="a size that is too small"),
    pytest.param({"class": "fast"}, {"size": "12Gi", "class": "fast"}, id="the same storage class"),
    pytest.param({"class": "other", "size": "20Gi"}, {"size": "20Gi", "class": "other"}, id="another storage class"),
    pytest.param({"access": ["ReadWriteMany"]}, {"size": "12Gi", "access": ["ReadWriteMany"]}, id="access modes"),
    pytest.param({"mode": "Filesystem"}, {"size": "12Gi", "mode": "Filesystem"}, id="another volume mode"),
    pytest.param({"attributes": "gold"}, {"size": "12Gi", "attributes": "gold"}, id="volume attributes"),
]
WORDS = {
    "class": "storageClassName",
    "access": "accessModes",
    "mode": "volumeMode",
    "attributes": "volumeAttributesClassName",
}
LARGE = replace(DISK, size="12Gi")


class TestFieldsByPath:
    """What a template asks of a disk is what the disk gets, whatever it starts from."""

    @pytest.mark.parametrize(("asked", "expected"), FIELDS)
    @pytest.mark.parametrize("key", ["storage", "pvc"])
    @pytest.mark.parametrize("path", ["cold", "preload", "snapshot"])
    def test_each_path_honours_the_fields_of_a_disk(self, path, key, asked, expected):
        written = {WORDS[word]: value for word, value in asked.items() if word != "size"}
        written["resources"] = {"requests": {"storage": asked.get("size", "12Gi")}}
        template = copy.deepcopy(WITH_DATA_VOLUME)
        disk = template["dataVolumeTemplates"][0]["spec"]
        disk.pop("storage")
        disk[key] = written
        if path == "cold" and asked.get("size") == "1Gi":
            expected = asked  # there is no content yet that is larger
        got = self._request_of(template, path)
        assert got["resources"]["requests"]["storage"] == expected["size"]
        for word, value in expected.items():
            if word != "size":
                assert got[WORDS[word]] == value

    def _request_of(self, template, path):
        start = {"cold": None, "preload": PRELOAD, "snapshot": FromSnapshot("ready", (LARGE,))}[path]
        before = expand(template, WarmWhen.AGENT).spec
        spec = begin(before, start, vm=NAME, namespace="vms")
        claims = pvcs_of(cluster_vm(NAME), start, before)
        imports = spec.get("dataVolumeTemplates") or []
        assert len(claims) + len(imports) == 1
        if claims:
            assert claims[0]["spec"]["dataSource"]["name"] == DISK.volume_snapshot
            return claims[0]["spec"]
        body = imports[0]["spec"]
        if path == "snapshot":
            assert body["source"] == {"snapshot": {"name": DISK.volume_snapshot, "namespace": "vms"}}
        return body.get("storage") or body["pvc"]

    @pytest.mark.parametrize(
        ("asked", "by_cdi"),
        [
            ({}, False),
            ({"storageClassName": "fast", "volumeMode": "Block"}, False),
            ({"storageClassName": "other"}, True),
            ({"volumeMode": "Filesystem"}, True),
            ({"selector": {"matchLabels": {"a": "b"}}}, True),
        ],
    )
    def test_the_storage_restores_only_what_it_can(self, asked, by_cdi):
        template = copy.deepcopy(WITH_DATA_VOLUME)
        template["dataVolumeTemplates"][0]["spec"]["storage"] = {
            "resources": {"requests": {"storage": "20Gi"}},
            **asked,
        }
        spec = begun(template, SNAPSHOT)
        assert bool(spec.get("dataVolumeTemplates")) is by_cdi

    def test_labels_and_annotations_of_a_disk_are_kept(self):
        template = copy.deepcopy(WITH_DATA_VOLUME)
        marks = {"labels": {"team": "a"}, "annotations": {"backup.example/skip": "true"}}
        template["dataVolumeTemplates"][0]["metadata"] |= marks
        (claim,) = pvcs_of(cluster_vm(NAME), SNAPSHOT, expand(template, WarmWhen.AGENT).spec)
        assert claim["metadata"]["labels"]["team"] == "a"
        assert claim["metadata"]["annotations"] == marks["annotations"]


class TestPreload:
    def test_the_import_of_its_image_becomes_a_clone_that_is_large_enough(self):
        (template,) = begun(WITH_DATA_VOLUME, PRELOAD)["dataVolumeTemplates"]
        assert template["spec"]["source"] == {"pvc": {"name": "preload-fedora-1", "namespace": "vms"}}
        assert template["spec"]["storage"]["resources"]["requests"]["storage"] == "12Gi"

    def test_a_larger_disk_keeps_its_size(self):
        wide = changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.storage.resources.requests.storage", "1Ti")
        (template,) = begun(wide, PRELOAD)["dataVolumeTemplates"]
        assert template["spec"]["storage"]["resources"]["requests"]["storage"] == "1Ti"

    def test_an_import_of_another_image_stays(self):
        other = changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.source.registry.url", "docker://other")
        assert begun(other, PRELOAD) == expand(other, WarmWhen.AGENT).spec

    def test_a_template_without_a_disk_gets_one(self):
        spec = begun(changed(VM_SPEC, "template.spec.volumes", [CLOUD_INIT]), PRELOAD)
        assert list(volumes(spec)) == ["boot", "cloud"]
        assert disks(spec) == [{"name": "boot"}]
        (template,) = spec["dataVolumeTemplates"]
        assert template["spec"]["storage"] == {
            "resources": {"requests": {"storage": "12Gi"}},
            "storageClassName": "fast",
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Filesystem",
        }

    def test_an_empty_disk_is_none_to_boot_from(self):
        spec = expand({"memory": "1Gi", "disk": "5Gi"}, WarmWhen.AGENT, diskless=True).spec
        begun_spec = begin(spec, PRELOAD, vm=NAME, namespace="vms")
        assert list(volumes(begun_spec)) == [disk["name"] for disk in disks(begun_spec)] == ["boot", "data"]

    def test_an_import_that_is_kept_as_a_snapshot_is_restored(self):
        (template,) = begun(WITH_DATA_VOLUME, replace(PRELOAD, is_snapshot=True))["dataVolumeTemplates"]
        assert template["spec"]["source"] == {"snapshot": {"name": "preload-fedora-1", "namespace": "vms"}}

    def test_a_volume_without_a_namespace_is_in_the_vms_own(self):
        source = {"pvc": {"name": "golden"}}
        template = changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.source", source)
        start = replace(PRELOAD, image=ImageRef(ImageKind.PVC, "vms/golden"))
        (template,) = begun(template, start)["dataVolumeTemplates"]
        assert template["spec"]["source"]["pvc"]["name"] == "preload-fedora-1"

    def test_an_image_on_the_nodes_needs_no_change_but_where_there_is_no_disk(self):
        start = FromImage("fedora", "quay.io/containerdisks/fedora:42")
        assert begun(SHORT, start) == expand(SHORT, WarmWhen.AGENT).spec
        spec = begun(DISKLESS, start)
        assert volumes(spec)["boot"]["containerDisk"] == {"image": "quay.io/containerdisks/fedora:42"}
        assert disks(spec) == [{"name": "boot"}]


@pytest.mark.parametrize(
    ("template", "has"),
    [
        (VM_SPEC, True),
        (WITH_DATA_VOLUME, True),
        (DISKLESS, False),
        (changed(VM_SPEC, "template.spec.volumes", [{"name": "a", "emptyDisk": {"capacity": "1Gi"}}]), False),
        (changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.source", {"blank": {}}), False),
    ],
)
def test_whether_a_template_brings_a_disk(template, has):
    assert has_own_disk(expand(template, WarmWhen.AGENT).spec) is has


def test_what_cloud_init_is_told_is_no_disk():
    assert not has_own_disk(expand(changed(VM_SPEC, "template.spec.volumes", [CLOUD_INIT]), WarmWhen.AGENT).spec)


@pytest.mark.parametrize("start", [None, SNAPSHOT, PRELOAD, FromImage("i", "a:1")])
@pytest.mark.parametrize("template", [SHORT, WITH_DATA_VOLUME, DISKLESS])
def test_every_vm_is_one_by_the_schema(template, start):
    spec = begun(template, start)
    made = vm_manifest(name=NAME, namespace="vms", instance="emberpool", pool="web", vm_id=VM_ID, spec=spec)
    assert complaints("kubevirt.io/virtualmachines", made) == []
