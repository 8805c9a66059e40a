"""Translates a VirtualMachineSnapshot into a snapshot of a VM, or of a VM made from a pool's template."""

import re
from typing import Final

from app.domain.snapshot_specs import SnapshotSpec
from app.manifests.fields import Part, unknown
from app.manifests.heads import DocumentKind, Head, as_text, settings_of
from app.manifests.requests import VIRTUAL_MACHINE, Json, Reference, Resource

_POOL: Final = "VirtualMachinePool"
_GROUPS: Final = {VIRTUAL_MACHINE: "kubevirt.io", _POOL: "pool.kubevirt.io"}
_SOURCE_POOL: Final = "source-pool"
_SETTINGS: Final = {
    **settings_of(SnapshotSpec.model_fields, without=frozenset({"name", "source"})),
    _SOURCE_POOL: (_SOURCE_POOL, as_text),
}
_DURATION: Final = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)


def _translate(head: Head, body: Json, places: dict[str, str]) -> dict[Reference, str]:
    """The source is a pool if it has the kind VirtualMachinePool, or if the annotation `emberpool.io/source-pool` names it."""
    spec = head.spec
    body["name"] = head.name
    places["name"] = f"{head.path}.metadata.name"
    spec.allow(("source", "deletionPolicy", "failureDeadline"))
    _read_deadline(spec, body, places)
    if spec.get("deletionPolicy") not in {None, "Delete"}:
        spec.refuse("deletionPolicy", "must be Delete: the content is deleted with the snapshot")
    pool = body.pop(_SOURCE_POOL, None)
    place = places.pop(_SOURCE_POOL, "")
    references: dict[Reference, str] = {}
    if pool is None:
        source = _read_source(spec)
    else:
        source = (_POOL, pool, place)
        if "source" in spec:
            spec.refuse(
                "source", f"and the annotation {spec.findings.relative(place)} name two sources; keep one of them"
            )
    if source is not None:
        kind, name, place = source
        word, resource = ("pool", Resource.POOL) if kind == _POOL else ("vm", Resource.CLAIM)
        body["source"] = {word: name}
        places["source"] = places[f"source.{word}"] = place
        references[resource, name] = place
    return references


def _read_deadline(spec: Part, body: Json, places: dict[str, str]) -> None:
    """`failureDeadline` is a duration as Go writes it: `10m`, `1h30m0s`."""
    deadline = spec.text("failureDeadline")
    if deadline is None:
        return
    if "timeout_seconds" in body:
        where = spec.findings.relative(places["timeout_seconds"])
        spec.refuse("failureDeadline", f"means the same as {where}: keep one of them")
    elif (match := _DURATION.fullmatch(deadline)) is None:
        spec.refuse(
            "failureDeadline", f"must be a duration in hours, minutes and seconds, such as 10m; it is {deadline!r}"
        )
    else:
        hours, minutes, rest = (int(each or 0) for each in match.groups())
        body["timeout_seconds"] = hours * 3600 + minutes * 60 + rest
        places["timeout_seconds"] = spec.at("failureDeadline")


def _read_source(spec: Part) -> tuple[str, str, str] | None:
    """The kind, the name and the place of the name."""
    if "source" not in spec:
        spec.refuse("source", "is missing: write the kind and name of the VirtualMachine to take the snapshot of")
        return None
    source = spec.part("source")
    source.allow(("apiGroup", "kind", "name"))
    kind, name = source.text("kind", required=True), source.text("name", required=True)
    if kind is not None and kind not in _GROUPS:
        source.refuse("kind", f"{kind!r} {unknown('kind', kind, _GROUPS)}")
        return None
    group = source.text("apiGroup")
    if kind is not None and group is not None and group.partition("/")[0] != _GROUPS[kind]:
        source.refuse("apiGroup", f"must be {_GROUPS[kind]} for a {kind}; it is {group!r}")
    return (kind, name, source.at("name")) if kind is not None and name is not None else None


KIND: Final = DocumentKind(
    "VirtualMachineSnapshot",
    "snapshot.kubevirt.io",
    ("v1", "v1beta1", "v1alpha1"),
    Resource.SNAPSHOT,
    _SETTINGS,
    _translate,
)
