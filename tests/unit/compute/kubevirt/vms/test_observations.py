from datetime import UTC, datetime

import pytest

from app.compute.kubevirt import labels
from app.compute.kubevirt.vms.observations import observe_vm, reduce_vm, reduce_vmi
from app.domain.observation import Failure, WarmWhen
from tests.support.kubevirt_documents import CLAIM_ID, VM_ID, uid_of, vm, vmi

PVC_MESSAGE = "PVC rec/nope does not exist, waiting for it to appear"
ROOM_MESSAGE = "0/3 nodes are available: 3 Insufficient memory."
QUOTA_MESSAGE = 'failed to create virtual machine pod: pods "virt-launcher-big-vdsrs" is forbidden: exceeded quota: q'
MEMORY_MESSAGE = "Failure while starting VMI: no memory requested"
NO_DISK = "No bootable device: the first disk has no boot sector."
PULL_MESSAGE = 'Back-off pulling image "quay.io/containerdisks/fedora:42"'


def false(kind, reason, message):
    return {"type": kind, "status": "False", "reason": reason, "message": message}


def test_a_warm_vm_is_told_whole():
    times = [
        {"phase": "Scheduled", "phaseTransitionTimestamp": "2026-11-23T04:06:22Z"},
        {"phase": "Running", "phaseTransitionTimestamp": "2026-11-23T04:06:24Z"},
    ]
    seen = observe_vm(vm(status={"printableStatus": "Running"}), vmi(status={"phaseTransitionTimestamps": times}))
    assert (seen.name, seen.namespace, seen.uid) == ("vm-1", "default", uid_of("vm-1"))
    assert (seen.pool, seen.vm_id, seen.claim_id) == ("pool-a", VM_ID, None)
    assert seen.created_at == datetime(2026, 11, 23, 4, 6, 22, tzinfo=UTC)
    assert (seen.phase, seen.vmi_uid) == ("Running", uid_of("vm-1-vmi"))
    assert (seen.node, seen.addresses) == ("node1", ("10.244.0.2",))
    assert seen.scheduled_at == datetime(2026, 11, 23, 4, 6, 22, tzinfo=UTC)
    assert seen.running_at == datetime(2026, 11, 23, 4, 6, 24, tzinfo=UTC)
    assert seen.failure is None
    assert all(seen.is_warm(when, greeted=True) for when in WarmWhen)
    assert not seen.is_warm(WarmWhen.HELLO)


@pytest.mark.parametrize(
    ("true", "warm"),
    [
        (("Ready", "AgentConnected"), {WarmWhen.AGENT, WarmWhen.READY, WarmWhen.RUNNING}),
        (("Ready",), {WarmWhen.READY, WarmWhen.RUNNING}),
        (("AgentConnected",), {WarmWhen.RUNNING}),
        ((), {WarmWhen.RUNNING}),
        (("Ready", "AgentConnected", "Paused"), set()),
    ],
)
def test_warmth_follows_the_conditions(true, warm):
    seen = observe_vm(vm(), vmi(true=true))
    assert {when for when in WarmWhen if seen.is_warm(when)} == warm


@pytest.mark.parametrize(
    ("of_vm", "of_vmi"),
    [
        ({"deletionTimestamp": "2026-11-23T04:06:36Z"}, {}),
        ({}, {"deletionTimestamp": "2026-11-23T04:06:36Z"}),
        ({}, {"of": "00000000-0000-0000-0000-000000000001"}),
        ({}, {"ownerReferences": []}),
        ({}, {"phase": "Scheduled"}),
    ],
)
def test_what_is_going_or_another_vms_is_never_warm(of_vm, of_vmi):
    seen = observe_vm(vm(**of_vm), vmi(**of_vmi))
    assert not any(seen.is_warm(when) for when in WarmWhen)
    assert seen.deleting is bool(of_vm)


def test_labels_that_are_no_ids_are_none():
    good, bad = vm(), vm()
    good["metadata"]["labels"][labels.CLAIM] = CLAIM_ID
    bad["metadata"]["labels"] = {labels.CLAIM: "x", labels.VM_ID: "12345"}
    assert observe_vm(good, None).claim_id == CLAIM_ID
    seen = observe_vm(bad, None)
    assert (seen.pool, seen.vm_id, seen.claim_id) == (None, None, None)


def test_addresses_are_those_a_client_can_use_in_the_order_of_the_interfaces():
    interfaces = [
        {"ipAddress": "10.244.0.2", "ipAddresses": ["10.244.0.2", "fe80::1", "fd00::2"]},
        {"ipAddress": "192.0.2.7"},
        {"ipAddresses": ["10.244.0.2", "169.254.1.1", "127.0.0.1", "no address"]},
        {"name": "down"},
    ]
    assert observe_vm(vm(), vmi(status={"interfaces": interfaces})).addresses == ("10.244.0.2", "fd00::2", "192.0.2.7")


def test_a_guest_of_the_dev_cluster_has_a_loopback_address_of_its_own():
    interfaces = [{"name": "default", "ipAddress": "127.44.0.5"}, {"interfaceName": "lo", "ipAddress": "127.0.0.1"}]
    assert observe_vm(vm(), vmi(status={"interfaces": interfaces})).addresses == ("127.44.0.5",)


def refused_disks(why):
    message = f"Error encountered while creating DataVolumes: {why}"
    failure = {"type": "Failure", "status": "True", "reason": "FailedCreate", "message": message}
    return {"printableStatus": "Stopped", "conditions": [failure]}


# (VM status, VMI status or None without a VMI, what is seen): the shapes are those of KubeVirt v1.9.0
FAILURES = {
    "crash loop": (
        {
            "printableStatus": "CrashLoopBackOff",
            "startFailure": {"consecutiveFailCount": 2, "retryAfterTimestamp": "2026-11-23T03:14:40Z"},
        },
        {"phase": "Failed"},
        ("CrashLoopBackOff", "2 times in a row; KubeVirt tries again at 2026-11-23T03:14:40Z", False),
    ),
    "crash loop, between two tries": (
        {"printableStatus": "CrashLoopBackOff"},
        None,
        ("CrashLoopBackOff", "1 time in a row", False),
    ),
    "the next try of a crash loop": (
        {"printableStatus": "Starting", "startFailure": {"consecutiveFailCount": 1}},
        {"phase": "Scheduling"},
        ("CrashLoopBackOff", "1 time in a row", False),
    ),
    "crash loop of a guest that cannot even be started": (
        {"printableStatus": "CrashLoopBackOff"},
        {"phase": "Failed", "conditions": [false("Synchronized", "Synchronizing with the Domain failed.", NO_DISK)]},
        ("CrashLoopBackOff", f"1 time in a row: {NO_DISK}", False),
    ),
    "guest died": ({"printableStatus": "Stopped"}, {"phase": "Failed"}, ("Failed", "phase Failed", False)),
    "guest shut down": (
        {"printableStatus": "Stopped"},
        {"phase": "Succeeded"},
        ("Succeeded", "phase Succeeded", False),
    ),
    "evicted": ({}, {"phase": "Failed", "reason": "Evicted"}, ("Failed", "(Evicted)", False)),
    "refused at its start": (
        {
            "printableStatus": "Stopped",
            "conditions": [{"type": "Failure", "status": "True", "reason": "FailedCreate", "message": MEMORY_MESSAGE}],
        },
        None,
        ("FailedCreate", MEMORY_MESSAGE, False),
    ),
    "unknown instancetype": (
        {
            "conditions": [
                {"type": "Failure", "status": "True", "reason": "FailedFindInstancetype", "message": "nope not found"}
            ]
        },
        None,
        ("FailedFindInstancetype", "nope not found", False),
    ),
    "no data source": (
        refused_disks('unable to create DataVolume manifest: datasources.cdi.kubevirt.io "fedora" not found'),
        None,
        (
            "disk",
            "DataSource fedora, which a sourceRef of the VM names, does not exist; waiting for it to appear",
            True,
        ),
    ),
    "empty data source": (
        refused_disks("DataVolume sourceRef not supported"),
        None,
        ("disk", "has no PVC and no snapshot yet", True),
    ),
    "clone not allowed": (
        refused_disks("not authorized to create DataVolume: namespace golden does not exist"),
        None,
        ("disk", "not authorized to create DataVolume: namespace golden does not exist", True),
    ),
    "no quota for its pod": (
        {"printableStatus": "Starting"},
        {"phase": "Pending", "conditions": [false("Synchronized", "FailedCreate", QUOTA_MESSAGE)]},
        ("FailedCreate", QUOTA_MESSAGE, False),
    ),
    "no room": (
        {"printableStatus": "ErrorUnschedulable"},
        {"phase": "Scheduling", "conditions": [false("PodScheduled", "Unschedulable", ROOM_MESSAGE)]},
        ("ErrorUnschedulable", ROOM_MESSAGE, True),
    ),
    "no room, the VMI's word first": (
        {"printableStatus": "Starting"},
        {"phase": "Scheduling", "conditions": [false("PodScheduled", "Unschedulable", ROOM_MESSAGE)]},
        ("Unschedulable", ROOM_MESSAGE, True),
    ),
    "no volume": (
        {"printableStatus": "ErrorPvcNotFound"},
        {
            "phase": "Pending",
            "conditions": [
                false("PodScheduled", "Unschedulable", PVC_MESSAGE),
                false("Synchronized", "FailedPvcNotFound", PVC_MESSAGE),
            ],
        },
        ("ErrorPvcNotFound", PVC_MESSAGE, True),
    ),
    "no image": (
        {"printableStatus": "ImagePullBackOff"},
        {"phase": "Scheduling", "conditions": [false("Synchronized", "ImagePullBackOff", PULL_MESSAGE)]},
        ("ImagePullBackOff", PULL_MESSAGE, True),
    ),
    "failed import": ({"printableStatus": "DataVolumeError"}, None, ("DataVolumeError", "DataVolumeError", True)),
}


@pytest.mark.parametrize(("vm_status", "vmi_status", "expected"), FAILURES.values(), ids=FAILURES.keys())
def test_failures_are_told_in_the_clusters_words(vm_status, vmi_status, expected):
    instance = None if vmi_status is None else vmi(true=(), status=vmi_status)
    failure = observe_vm(vm(status=vm_status), instance).failure
    reason, message, transient = expected
    assert failure is not None
    assert (failure.reason, failure.transient) == (reason, transient)
    assert message in failure.message


@pytest.mark.parametrize(("vm_status", "vmi_status", "expected"), FAILURES.values(), ids=FAILURES.keys())
def test_a_vm_that_goes_or_runs_by_now_has_not_failed(vm_status, vmi_status, expected):
    going = vm(status=vm_status, deletionTimestamp="2026-11-23T04:06:36Z")
    assert observe_vm(going, None if vmi_status is None else vmi(true=(), status=vmi_status)).failure is None
    assert observe_vm(vm(status=vm_status), vmi(phase="Running")).failure is None


@pytest.mark.parametrize("printable", ["Stopped", "Provisioning", "Starting", "Running", "Migrating", "Unknown", None])
def test_a_start_that_goes_on_is_no_failure(printable):
    status = {
        "printableStatus": printable,
        "conditions": [false("Ready", "GuestNotRunning", "Guest VM is not reported as running")],
    }
    waiting = vmi(phase="Scheduling", true=(), status={"conditions": status["conditions"]})
    assert observe_vm(vm(status=status), waiting).failure is None
    assert observe_vm(vm(status=status), None).failure is None


def test_a_failed_instance_that_is_being_replaced_no_longer_counts():
    going = vmi(phase="Failed", true=(), deletionTimestamp="2026-11-23T04:06:36Z")
    assert observe_vm(vm(status={"printableStatus": "Stopped"}), going).failure is None


def test_nothing_of_an_object_as_the_cluster_sent_it_is_kept():
    """What is kept of thousands of VMs: texts, times and failures, and none of the parts of their JSON."""

    def parts(document):
        yield id(document)
        for part in document.values() if isinstance(document, dict) else document:
            if isinstance(part, dict | list):
                yield from parts(part)

    whole, instance = (
        vm(status=FAILURES["no room"][0]),
        vmi(status=FAILURES["no room"][1]),
    )
    kept = [
        getattr(reduced, name)
        for reduced in (reduce_vm(whole), reduce_vmi(instance))
        for name in type(reduced).__slots__
    ]
    assert not {id(value) for value in kept} & {*parts(whole), *parts(instance)}
    assert {type(value) for value in kept} == {str, bool, tuple, datetime, Failure, type(None)}


def test_texts_that_many_vms_have_are_kept_once():
    nodes = [str(b"node-1", "ascii") for _ in range(2)]
    assert nodes[0] is not nodes[1]
    first, second = (reduce_vmi(vmi(status={"nodeName": node})) for node in nodes)
    assert first.node is second.node


@pytest.mark.parametrize(
    "empty", [{}, {"metadata": None, "status": None}, {"status": {"conditions": None, "interfaces": None}}]
)
def test_an_object_with_nothing_in_it_is_still_observed(empty):
    seen = observe_vm(empty, None)
    assert (seen.name, seen.phase, seen.failure) == ("", None, None)
    observe_vm(vm(), empty)


def test_times_that_cannot_be_read_are_none():
    assert observe_vm(vm(creationTimestamp="yesterday"), None).created_at is None
    assert observe_vm(vm(creationTimestamp="2026-11-23T04:06:22"), None).created_at is None


def test_a_failure_is_final_unless_told_otherwise():
    assert Failure("a", "b").transient is False
