"""Memory fits only the machine that it was kept of: what differs is told by its field."""

import pytest

from app.compute.kubevirt.templates.expand import SHORT_VOLUMES, TemplateForm, expand, locate
from app.compute.kubevirt.templates.memory_match import find_differences
from app.domain.observation import WarmWhen
from app.domain.paths import SnapshotDisk
from tests.support.kubevirt_documents import VM_SPEC, WITH_DATA_VOLUME, changed

SHORT = {
    "image": "https://images.example.com/fedora.qcow2",
    "cpu": 2,
    "memory": "2Gi",
    "user_data": "#cloud-config\nhostname: one\n",
}
BOOT = SnapshotDisk("boot", "vs-boot", "10Gi", None, ("ReadWriteOnce",), None)


def differences(template, kept, *, disks=(), diskless=False):
    ours = expand(template, WarmWhen.AGENT, diskless=diskless)
    theirs = expand(kept, WarmWhen.AGENT)
    form = TemplateForm(ours.form)
    fields = SHORT_VOLUMES if form is TemplateForm.SHORT else {}
    found = find_differences(ours.spec, theirs.spec, disks, lambda field: locate(form, field), fields)
    return {each.field: each.message for each in found}


def test_the_same_vm_has_no_differences():
    assert differences(SHORT, SHORT) == {}
    assert differences(WITH_DATA_VOLUME, WITH_DATA_VOLUME) == {}
    assert differences({**SHORT, "memory": "2048Mi"}, SHORT) == {}
    assert differences({**SHORT, "labels": {"app": "web"}}, SHORT) == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cpu": 4}, "template.cpu"),
        ({"memory": "4Gi"}, "template.memory"),
        ({"disk": "1Gi"}, "template.disk"),
        ({"root_disk": "20Gi"}, "template.image"),
    ],
)
def test_another_machine_is_told_by_the_field_that_makes_it(change, field):
    found = differences({**SHORT, **change}, SHORT)
    assert list(found) == [field]


def test_memory_that_differs_is_told_with_both_amounts():
    (message,) = differences({**SHORT, "memory": "4Gi"}, SHORT).values()
    assert message == "is 4294967296 here and 2147483648 in the kept memory, which fits no other machine"


def test_other_user_data_cannot_be_applied():
    (message,) = differences({**SHORT, "user_data": "#cloud-config\nhostname: two\n"}, SHORT).values()
    assert "cannot be applied: the guest ran its own before its memory was kept" in message
    assert list(differences({**SHORT, "user_data": "#cloud-config\nhostname: two\n"}, SHORT)) == ["template.user_data"]


def test_a_volume_of_the_kept_vm_that_is_missing_is_told():
    without = {key: value for key, value in SHORT.items() if key != "user_data"}
    assert list(differences(without, SHORT)) == ["template.user_data"]


def test_a_template_without_a_disk_gets_that_of_the_snapshot():
    diskless = {key: value for key, value in SHORT.items() if key != "image"}
    assert differences(diskless, SHORT, disks=[BOOT], diskless=True) == {}
    assert list(differences({**diskless, "cpu": 3}, SHORT, disks=[BOOT], diskless=True)) == ["template.cpu"]


def test_a_template_whose_only_disk_is_blank_is_compared_as_it_is_written():
    blank = changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.source", {"blank": {}})
    name = blank["template"]["spec"]["volumes"][0]["name"]
    disk = SnapshotDisk(name, "vs-1", "10Gi", None, ("ReadWriteOnce",), None)
    assert differences(blank, blank, disks=[disk]) == {}


def test_in_a_long_template_the_field_is_where_its_author_wrote_it():
    other = changed(VM_SPEC, "template.spec.domain.memory", {"guest": "7Gi"})
    assert list(differences(other, VM_SPEC)) == ["template.template.spec.domain.memory.guest"]
