"""A VirtualMachine to a claim for a VM of its own: from whatever is fastest, and kept for as long as a lease may be."""

from typing import Final

from app.config import MAX_LEASE_SECONDS
from app.manifests.documents import Document
from app.manifests.fields import Part
from app.manifests.heads import PREFIX, DocumentKind, Head, as_list, as_text, as_value, read_settings
from app.manifests.requests import VIRTUAL_MACHINE, Json, Resource, ResourceRequest
from app.manifests.templates import START_SETTINGS, has_disk, own_copy, take_start

KIND: Final = DocumentKind(VIRTUAL_MACHINE, "kubevirt.io", ("v1", "v1alpha3"))
NAME_LABEL: Final = "name"
"""The claim's label that carries the VirtualMachine's name: claims are found by it."""
_SPEC: Final = ("running", "runStrategy", "template", "dataVolumeTemplates", "instancetype", "preference")
_UNHONOURED: Final = {
    "updateVolumesStrategy": "is not honoured: a VM's disks are not changed in place; leave it out",
}
_SETTINGS: Final = {
    "warm-when": ("warm_when", as_text),
    "lease-seconds": ("lease_seconds", as_value),
    "deadline-seconds": ("deadline_seconds", as_value),
    "paths": ("paths", as_list),
    "remember": ("remember", as_value),
    "placement": ("placement", as_value),
    **{setting: (setting, as_text) for setting in START_SETTINGS},
}
_LABELS: Final = 32
_LABEL_NAME: Final = 63


def translate_machine(document: Document, head: Head) -> ResourceRequest:
    body, places = read_settings(head, _SETTINGS)
    spec = own_copy(head.spec)
    places[""] = spec.path
    places["vm"] = spec.path
    spec.allow(_SPEC, refused=_UNHONOURED)
    _settle_strategy(spec)
    if "template" not in spec:
        spec.refuse("template", "is missing: it is the VM, with spec.domain and spec.volumes")
    vmi = spec.part("template").part("spec")
    start, references = take_start(vmi, body, places)
    if start is not None:
        body["start_from"] = start
    elif not has_disk(vmi) and "warm_when" not in body:
        body["warm_when"] = "running"
        spec.note(
            "the VM has no disk, so that no guest agent will ever answer: it counts as ready once it runs (warm_when: running)"
        )
    spec.note(
        "the VM's name in the cluster is the service's own; once it is there, "
        f"kubectl get vm -l {PREFIX}{NAME_LABEL}={head.name} finds it"
    )
    if "lease_seconds" not in body:
        spec.note(
            f"the VM is claimed for {MAX_LEASE_SECONDS // 86_400} days, the longest lease; renew the claim to keep it longer"
        )
    body["labels"] = _labels(head, places)
    body["vm"] = spec.value
    return ResourceRequest(
        document, head.kind, Resource.CLAIM, head.name, body, places, references, head.findings.notes
    )


def _settle_strategy(spec: Part) -> None:
    """To `runStrategy`: what it must be is left to the rules for templates, except that it runs at all."""
    running, strategy = spec.get("running"), spec.get("runStrategy")
    if running is not None and strategy is not None:
        spec.refuse("running", "excludes runStrategy: keep runStrategy, `running` is deprecated")
    elif running is False or strategy in {"Halted", "Manual"}:
        key = "running" if running is False else "runStrategy"
        spec.refuse(
            key, f"{spec.get(key)!r} asks for a VM that does not run, and a claim hands out one that does: Always"
        )
    elif running is True:
        spec.value.pop("running")
        spec.value["runStrategy"] = "Always"
        spec.note("spec.running: true became runStrategy Always")
    elif running is not None:
        spec.refuse("running", "must be true or false")
    elif strategy is None:
        spec.value["runStrategy"] = "Always"
        spec.note("spec says neither running nor runStrategy: it became runStrategy Always")


def _labels(head: Head, places: dict[str, str]) -> Json:
    """The claim's labels: the VirtualMachine's own, and its name."""
    at = f"{head.spec.path.removesuffix('.spec')}.metadata"
    places["labels"] = f"{at}.labels"
    places[f"labels.{NAME_LABEL}"] = f"{at}.name"
    labels = {NAME_LABEL: head.name}
    for key, value in head.labels.items():
        if key == NAME_LABEL and value != head.name:
            head.findings.refuse(
                f"{at}.labels.{key}", f"is the claim's label for the VM's name, {head.name!r}: leave it out"
            )
        elif len(key) > _LABEL_NAME:
            head.findings.refuse(
                f"{at}.labels.{key}", f"is longer than the {_LABEL_NAME} characters that a claim's label has"
            )
        else:
            labels[key] = value
    if len(labels) > _LABELS:
        head.findings.refuse(
            f"{at}.labels", f"are more than {_LABELS - 1}, the most that a claim takes beside the name"
        )
    elif len(labels) > 1:
        head.findings.note("metadata.labels became the claim's")
    return labels
