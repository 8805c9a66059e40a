"""What a document asks for, in terms of this service's own API."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from app.errors import FieldProblem
from app.manifests.documents import Document

Json = dict[str, Any]


class Resource(StrEnum):
    """The resource that a document describes; the value is its path below `/v1`."""

    POOL = "pools"
    SNAPSHOT = "snapshots"
    PRELOAD = "preloads"
    CLAIM = "claims"

    @property
    def noun(self) -> str:
        return self.value.removesuffix("s")


Reference = tuple[Resource, str]
"""A resource by its kind and name."""
VIRTUAL_MACHINE: Final = "VirtualMachine"


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """One document, translated and not yet compared with what exists.

    `body` is the body of the API request: PUT for a pool or preload, POST for a snapshot or claim. `places` maps a field of `body`
    (dotted) to its place in the document, also if it is not written there; a field that is not in it is below the place of
    the empty field. `references` are the resources that the document refers to, with the places of the references. `notes` say
    how it was translated. If `valid` is false, the document has problems and the request only tells what it refers to.
    """

    document: Document
    kind: str
    resource: Resource
    name: str
    body: Json
    places: dict[str, str]
    references: dict[Reference, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    valid: bool = True

    @property
    def key(self) -> Reference:
        return self.resource, self.name

    def place(self, field_path: str) -> str:
        """The place in the document of a field of `body`, as precise as it is known."""
        known = field_path
        while known and known not in self.places:
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        if known:
            return self.places[known] + field_path[len(known) :]
        return f"{self.places['']}.{field_path}" if field_path and "" in self.places else self.document.path

    def problem(self, field_path: str, message: str) -> FieldProblem:
        """A problem of a field of `body`, at its place in the document."""
        return located(self.document, self.place(field_path), message)


def located(document: Document, path: str, message: str) -> FieldProblem:
    """A problem with its line in the message, if the line is known."""
    line = document.line(path)
    return FieldProblem(path, message if line is None else f"{message} (line {line})")
