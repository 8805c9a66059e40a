"""Reads the documents of a request body or a file, which may hold any bytes.

A document holds only what JSON can express. Text that begins with `{` is read as JSON, as `kubectl` does, and all other text
as YAML.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from app.errors import MalformedBody
from app.manifests import json_text, yaml_text
from app.manifests.encoding import decode
from app.manifests.values import MAX_DOCUMENTS, Json, describe

_LIST: Final = "List"


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `path` is its position in the body (`documents[1]`); `lines` maps the path of a field to its line."""

    path: str
    body: Json
    lines: dict[str, int] = field(default_factory=dict)

    def line(self, path: str) -> int | None:
        """The line of the field, or of the nearest field that contains it; None if unknown."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return None


def read_documents(data: bytes, *, only_json: bool = False) -> list[Document]:
    """The documents of the text, without empty ones; a list counts as its items. Raises MalformedBody, with line and column."""
    text = decode(data)
    if not only_json and not json_text.looks_like_json(text):
        return _checked(yaml_text.read(text))
    try:
        return _checked(json_text.read(text))
    except json_text.NotJson as error:
        if only_json:
            raise
        try:
            return _checked(yaml_text.read(text))  # a mapping in YAML may begin with a brace, too
        except yaml_text.NotYaml:
            raise error from None


def _checked(found: Iterable[tuple[str, Any, dict[str, int]]]) -> list[Document]:
    documents: list[Document] = []
    for path, body, lines in found:
        documents.extend(_unpack(_require_mapping(path, body, lines)))
        if len(documents) > MAX_DOCUMENTS:
            raise MalformedBody(f"the text has more than {MAX_DOCUMENTS} documents; send them in several requests")
    if not documents:
        raise MalformedBody("the text has no document; send at least one manifest")
    return documents


def _unpack(document: Document) -> Iterator[Document]:
    """The items of a `kind: List`, which `kubectl get -o yaml` writes, or of a list of one kind, which the API server writes,
    whose items need not say their kind; any other document unchanged.
    """
    body = document.body
    kind, items = body.get("kind"), body.get("items")
    if not (isinstance(kind, str) and kind.endswith(_LIST) and isinstance(items, list)):
        yield document
        return
    of_items = {"apiVersion": body.get("apiVersion"), "kind": kind.removesuffix(_LIST)} if kind != _LIST else {}
    for index, item in enumerate(items):
        found = _require_mapping(f"{document.path}.items[{index}]", item, document.lines)
        yield from _unpack(Document(found.path, {**of_items, **found.body}, found.lines))


def _require_mapping(path: str, body: Any, lines: dict[str, int]) -> Document:
    if not isinstance(body, dict):
        raise MalformedBody(f"{path} is {describe(body)}; a manifest is a mapping with apiVersion, kind and metadata")
    return Document(path, body, lines)
