import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.manifests import data_volume_name, vm_manifest
from app.domain.observation import WarmWhen
from app.ids import new_id, vm_name
from tests.support.kubevirt_documents import SHORT, VM_ID, WITH_DATA_VOLUME, changed


def make(template, name="pool-a-abc"):
    spec = expand(template, WarmWhen.AGENT).spec
    return vm_manifest(name=name, namespace="vms", instance="blue", pool="pool-a", vm_id=VM_ID, spec=spec)


def test_a_vm_and_its_vmi_carry_our_labels_beside_the_templates():
    manifest = make({**SHORT, "labels": {"team": "a"}})
    expected = {
        "team": "a",
        "app.kubernetes.io/managed-by": "emberpool",
        "emberpool.io/instance": "blue",
        "emberpool.io/pool": "pool-a",
        "emberpool.io/vm-id": VM_ID,
    }
    assert manifest["apiVersion"] == "kubevirt.io/v1"
    assert manifest["kind"] == "VirtualMachine"
    assert manifest["metadata"] == {"name": "pool-a-abc", "namespace": "vms", "labels": expected}
    assert manifest["spec"]["template"]["metadata"]["labels"] == expected


def test_annotations_are_on_the_vm_and_its_template():
    manifest = make({"metadata": {"annotations": {"note": "x"}}, "spec": WITH_DATA_VOLUME})
    assert manifest["metadata"]["annotations"] == {"note": "x"}
    assert manifest["spec"]["template"]["metadata"]["annotations"] == {"note": "x"}


@pytest.mark.parametrize(
    ("volume", "path"),
    [
        ({"dataVolume": {"name": "root"}}, ("dataVolume", "name")),
        ({"persistentVolumeClaim": {"claimName": "root"}}, ("persistentVolumeClaim", "claimName")),
        (
            {"ephemeral": {"persistentVolumeClaim": {"claimName": "root"}}},
            ("ephemeral", "persistentVolumeClaim", "claimName"),
        ),
    ],
)
def test_each_vm_has_data_volumes_of_its_own_and_its_volumes_follow(volume, path):
    manifest = make(changed(WITH_DATA_VOLUME, "template.spec.volumes", [{"name": "rootdisk", **volume}]))
    value = manifest["spec"]["template"]["spec"]["volumes"][0]
    for key in path:
        value = value[key]
    assert value == "pool-a-abc-root"
    assert manifest["spec"]["dataVolumeTemplates"][0]["metadata"]["name"] == "pool-a-abc-root"


def test_a_volume_of_another_claim_is_left_alone():
    volumes = [
        {"name": "rootdisk", "dataVolume": {"name": "root"}},
        {"name": "shared", "persistentVolumeClaim": {"claimName": "data"}},
    ]
    manifest = make(changed(WITH_DATA_VOLUME, "template.spec.volumes", volumes))
    assert manifest["spec"]["template"]["spec"]["volumes"][1] == volumes[1]


def test_the_expanded_spec_serves_for_the_next_vm_too():
    spec = expand(WITH_DATA_VOLUME, WarmWhen.AGENT).spec
    before = copy.deepcopy(spec)
    vm_manifest(name="a", namespace="n", instance="i", pool="p", vm_id=VM_ID, spec=spec)
    assert spec == before


NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_data_volume_names_are_valid_and_never_shared(pool, first, second):
    vm, other = vm_name(pool, new_id()), vm_name(pool, new_id())
    names = {data_volume_name(vm, first), data_volume_name(vm, second), data_volume_name(other, first)}
    assert len(names) == (2 if first == second else 3)
    assert all(len(name) <= 63 and name[0].isalnum() and name[-1].isalnum() for name in names)
