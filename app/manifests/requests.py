"""What a document asks for, in the words of this service's own API."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from app.errors import FieldProblem
from app.manifests.documents import Document

Json = dict[str, Any]


class Resource(StrEnum):
    """What a document becomes; the value is its path below `/v1`."""

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
    """One document, translated and not yet compared with what is there.

    `body` is what the API takes: of a pool the body of its PUT, of a snapshot that of its POST, of a preload that of its PUT, of
    a VM that of a claim. `places` says where in the document its fields were written, or would be, by the field of `body` (dotted); the place of
    fields that are not in it is below that of the empty one.
    `references` are the resources that it refers to, with the place of the reference. `notes` say what was
    translated, and how. `valid` False: something is wrong with the document, and the request only says what it would have made.
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
        """Where in the body of the request a field of `body` was written: as near as is known."""
        known = field_path
        while known and known not in self.places:
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        if known:
            return self.places[known] + field_path[len(known) :]
        return f"{self.places['']}.{field_path}" if field_path and "" in self.places else self.document.path

    def problem(self, field_path: str, message: str) -> FieldProblem:
        """What is wrong with a field of `body`, told where its author wrote it."""
        return located(self.document, self.place(field_path), message)


def located(document: Document, path: str, message: str) -> FieldProblem:
    """With the line, where it is known."""
    line = document.line(path)
    return FieldProblem(path, message if line is None else f"{message} (line {line})")
