"""What of a VirtualMachineSnapshotContent is a disk of its VM."""

from app.compute.kubevirt.snapshots import disk_backups


def content(*backups, volumes=()):
    spec = {"template": {"spec": {"volumes": [{"name": name} for name in volumes]}}}
    return {
        "spec": {
            "source": {"virtualMachine": {"spec": spec}},
            "volumeBackups": [{"volumeName": name} for name in backups],
        }
    }


def test_the_state_of_a_persistent_tpm_is_no_disk():
    found = disk_backups(content("rootdisk", "persistent-state-for-web-1", volumes=["rootdisk", "cloud-init"]))
    assert [backup["volumeName"] for backup in found] == ["rootdisk"]


def test_whatever_the_vm_does_not_have_as_a_volume_is_no_disk():
    found = disk_backups(content("rootdisk", "something-new", volumes=["rootdisk"]))
    assert [backup["volumeName"] for backup in found] == ["rootdisk"]


def test_a_disk_that_is_called_like_a_state_is_one_if_the_vm_has_it():
    found = disk_backups(content("persistent-state-for-me", volumes=["persistent-state-for-me"]))
    assert [backup["volumeName"] for backup in found] == ["persistent-state-for-me"]
