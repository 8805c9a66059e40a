"""Why DataVolumes are not filled, read from documents as CDI v1.66.0 writes them."""

from datetime import UTC, datetime, timedelta

import pytest

from app.compute.kubevirt.vms.disks import CREATED_BY, disks_of_vms, find_failure
from app.domain.observation import Failure

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def condition(kind, status, reason="", message="", *, age=1):
    at = (NOW - timedelta(seconds=age)).isoformat().replace("+00:00", "Z")
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


def volume(phase, *conditions, vm="vm-1", source="http", **status):
    return {
        "metadata": {"name": "web-1-boot", "labels": {CREATED_BY: vm}},
        "spec": {"source": {source: {"url": "https://images.example/os.qcow2"}}},
        "status": {"phase": phase, "conditions": list(conditions), **status},
    }


NOT_FOUND = condition("Running", "False", "Error", "404 Not Found")
UNBOUND = ("Bound", "False", "Pending", "PVC web-1-boot Pending")
DISKS = {
    "an import that failed": (volume("ImportInProgress", NOT_FOUND), "import", "404 Not Found"),
    "one that failed for good": (
        volume("Failed", condition("Running", "False", "ChecksumError", "no match")),
        "import",
        "no match",
    ),
    "one that says nothing of its end": (volume("Failed"), "import", "it failed"),
    "an image that cannot be pulled": (
        volume("ImportInProgress", condition("Running", "False", "ImagePullFailed"), source="registry"),
        "import",
        "ImagePullFailed",
    ),
    "a clone": (
        volume("CloneInProgress", condition("Running", "False", "Error", "it broke"), source="pvc"),
        "clone",
        "it broke",
    ),
    "a disk that no storage takes": (
        volume("", condition("Bound", "False", "ErrClaimNotValid", "no accessModes")),
        "disk",
        "no accessModes",
    ),
    "a quota": (
        volume("Pending", condition("Bound", "Unknown", "ErrExceededQuota", "exceeded quota: q")),
        "disk",
        "exceeded quota: q",
    ),
    "a PVC that is not bound for long": (
        volume("Pending", condition(*UNBOUND, age=60)),
        "disk",
        "PVC web-1-boot Pending",
    ),
}
WELL = {
    "done": volume("Succeeded", condition("Running", "False", "Completed")),
    "done after failures": volume("Succeeded", NOT_FOUND, restartCount=3),
    "running": volume("ImportInProgress", condition("Running", "True", "Pod is running")),
    "about to begin": volume("ImportScheduled", condition("Running", "False")),
    "a PVC that is not bound yet": volume("Pending", condition(*UNBOUND)),
    "a PVC that is bound with its pod": volume("WaitForFirstConsumer", condition(*UNBOUND, age=600)),
    "nothing yet": {"metadata": {"name": "new"}},
}


@pytest.mark.parametrize(("disk", "work", "message"), DISKS.values(), ids=DISKS)
def test_what_keeps_a_disk_is_told(disk, work, message):
    assert find_failure(disk, NOW) == Failure(work, message, transient=True)


@pytest.mark.parametrize("disk", WELL.values(), ids=WELL)
def test_a_disk_that_only_takes_its_time_has_no_failure(disk):
    assert find_failure(disk, NOW) is None


def test_of_several_disks_one_that_fails_counts_and_each_vm_has_its_own():
    found = disks_of_vms(
        [
            volume("ImportInProgress", NOT_FOUND),
            volume("Succeeded"),
            volume("ImportInProgress", condition("Running", "True"), vm="vm-2"),
        ],
        NOW,
    )
    assert found == {"vm-1": Failure("import", "404 Not Found", transient=True), "vm-2": None}


def test_an_import_that_is_tried_again_tells_nothing_new():
    again = volume("ImportInProgress", condition("Running", "True"), restartCount=1)
    assert disks_of_vms([again], NOW) == {}
    assert disks_of_vms([again, volume("ImportInProgress", NOT_FOUND)], NOW).keys() == {"vm-1"}
    assert disks_of_vms([volume("Succeeded", restartCount=1)], NOW) == {"vm-1": None}
