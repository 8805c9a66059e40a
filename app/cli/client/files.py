"""Reads the files that commands are given; `-` is standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path

from app.cli.client.printing import Json
from app.errors import EmberpoolError, MalformedBody
from app.manifests.documents import Document, read_yaml
from app.manifests.requests import Resource, ResourceRequest
from app.manifests.translate import translate


class FileUnusable(EmberpoolError):
    code = "file-unusable"
    title = "The file cannot be used"


def read_file(name: str) -> bytes:
    """Raises FileUnusable."""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise FileUnusable(f"{name}: {error.strerror}") from error


def read_documents(name: str) -> list[Document]:
    """Raises FileUnusable with line and column if the file is not YAML."""
    try:
        return read_yaml(read_file(name))
    except MalformedBody as error:
        raise FileUnusable(f"{name}: {error.detail}") from error


def read_request(name: str, documents: Sequence[Document], resource: Resource) -> ResourceRequest:
    """The only document of the file, which must describe that kind of resource. Raises FileUnusable with all problems."""
    if len(documents) != 1:
        raise FileUnusable(
            f"{name} has {len(documents)} documents, and this command takes one; `emberpool apply` takes several"
        )
    requests, problems = translate(documents, namespace=_namespace(documents[0].body))
    if problems:
        told = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
        raise FileUnusable(f"{name}: {told}")
    request = requests[0]
    if request.resource is not resource:
        raise FileUnusable(
            f"{name}: documents[0].kind is {request.kind}, which describes one of {request.resource}, not of {resource}"
        )
    return request


def _namespace(body: Json) -> str:
    """The document's own namespace: only the service knows which one is right."""
    metadata = body.get("metadata")
    given = metadata.get("namespace") if isinstance(metadata, dict) else None
    return given if isinstance(given, str) else ""
