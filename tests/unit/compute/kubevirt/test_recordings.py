"""What a real API server and KubeVirt v1.9.0 said, through our eyes."""

import pytest

from app.compute.kubevirt.errors import translate
from app.compute.kubevirt.kinds import VMIS, VMS
from app.compute.kubevirt.vms.inventory import Inventory
from app.domain.observation import WarmWhen
from app.errors import ClusterConflict, ClusterNotFound, ClusterRefused
from tests.support.recorded import exchange, exchanges


def follow(scenario):
    """All that the watches of VMs and VMIs told, in the order of time: the name and what was then known of it."""
    events = []
    for line in exchanges(scenario):
        for event in line["response"].get("events") or []:
            kind = event["object"].get("kind")
            if event["type"] in {"ADDED", "MODIFIED", "DELETED"} and kind in {
                "VirtualMachine",
                "VirtualMachineInstance",
            }:
                events.append((line["at"] + event["t"], kind, event["type"], event["object"]))
    inventory = Inventory()
    for _, kind, what, item in sorted(events, key=lambda event: event[0]):
        found = VMS if kind == "VirtualMachine" else VMIS
        yield from inventory.drop(found, item["metadata"]["name"]) if what == "DELETED" else inventory.put(found, item)


def test_a_lifecycle_is_cold_then_warm_then_paused_then_gone():
    story = []
    for change in follow("vm-lifecycle"):
        seen = getattr(change, "observation", None)
        if (seen.name if seen else change.name) != "life":
            continue
        step = (
            "gone"
            if seen is None
            else "going"
            if seen.deleting
            else "paused"
            if seen.paused
            else "warm"
            if seen.is_warm(WarmWhen.AGENT)
            else "cold"
        )
        assert seen is None or seen.failure is None
        if not story or story[-1] != step:
            story.append(step)
    assert story[:5] == ["cold", "warm", "paused", "cold", "warm"]
    assert story[-2:] == ["going", "gone"]


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("never-boots", {None}),
        ("no-agent", {None}),
        ("no-image", {("ErrImagePull", True), ("ImagePullBackOff", True)}),
        ("no-pvc", {("ErrorPvcNotFound", True)}),
        ("no-dv", {("ErrorPvcNotFound", True)}),
        ("big", {("ErrorUnschedulable", True)}),
        ("pinned", {("ErrorUnschedulable", True)}),
        ("crash", {("CrashLoopBackOff", False)}),
        ("dies", {("Failed", False)}),
    ],
)
def test_failures_by_the_words_of_kubectl(name, reasons):
    failures = {
        (change.observation.failure.reason, change.observation.failure.transient)
        for change in follow("failures")
        if hasattr(change, "observation") and change.observation.name == name and change.observation.failure is not None
    }
    # On its way to the status, a condition or the VMI's phase may be seen first, in a word of its own.
    first_words = {("FailedPvcNotFound", True), ("Unschedulable", True), ("Failed", False), ("ErrImagePull", True)}
    assert (reasons - {None}) <= failures
    assert failures <= reasons | first_words


@pytest.mark.parametrize(
    ("step", "error", "fields"),
    [
        ("unknown fields, fieldValidation=Strict: 400", ClusterRefused, ["spec.foo", "spec.template.spec.domain.bar"]),
        ("duplicate key in the body, Strict", ClusterRefused, ["spec.runStrategy"]),
        (
            "rejected by KubeVirt's webhook: a disk with no volume",
            ClusterRefused,
            ["spec.template.spec.domain.devices.disks[0].name"],
        ),
        ("rejected by the schema: no template", ClusterRefused, ["spec.template"]),
        ("rejected by the schema: wrong type", ClusterRefused, ["spec.runStrategy"]),
        ("rejected by the schema or the webhook: bad quantity", ClusterRefused, [""]),
        ("no name", ClusterRefused, ["metadata.name"]),
        ("merge patch with another uid", ClusterRefused, ["metadata.uid"]),
        ("delete with the wrong preconditions.uid", ClusterConflict, []),
        ("delete of one that is not there", ClusterNotFound, []),
    ],
)
def test_refusals_with_their_fields(step, error, fields):
    line = exchange("writes", step)
    body = line["response"]["body"]
    found = translate(line["response"]["status"], body, None, "try it")
    assert type(found) is error
    assert body["message"] in found.detail
    assert sorted({problem.field for problem in found.problems}) == sorted(fields)


def test_every_refusal_on_record_is_translated():
    count = 0
    for scenario in ("writes", "lists", "pool", "server-restart"):
        for line in exchanges(scenario):
            body, status = line["response"].get("body"), line["response"].get("status") or 0
            if status >= 400 and isinstance(body, dict):
                found = translate(status, body, None, "try it")
                assert body["message"].rstrip(".") in found.detail
                count += 1
    assert count > 50
