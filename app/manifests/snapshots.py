"""A VirtualMachineSnapshot to a snapshot: of a VM, or of a pool's template."""

from typing import Final

from app.manifests.fields import Part, unknown
from app.manifests.heads import Head, KindOfDocument, as_text, as_value, read_settings
from app.manifests.reading import Document
from app.manifests.wishes import VIRTUAL_MACHINE, Reference, Resource, Wish

KIND: Final = KindOfDocument("VirtualMachineSnapshot", "snapshot.kubevirt.io", ("v1", "v1beta1", "v1alpha1"))
_POOL: Final = "VirtualMachinePool"
_GROUPS: Final = {VIRTUAL_MACHINE: "kubevirt.io", _POOL: "pool.kubevirt.io"}
_SOURCE_POOL: Final = "source-pool"
_SETTINGS: Final = {
    _SOURCE_POOL: (_SOURCE_POOL, as_text),
    "quiesce": ("quiesce", as_text),
    "refresh": ("refresh", as_value),
    "keep": ("keep", as_value),
}
_UNHONOURED: Final = {
    "failureDeadline": "is not honoured: the service tries again by itself, and says why a snapshot is not ready",
}


def translate_snapshot(document: Document, head: Head) -> Wish:
    """`emberpool.io/source-pool` in the place of `spec.source` takes the snapshot from a pool's template; so does a source of
    kind VirtualMachinePool.
    """
    spec = head.spec
    body, places = read_settings(head, _SETTINGS)
    body["name"] = head.name
    places[""] = spec.path
    places["name"] = f"{document.path}.metadata.name"
    spec.allow(("source", "deletionPolicy"), refused=_UNHONOURED)
    if spec.get("deletionPolicy") not in {None, "Delete"}:
        spec.refuse("deletionPolicy", "must be Delete: a snapshot's content goes with it")
    pool = body.pop(_SOURCE_POOL, None)
    place = places.pop(_SOURCE_POOL, "")
    needs: dict[Reference, str] = {}
    if pool is None:
        source = _read_source(spec)
    else:
        source = (_POOL, pool, place)
        if "source" in spec:
            spec.refuse("source", f"and the annotation {spec.findings.relative(place)} name two sources: keep one")
    if source is not None:
        kind, name, place = source
        word, resource = ("pool", Resource.POOL) if kind == _POOL else ("vm", Resource.CLAIM)
        body["source"] = {word: name}
        places["source"] = places[f"source.{word}"] = place
        needs[resource, name] = place
    if head.labels:
        spec.note("metadata.labels are not kept: a snapshot has none")
    return Wish(document, head.kind, Resource.SNAPSHOT, head.name, body, places, needs, head.findings.notes)


def _read_source(spec: Part) -> tuple[str, str, str] | None:
    """Kind, name and the name's place."""
    if "source" not in spec:
        spec.refuse("source", "is missing: it says which VirtualMachine to take the snapshot of, by kind and name")
        return None
    source = spec.part("source")
    source.allow(("apiGroup", "kind", "name"))
    kind, name = source.text("kind", required=True), source.text("name", required=True)
    if kind is not None and kind not in _GROUPS:
        source.refuse("kind", f"{kind!r} is not taken here: {unknown('kind', kind, _GROUPS)}")
        return None
    group = source.text("apiGroup")
    if kind is not None and group is not None and group.partition("/")[0] != _GROUPS[kind]:
        source.refuse("apiGroup", f"a {kind} is of {_GROUPS[kind]}; it says {group!r}")
    return (kind, name, source.at("name")) if kind is not None and name is not None else None
