"""Translates a VirtualMachinePool into a pool. It may use this service's fields (`size`, `template`, `autoReplenish`,
`minAvailable`) or KubeVirt's (`replicas`, `virtualMachineTemplate`, `selector`).
"""

from typing import Final

from app.domain.pools import PoolSpec
from app.manifests.fields import Part
from app.manifests.heads import DocumentKind, Head, as_text, settings_of
from app.manifests.requests import Json, Reference, Resource
from app.manifests.templates import START_SETTINGS, copy_part, read_start

_WORDS: Final = {
    "size": "size",
    "replicas": "size",
    "template": "template",
    "virtualMachineTemplate": "template",
    "autoReplenish": "auto_replenish",
    "minAvailable": "min_available",
}
"""From the manifest's field to the pool's."""
_UNSUPPORTED: Final = {
    "autohealing": "is not supported: unhealthy VMs are always replaced; leave it out",
    "maxUnavailable": "is not supported: write minAvailable, the fewest ready VMs during a change",
    "nameGeneration": "is not supported: the service generates the names; leave it out",
}
_STRATEGIES: Final = {
    "updateStrategy": "a changed template replaces unclaimed VMs and keeps minAvailable",
    "scaleInStrategy": "a smaller size removes only unclaimed VMs",
}
_SETTINGS: Final = {
    **settings_of(
        PoolSpec.model_fields, without=frozenset({"size", "template", "auto_replenish", "min_available", "start_from"})
    ),
    **{setting: (setting, as_text) for setting in START_SETTINGS},
}


def _translate(head: Head, body: Json, places: dict[str, str]) -> dict[Reference, str]:
    spec = head.spec
    spec.allow((*_WORDS, *_STRATEGIES, "selector", "paused"), refused=_UNSUPPORTED)
    for word, name in _WORDS.items():
        if word in spec and name in places:
            spec.refuse(word, f"means the same as {spec.findings.relative(places[name])}: keep one of them")
        elif word in spec:
            body[name] = spec.get(word)
            places[name] = spec.at(word)
    _translate_upstream(spec, body)
    return _move_start(head, body, places)


def _translate_upstream(spec: Part, body: Json) -> None:
    if spec.get("paused") is True:
        spec.refuse("paused", "is not supported: POST /v1/pools/NAME/pause pauses a pool, and an apply keeps it paused")
    elif "paused" in spec and spec.get("paused") is not False:
        spec.refuse("paused", "must be true or false")
    for key, what in _STRATEGIES.items():
        if key not in spec:
            continue
        if set(spec.part(key).value) <= {"unmanaged"}:
            spec.note(f"spec.{key} was ignored: {what}")
        else:
            spec.refuse(key, f"is not supported: {what}; leave it out")
    if "selector" in spec:
        spec.note("spec.selector was ignored: the service labels its VMs itself")
    if "virtualMachineTemplate" in spec:
        spec.note("spec.virtualMachineTemplate became the pool's template")
        if "size" not in body:
            body["size"] = 1
            spec.note("spec.replicas is missing: size became 1, KubeVirt's default")
    if "replicas" in spec:
        spec.note("spec.replicas became the pool's size")


def _move_start(head: Head, body: Json, places: dict[str, str]) -> dict[Reference, str]:
    """Moves the source of the VMs from the template and the settings to `start_from`."""
    template = body.get("template")
    if not isinstance(template, dict):
        for setting in START_SETTINGS:
            body.pop(setting, None)
        return {}
    copied = copy_part(Part(template, places["template"], head.findings))
    start, references = read_start(_vmi_of(copied), body, places)
    body["template"] = copied.value
    if start is not None:
        body["start_from"] = start
    return references


def _vmi_of(template: Part) -> Part:
    """The VMI's spec, in any form of template."""
    spec = template.get("spec")
    if isinstance(spec, dict) and "template" in spec:
        return template.part("spec").part("template").part("spec")
    if "template" in template:
        return template.part("template").part("spec")
    return template.part("spec") if isinstance(spec, dict) else Part({}, template.at("spec"), template.findings)


KIND: Final = DocumentKind(
    "VirtualMachinePool",
    "pool.kubevirt.io",
    ("v1", "v1beta1", "v1alpha1"),
    Resource.POOL,
    _SETTINGS,
    _translate,
)
