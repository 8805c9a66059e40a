"""Reads the files that commands are given: files, folders, addresses, and `-` for standard input."""

import dataclasses
import glob
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from app.errors import EmberpoolError, FieldProblem, MalformedBody
from app.manifests.documents import Document, read_documents
from app.manifests.requests import Resource, ResourceRequest
from app.manifests.translate import translate

_STDIN: Final = "-"
_SUFFIXES: Final = (".yaml", ".yml", ".json")
"""The names that a folder is searched for, as by kubectl."""
_WEB: Final = ("http://", "https://")
_WEB_SECONDS: Final = 30.0
_WILD: Final = frozenset("*?[")
_PATH: Final = re.compile(r"documents\[(\d+)\]")


class FileUnusable(EmberpoolError):
    code = "file-unusable"
    title = "The file cannot be used"


@dataclass(frozen=True, slots=True)
class FileDocument:
    """A document and the file that it is from. `number` counts the documents of that file from 1; None: it is the only one."""

    file: str
    number: int | None
    document: Document

    @property
    def label(self) -> str:
        return self.file if self.number is None else f"{self.file}, document {self.number}"

    def tell(self, field: str, message: str) -> str:
        """A problem of a field below the document, with its place in the file."""
        line = self.document.line(f"{self.document.path}.{field}")
        place = self.label if line is None else f"{self.file}, line {line}"
        return f"{place}: {field}: {message}" if field else f"{place}: {message}"


@dataclass(frozen=True, slots=True)
class Files:
    """The documents of all files that a command was given, in order."""

    documents: Sequence[FileDocument]

    def body(self) -> bytes:
        """All documents in one line, as JSON: the service then names no lines, which are told here."""
        return " ".join(json.dumps(each.document.body) for each in self.documents).encode()

    def locate(self, text: str) -> str:
        """The text with the names of files for the positions of documents in the body."""
        return _PATH.sub(lambda match: self._at(match).label, text)

    def tell(self, problem: FieldProblem) -> str:
        """A problem that the service found in the body."""
        found = _PATH.match(problem.field)
        if found is None:
            return f"{problem.field}: {problem.message}"
        field = problem.field[found.end() :].removeprefix(".")
        return self._at(found).tell(field, self.locate(problem.message))

    def _at(self, match: re.Match[str]) -> FileDocument:
        return self.documents[int(match[1])]


def read_files(names: Sequence[str], *, recursive: bool = False) -> Files:
    """`recursive`: also the folders in a folder. Raises FileUnusable."""
    files = dict.fromkeys(file for name in names for file in _expand(name, recursive=recursive))
    documents: list[FileDocument] = []
    for file in files:
        shown = "standard input" if file == _STDIN else file
        try:
            found = read_documents(_read(file))
        except MalformedBody as error:
            raise FileUnusable(f"{shown}: {error.detail}") from error
        documents += [
            FileDocument(shown, number if len(found) > 1 else None, document)
            for number, document in enumerate(found, 1)
        ]
    return Files(documents)


def read_request(files: Files, resource: Resource, *, skip_unknown: bool) -> ResourceRequest:
    """The only document that the service applies, which must describe that kind of resource. Raises FileUnusable with all problems.

    Its namespace is not judged, which only the service can.
    """
    requests: list[tuple[FileDocument, ResourceRequest]] = []
    problems: list[str] = []
    for each in files.documents:
        unnumbered = dataclasses.replace(each.document, lines={})  # `tell` names the line
        found = translate([unnumbered], namespace=namespace_of(unnumbered), skip_unknown=skip_unknown)
        requests += [(each, request) for request in found.requests]
        problems += [
            each.tell(problem.field.removeprefix(each.document.path).removeprefix("."), problem.message)
            for problem in found.problems
        ]
    if problems:
        raise FileUnusable("; ".join(problems))
    if len(requests) != 1:
        raise FileUnusable(
            f"{files.documents[0].file} has {len(requests) or 'no'} documents that the service applies, and this command takes "
            "one VirtualMachine; `emberpool apply` takes several"
        )
    origin, request = requests[0]
    if request.resource is not resource:
        raise FileUnusable(
            f"{origin.label}: it is a {request.kind}, which describes one of {request.resource}, not of {resource}; "
            "`emberpool apply` takes it"
        )
    return request


def namespace_of(document: Document) -> str:
    """The namespace that the document names; empty if it names none."""
    metadata = document.body.get("metadata")
    given = metadata.get("namespace") if isinstance(metadata, dict) else None
    return given if isinstance(given, str) else ""


def _expand(name: str, *, recursive: bool) -> Iterator[str]:
    """The files that one `-f` names: also a folder, a pattern, or several names with commas, as in kubectl."""
    if name == _STDIN or name.startswith(_WEB) or Path(name).is_file():
        yield name
    elif Path(name).is_dir():
        yield from _in_folder(Path(name), recursive=recursive)
    elif _WILD & set(name) and (found := sorted(glob.glob(name))):  # noqa: PTH207 - a Path takes no absolute pattern
        for each in found:
            yield from _expand(each, recursive=recursive)
    elif "," in name:
        for each in name.split(","):
            yield from _expand(each, recursive=recursive)
    else:
        yield name  # to be read, which tells why that fails


def _in_folder(folder: Path, *, recursive: bool) -> list[str]:
    found = sorted(folder.rglob("*") if recursive else folder.iterdir())
    files = [str(each) for each in found if each.suffix in _SUFFIXES and each.is_file()]
    if not files:
        deeper = "" if recursive else "; -R also searches the folders in it"
        raise FileUnusable(f"{folder} is a folder without any file that ends in {', '.join(_SUFFIXES)}{deeper}")
    return files


def _read(name: str) -> bytes:
    if name.startswith(_WEB):
        return _download(name)
    try:
        return sys.stdin.buffer.read() if name == _STDIN else Path(name).read_bytes()
    except OSError as error:
        raise FileUnusable(f"{name}: {error.strerror}") from error


def _download(address: str) -> bytes:
    try:
        answer = httpx.get(address, follow_redirects=True, timeout=_WEB_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FileUnusable(f"{address}: {str(error) or type(error).__name__}") from error
    if not answer.is_success:
        raise FileUnusable(f"{address}: HTTP {answer.status_code} {answer.reason_phrase}".rstrip())
    return answer.content
