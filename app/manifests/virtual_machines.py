"""Translates a VirtualMachine into a claim that describes its VM."""

from typing import Final

from app.manifests.fields import Part
from app.manifests.heads import PREFIX, DocumentKind, Head, as_list, as_text, as_value
from app.manifests.requests import VIRTUAL_MACHINE, Json, Reference, Resource
from app.manifests.templates import START_SETTINGS, copy_part, has_disk, read_start

NAME_LABEL: Final = "name"
"""The claim's label that carries the VirtualMachine's name: claims are found by it."""
_SPEC: Final = ("running", "runStrategy", "template", "dataVolumeTemplates", "instancetype", "preference")
_UNSUPPORTED: Final = {
    "updateVolumesStrategy": "is not supported: a VM's disks are not changed in place; leave it out",
}
_SETTINGS: Final = {
    "warm-when": ("warm_when", as_text),
    "lease-seconds": ("lease_seconds", as_value),
    "deadline-seconds": ("deadline_seconds", as_value),
    "paths": ("paths", as_list),
    "remember": ("remember", as_value),
    "placement": ("placement", as_value),
    "allow-unschedulable": ("allow_unschedulable", as_value),
    **{setting: (setting, as_text) for setting in START_SETTINGS},
}
_LABELS: Final = 32
_LABEL_NAME: Final = 63


def _translate(head: Head, body: Json, places: dict[str, str]) -> dict[Reference, str]:
    spec = copy_part(head.spec)
    places["vm"] = spec.path
    spec.allow(_SPEC, refused=_UNSUPPORTED)
    _settle_strategy(spec)
    if "template" not in spec:
        spec.refuse("template", "is missing: it describes the VM, with spec.domain and spec.volumes")
    vmi = spec.part("template").part("spec")
    start, references = read_start(vmi, body, places)
    if start is not None:
        body["start_from"] = start
    elif not has_disk(vmi) and "warm_when" not in body:
        body["warm_when"] = "running"
        spec.note("the VM has no disk and so no guest agent: it counts as ready once it runs (warm_when: running)")
    spec.note(
        "the service generates the VM's name in the cluster; "
        f"kubectl get vm -l {PREFIX}{NAME_LABEL}={head.name} finds it"
    )
    body["labels"] = _labels(head, places)
    body["vm"] = spec.value
    return references


def _settle_strategy(spec: Part) -> None:
    """Turns `running` into `runStrategy`. A VM that would not run is refused; the rules for templates check the rest."""
    running, strategy = spec.get("running"), spec.get("runStrategy")
    if running is not None and strategy is not None:
        spec.refuse("running", "and runStrategy exclude each other: keep runStrategy, as `running` is deprecated")
    elif running is False or strategy in {"Halted", "Manual"}:
        key, given, instead = (
            ("running", "false", "true") if running is False else ("runStrategy", repr(strategy), "Always")
        )
        why = "asks for a VM that does not run, and a claim hands out one that does"
        spec.refuse(key, f"{given} {why}: write {instead}")
    elif running is True:
        spec.value.pop("running")
        spec.value["runStrategy"] = "Always"
        spec.note("spec.running: true became runStrategy Always")
    elif running is not None:
        spec.refuse("running", "must be true or false")
    elif strategy is None:
        spec.value["runStrategy"] = "Always"
        spec.note("spec has neither running nor runStrategy: runStrategy became Always")


def _labels(head: Head, places: dict[str, str]) -> Json:
    """The labels of the claim: the VirtualMachine's labels, and its name as the label `name`."""
    at = f"{head.path}.metadata"
    places["labels"] = f"{at}.labels"
    places[f"labels.{NAME_LABEL}"] = f"{at}.name"
    labels = {NAME_LABEL: head.name}
    for key, value in head.labels.items():
        if key == NAME_LABEL and value != head.name:
            head.findings.refuse(
                f"{at}.labels.{key}",
                f"must be {head.name!r}, as this label of the claim holds the VM's name; or leave it out",
            )
        elif len(key) > _LABEL_NAME:
            head.findings.refuse(
                f"{at}.labels.{key}",
                f"is longer than {_LABEL_NAME} characters, the limit for the name of a claim's label",
            )
        else:
            labels[key] = value
    if len(labels) > _LABELS:
        head.findings.refuse(
            f"{at}.labels", f"are more than {_LABELS - 1}, the most that a claim can have beside its name"
        )
    elif len(labels) > 1:
        head.findings.note("metadata.labels became the labels of the claim")
    return labels


KIND: Final = DocumentKind(VIRTUAL_MACHINE, "kubevirt.io", ("v1", "v1alpha3"), Resource.CLAIM, _SETTINGS, _translate)
