"""Reads a document field by field. An unknown field is a problem, reported with the known field that is most like it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from app.domain.fields import suggest
from app.errors import FieldProblem
from app.manifests.documents import Document
from app.manifests.requests import Json, located
from app.manifests.values import describe

_MISSING = "is missing"
_MOST_SUGGESTIONS = 20
"""Of one document: to find a word that is like another one takes long, and nobody is told more problems."""


class Findings:
    """The problems of one document, and the notes about its translation: each once, in order."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: dict[FieldProblem, None] = {}
        self.notes: dict[str, None] = {}
        self._absent: set[str] = set()

    def relative(self, path: str) -> str:
        """The path within the document: `spec.size`."""
        return path.removeprefix(f"{self._document.path}.")

    def refuse(self, path: str, message: str) -> None:
        if message.startswith(_MISSING) and any(path.startswith(f"{absent}.") for absent in self._absent):
            return  # the field around it is missing, which is reported already
        if message.startswith(_MISSING):
            self._absent.add(path)
        self.problems[located(self._document, path, message)] = None

    def note(self, sentence: str) -> None:
        self.notes[sentence] = None


class Part:
    """One mapping of a document, at `path`. A field that is null counts as absent, as in Kubernetes."""

    def __init__(self, value: Json, path: str, findings: Findings) -> None:
        self.value = value
        self.path = path
        self.findings = findings

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    @property
    def relative(self) -> str:
        """Its path within the document."""
        return self.findings.relative(self.path)

    def at(self, key: str) -> str:
        return f"{self.path}.{key}"

    def refuse(self, key: str, message: str) -> None:
        self.findings.refuse(self.at(key), message)

    def refuse_unknown(self, key: str, what: str, word: str, known: Collection[str]) -> None:
        """Refuses the field at `key` because `word` is not among the known ones."""
        many = len(self.findings.problems) >= _MOST_SUGGESTIONS
        self.refuse(key, f"is not a known {what}" if many else unknown(what, word, known))

    def note(self, sentence: str) -> None:
        self.findings.note(sentence)

    def allow(self, known: Collection[str], *, refused: Mapping[str, str] | None = None) -> None:
        """Refuses every unknown field. `refused` gives the reason for fields that Kubernetes knows and this service does not support."""
        reasons = refused or {}
        for key in self.value:
            if key in reasons:
                if key in self:
                    self.refuse(key, reasons[key])
            elif key not in known:
                self.refuse_unknown(key, "field", key, known)

    def get(self, key: str) -> Any:
        return self.value.get(key)

    def part(self, key: str, *, required: bool = False) -> "Part":
        """The mapping at `key`; an empty one if it is absent, or if it is something else (a problem)."""
        value = self.value.get(key)
        if value is None and required:
            self.refuse(key, "is missing")
        elif value is not None and not isinstance(value, dict):
            self.refuse(key, f"must be a mapping, got {name_type(value)}")
        return Part(value if isinstance(value, dict) else {}, self.at(key), self.findings)

    def parts(self, key: str) -> "Iterator[Part]":
        """The mappings in the list at `key`. Other items are skipped: a later check reports them."""
        value = self.value.get(key)
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, dict):
                yield Part(item, f"{self.at(key)}[{index}]", self.findings)

    def text(self, key: str, *, required: bool = False) -> str | None:
        """The text at `key`; None if it is absent (a problem if `required`) or something else (a problem)."""
        value = self.value.get(key)
        if isinstance(value, str) and value:
            return value
        if value is not None:
            self.refuse(key, "is empty" if value == "" else f"must be text, got {name_type(value)}; put it in quotes")
        elif required:
            self.refuse(key, "is missing")
        return None


def unknown(what: str, word: str, known: Collection[str]) -> str:
    """The message for a word that is not among the known ones."""
    meant = suggest(word, known)
    if meant is not None:
        return f"is not a known {what}; did you mean `{meant}`?"
    return f"is not a known {what}; known are: {', '.join(sorted(known))}"


def name_type(value: object) -> str:
    """The type of a field's value, in words; of a number also the value."""
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return f"the number {value}"
        case _:
            return describe(value)
