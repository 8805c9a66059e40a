"""A VirtualMachinePool, in our own words (`size`, `template`, `autoReplenish`, `minAvailable`) or in KubeVirt's
(`replicas`, `virtualMachineTemplate`, `selector`), to a pool.
"""

from typing import Final

from app.domain.pools import PoolSpec
from app.manifests.documents import Document
from app.manifests.fields import Part
from app.manifests.heads import DocumentKind, Head, as_text, read_settings, settings_of
from app.manifests.requests import Json, Reference, Resource, ResourceRequest
from app.manifests.templates import START_SETTINGS, own_copy, take_start

KIND: Final = DocumentKind("VirtualMachinePool", "pool.kubevirt.io", ("v1", "v1beta1", "v1alpha1"))
_WORDS: Final = {
    "size": "size",
    "replicas": "size",
    "template": "template",
    "virtualMachineTemplate": "template",
    "autoReplenish": "auto_replenish",
    "minAvailable": "min_available",
}
"""By the manifest's word, the pool's field."""
_UNHONOURED: Final = {
    "autohealing": "is not honoured: a VM that is not healthy is replaced in any case; leave it out",
    "maxUnavailable": "is not honoured: write minAvailable, the fewest ready VMs that a change may leave",
    "nameGeneration": "is not honoured: names are made by the service, each used once; leave it out",
}
_STRATEGIES: Final = {
    "updateStrategy": "a changed template replaces the unclaimed VMs, and keeps minAvailable",
    "scaleInStrategy": "a smaller size removes unclaimed VMs alone",
}
_SETTINGS: Final = {
    **settings_of(
        PoolSpec.model_fields, without=frozenset({"size", "template", "auto_replenish", "min_available", "start_from"})
    ),
    **{setting: (setting, as_text) for setting in START_SETTINGS},
}


def translate_pool(document: Document, head: Head) -> ResourceRequest:
    spec = head.spec
    body, places = read_settings(head, _SETTINGS)
    spec.allow((*_WORDS, *_STRATEGIES, "selector", "paused"), refused=_UNHONOURED)
    for word, name in _WORDS.items():
        if word in spec and name in places:
            spec.refuse(word, f"is another word for {spec.findings.relative(places[name])}: keep one of them")
        elif word in spec:
            body[name] = spec.get(word)
            places[name] = spec.at(word)
    _translate_upstream(spec, body)
    if head.labels:
        spec.note("metadata.labels are not kept: a pool has none")
    references = _take_start(head, body, places)
    places.setdefault("", spec.path)
    return ResourceRequest(document, head.kind, Resource.POOL, head.name, body, places, references, head.findings.notes)


def _translate_upstream(spec: Part, body: Json) -> None:
    if spec.get("paused") is True:
        spec.refuse("paused", "is not honoured: POST /v1/pools/NAME/pause pauses a pool, and edits keep it paused")
    elif "paused" in spec and spec.get("paused") is not False:
        spec.refuse("paused", "must be true or false")
    for key, what in _STRATEGIES.items():
        if key not in spec:
            continue
        if set(spec.part(key).value) <= {"unmanaged"}:
            spec.note(f"spec.{key} was left out: {what}")
        else:
            spec.refuse(key, f"is not honoured: {what}; leave it out")
    if "selector" in spec:
        spec.note("spec.selector was left out: the service knows its VMs by labels of its own")
    if "virtualMachineTemplate" in spec:
        spec.note("spec.virtualMachineTemplate became the pool's template")
        if "size" not in body:
            body["size"] = 1
            spec.note("spec.replicas is missing: size became 1, KubeVirt's own default")
    if "replicas" in spec:
        spec.note("spec.replicas became the pool's size")


def _take_start(head: Head, body: Json, places: dict[str, str]) -> dict[Reference, str]:
    """Puts `start_from` into the body, and takes a snapshot out of its template."""
    template = body.get("template")
    if not isinstance(template, dict):
        for setting in START_SETTINGS:
            body.pop(setting, None)
        return {}
    copied = own_copy(Part(template, places["template"], head.findings))
    start, references = take_start(_vmi_of(copied), body, places)
    body["template"] = copied.value
    if start is not None:
        body["start_from"] = start
    return references


def _vmi_of(template: Part) -> Part:
    """The VMI's spec, in whichever form the template is written."""
    spec = template.get("spec")
    if isinstance(spec, dict) and "template" in spec:
        return template.part("spec").part("template").part("spec")
    if "template" in template:
        return template.part("template").part("spec")
    return template.part("spec") if isinstance(spec, dict) else Part({}, template.at("spec"), template.findings)
