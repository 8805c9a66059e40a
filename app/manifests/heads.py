"""What every document begins with: apiVersion, kind and metadata. And our own settings, which stand in its annotations."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.domain.pools import POOL_NAME_PATTERN
from app.manifests.documents import Document
from app.manifests.fields import Findings, Part, unknown
from app.manifests.requests import Json

PREFIX: Final = "emberpool.io/"
_NAME: Final = re.compile(POOL_NAME_PATTERN)
_NAME_RULE: Final = (
    "must be 1 to 63 lower-case letters, digits and '-', and begin and end with a letter or digit; it is {!r}"
)
_WRITTEN_BY_THE_CLUSTER: Final = (
    "creationTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
)
_METADATA: Final = ("name", "namespace", "labels", "annotations", *_WRITTEN_BY_THE_CLUSTER)
_REFUSED_METADATA: Final = {
    "generateName": "cannot be honoured: what has no name of its own cannot be found when the manifest is applied again; "
    "write metadata.name",
    "ownerReferences": "cannot be honoured: what this service makes belongs to it; leave it out",
    "finalizers": "cannot be honoured: leave it out",
    "deletionTimestamp": "is of an object that is being deleted; leave it out",
    "deletionGracePeriodSeconds": "is of an object that is being deleted; leave it out",
}
_TOP: Final = ("apiVersion", "kind", "metadata", "spec", "status")


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """One kind that is taken, and the versions of its group under which users know it."""

    name: str
    group: str
    versions: tuple[str, ...]

    def takes(self, api_version: str) -> bool:
        group, slash, version = api_version.partition("/")
        return bool(slash) and group == self.group and version in self.versions

    @property
    def api_versions(self) -> str:
        return " or ".join(f"{self.group}/{version}" for version in self.versions)


@dataclass(frozen=True, slots=True)
class Head:
    """A document whose kind is known. `annotations` are all of them, `labels` as written."""

    kind: str
    name: str
    labels: dict[str, str]
    annotations: Part
    spec: Part

    @property
    def findings(self) -> Findings:
        return self.spec.findings


def read_kind(document: Document, kinds: Mapping[str, DocumentKind], findings: Findings) -> DocumentKind | None:
    """None: it is none that is taken here (a problem)."""
    root = Part(document.body, document.path, findings)
    name = root.text("kind", required=True)
    version = root.text("apiVersion", required=name is not None)
    if name is None:
        return None
    kind = kinds.get(name)
    if kind is None:
        root.refuse("kind", f"{name!r} is not taken here: {unknown('kind', name, kinds)}")
        return None
    if version is not None and not kind.takes(version):
        root.refuse("apiVersion", f"a {name} is of {kind.api_versions}; it says {version!r}")
    return kind


def read_head(document: Document, kind: DocumentKind, namespace: str, findings: Findings) -> Head:
    """The document's metadata, checked; its name is empty where it has none that can be used (a problem)."""
    root = Part(document.body, document.path, findings)
    root.allow(_TOP)
    if "status" in root:
        root.note("status is what the cluster once wrote, and was left out")
    metadata = root.part("metadata", required=True)
    metadata.allow(_METADATA, refused=_REFUSED_METADATA)
    if any(key in metadata for key in _WRITTEN_BY_THE_CLUSTER):
        metadata.note("what the cluster writes into metadata (uid, resourceVersion and the like) was left out")
    name = metadata.text("name", required="metadata" in root) or ""
    if name and not _NAME.fullmatch(name):
        metadata.refuse("name", _NAME_RULE.format(name))
    given = metadata.text("namespace")
    if given is not None and given != namespace:
        metadata.refuse(
            "namespace", f"this service works in namespace {namespace!r} alone; leave it out, or write that"
        )
    labels = metadata.part("labels")
    for key, value in labels.value.items():
        if not isinstance(value, str):
            labels.refuse(key, f"must be text, in quotes; got {value!r}")
    annotations = metadata.part("annotations")
    return Head(
        kind=kind.name,
        name=name,
        labels={key: value for key, value in labels.value.items() if isinstance(value, str)},
        annotations=annotations,
        spec=root.part("spec", required=True),
    )


Reader = Callable[[str], Any]


def as_text(text: str) -> str:
    return text


def as_value(text: str) -> Any:
    """A number, true, false, a list or a mapping where the text is one as JSON; else the text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def as_list(text: str) -> list[Any]:
    """`pool, snapshot` or `["pool", "snapshot"]`."""
    value = as_value(text)
    return value if isinstance(value, list) else [each.strip() for each in text.split(",")]


def read_settings(head: Head, known: Mapping[str, tuple[str, Reader]]) -> tuple[Json, dict[str, str]]:
    """Our own annotations, by the fields that they set, and where each was written or would be.

    `known`: by the annotation's name without its prefix, the field and how to read it. Other annotations are not kept.
    """
    found: Json = {}
    annotations = head.annotations
    places = {name: annotations.at(f"{PREFIX}{setting}") for setting, (name, _) in known.items()}
    for key, value in annotations.value.items():
        if not key.startswith(PREFIX):
            if not key.startswith("kubectl.kubernetes.io/"):
                annotations.note("annotations that do not begin with emberpool.io/ are not kept")
            continue
        setting = key.removeprefix(PREFIX)
        if setting not in known:
            annotations.refuse(key, unknown("setting", setting, known))
        elif isinstance(value, dict | list) or value is None:
            annotations.refuse(key, "must be text: the value of an annotation is")
        else:
            name, read = known[setting]
            found[name] = read(value) if isinstance(value, str) else value
    return found, places


def settings_of(fields: Mapping[str, Any], *, without: frozenset[str]) -> dict[str, tuple[str, Reader]]:
    """Each field of a model as a setting: `max_vms` is set by `emberpool.io/max-vms`."""
    return {name.replace("_", "-"): (name, as_value) for name in fields if name not in without}
