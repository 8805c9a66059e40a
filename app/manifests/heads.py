"""Reads what every document begins with: apiVersion, kind and metadata, and this service's settings in its annotations."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.domain.pools import POOL_NAME_PATTERN
from app.manifests.documents import Document
from app.manifests.fields import Findings, Part, unknown
from app.manifests.foreign import is_foreign, refuse_foreign
from app.manifests.requests import Json, Reference, Resource

PREFIX: Final = "emberpool.io/"
_NAME: Final = re.compile(POOL_NAME_PATTERN)
_NAME_RULE: Final = (
    "must have 1 to 63 lower-case letters, digits and '-', and begin and end with a letter or digit; it is {!r}"
)
_METADATA: Final = ("name", "namespace", "labels", "annotations")
_REFUSED_METADATA: Final = {
    "generateName": "is not supported: a generated name cannot be found when the manifest is applied again; write metadata.name",
}
_TOP: Final = ("apiVersion", "kind", "metadata", "spec")


Reader = Callable[[str], Any]
as_text: Final[Reader] = str


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """One supported kind, the supported versions of its group, and its settings: see `read_settings`.

    `translate` is given the head, the body that the settings begin, and the places of the body's fields. It completes both, and
    returns what the document refers to.
    """

    name: str
    group: str
    versions: tuple[str, ...]
    resource: Resource
    settings: Mapping[str, tuple[str, Reader]]
    translate: Callable[["Head", Json, dict[str, str]], dict[Reference, str]]

    def takes(self, api_version: str) -> bool:
        group, slash, version = api_version.partition("/")
        return bool(slash) and group == self.group and version in self.versions

    @property
    def api_versions(self) -> str:
        return " or ".join(f"{self.group}/{version}" for version in self.versions)


@dataclass(frozen=True, slots=True)
class Head:
    """A document whose kind is supported, at `path`. `annotations` holds all annotations; `labels` are as written."""

    path: str
    name: str
    labels: dict[str, str]
    annotations: Part
    spec: Part

    @property
    def findings(self) -> Findings:
        return self.spec.findings


def read_kind(
    document: Document, kinds: Mapping[str, DocumentKind], namespace: str, findings: Findings
) -> DocumentKind | None:
    """None if the kind is not supported (a problem)."""
    root = Part(document.body, document.path, findings)
    name = root.text("kind", required=True)
    version = root.text("apiVersion", required=name is not None)
    if name is None:
        return None
    kind = kinds.get(name)
    if kind is None:
        foreign = is_foreign(name, kinds)
        root.refuse(
            "kind", refuse_foreign(name, kinds, namespace) if foreign else f"{name!r} {unknown('kind', name, kinds)}"
        )
        return None
    if version is not None and not kind.takes(version):
        root.refuse("apiVersion", f"must be {kind.api_versions} for a {name}; it is {version!r}")
    return kind


def read_head(document: Document, namespace: str, findings: Findings) -> Head:
    """The document's metadata, checked. Its name is empty if it has no valid name (a problem)."""
    root = Part(document.body, document.path, findings)
    root.allow(_TOP)
    metadata = root.part("metadata", required=True)
    metadata.allow(_METADATA, refused=_REFUSED_METADATA)
    name = metadata.text("name", required="metadata" in root) or ""
    if name and not _NAME.fullmatch(name):
        metadata.refuse("name", _NAME_RULE.format(name))
    given = metadata.text("namespace")
    if given is not None and given != namespace:
        metadata.refuse("namespace", f"must be {namespace!r}, the only namespace of this service; or leave it out")
    labels = metadata.part("labels")
    for key, value in labels.value.items():
        if not isinstance(value, str):
            labels.refuse(key, f"must be text in quotes, got {value!r}")
    annotations = metadata.part("annotations")
    return Head(
        path=document.path,
        name=name,
        labels={key: value for key, value in labels.value.items() if isinstance(value, str)},
        annotations=annotations,
        spec=root.part("spec", required=True),
    )


def as_value(text: str) -> Any:
    """The value of the text as JSON; the text itself if it is not JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def as_list(text: str) -> list[Any]:
    """`pool, snapshot` or `["pool", "snapshot"]`."""
    value = as_value(text)
    return value if isinstance(value, list) else [each.strip() for each in text.split(",")]


def read_settings(head: Head, known: Mapping[str, tuple[str, Reader]]) -> tuple[Json, dict[str, str]]:
    """The fields that our annotations set, with their values; and by field the place of its annotation, written or not.

    `known` maps an annotation's name, without its prefix, to the field and its reader. Other annotations are not kept.
    """
    found: Json = {}
    annotations = head.annotations
    places = {name: annotations.at(f"{PREFIX}{setting}") for setting, (name, _) in known.items()}
    for key, value in annotations.value.items():
        if not key.startswith(PREFIX):
            annotations.note("annotations that do not begin with emberpool.io/ are not kept")
            continue
        setting = key.removeprefix(PREFIX)
        if setting not in known:
            annotations.refuse_unknown(key, "setting", setting, known)
        elif isinstance(value, dict | list) or value is None:
            annotations.refuse(key, "must be text, as every value of an annotation")
        else:
            name, read = known[setting]
            found[name] = read(value) if isinstance(value, str) else value
    return found, places


def settings_of(fields: Mapping[str, Any], *, without: frozenset[str]) -> dict[str, tuple[str, Reader]]:
    """A setting for each field of a model: `emberpool.io/max-vms` sets `max_vms`."""
    return {name.replace("_", "-"): (name, as_value) for name in fields if name not in without}
