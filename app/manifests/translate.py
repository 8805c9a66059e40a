"""Translates all documents of a body into requests, and orders them so that each follows what it refers to."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Final

from app.errors import FieldProblem
from app.manifests import pools, snapshots, virtual_machines, volumes
from app.manifests.documents import Document
from app.manifests.exports import clean
from app.manifests.fields import Findings
from app.manifests.foreign import is_foreign
from app.manifests.heads import read_head, read_kind, read_settings
from app.manifests.requests import Reference, Resource, ResourceRequest, located

_KINDS: Final = {
    kind.name: kind
    for kind in (pools.KIND, snapshots.KIND, virtual_machines.KIND, volumes.DATA_VOLUME, volumes.IMPORT_CRON)
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A document of a kind that this service does not apply, passed over."""

    path: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Translation:
    """The request of each document that has one, in the documents' order, no two of them for the same resource; the problems of
    all documents; and the documents that were passed over.
    """

    requests: list[ResourceRequest]
    problems: list[FieldProblem]
    skipped: list[Skipped]


def translate(documents: Sequence[Document], *, namespace: str, skip_unknown: bool = False) -> Translation:
    """`skip_unknown`: documents of kinds that this service does not apply are passed over instead of refused."""
    requests: list[ResourceRequest] = []
    problems: list[FieldProblem] = []
    skipped: list[Skipped] = []
    first: dict[Reference, Document] = {}
    for document in documents:
        if skip_unknown and (other := _skipped(document)) is not None:
            skipped.append(other)
            continue
        findings = Findings(document)
        request = _translate_one(document, namespace, findings)
        if request is not None and request.name:
            earlier = first.setdefault(request.key, document)
            if earlier is document:
                requests.append(dataclasses.replace(request, valid=not findings.problems))
            else:
                findings.refuse(
                    f"{document.path}.metadata.name",
                    f"{earlier.path} makes {request.resource.noun} {request.name!r} already: give each a name of its own",
                )
        problems.extend(findings.problems)
    return Translation(requests, problems, skipped)


def order(requests: Sequence[ResourceRequest]) -> tuple[list[ResourceRequest], list[FieldProblem]]:
    """Each request after those that it refers to, else in the documents' order. A circle of references is a problem."""
    by_key = {request.key: request for request in requests}
    sorter = TopologicalSorter(
        {request.key: [need for need in request.references if need in by_key] for request in requests}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        around: list[Reference] = error.args[1]
        request, needed = by_key[around[1]], around[0]
        others = " and ".join(by_key[key].document.path for key in dict.fromkeys(around))
        message = f"{others} refer to each other in a circle"
        return [], [located(request.document, request.references[needed], message)]
    position = {request.key: number for number, request in enumerate(requests)}
    found: list[ResourceRequest] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        found.extend(by_key[key] for key in ready)
        sorter.done(*ready)
    return found, []


def _translate_one(document: Document, namespace: str, findings: Findings) -> ResourceRequest | None:
    kind = read_kind(document, _KINDS, namespace, findings)
    if kind is None:
        return None
    body, notes = clean(document.body)
    for note in notes:
        findings.note(note)
    head = read_head(dataclasses.replace(document, body=body), namespace, findings)
    body, places = read_settings(head, kind.settings)
    places[""] = head.spec.path
    if head.labels and kind.resource is not Resource.CLAIM:
        findings.note(f"metadata.labels were ignored: a {kind.resource.noun} has no labels")
    references = kind.translate(head, body, places)
    return ResourceRequest(
        document, kind.name, kind.resource, head.name, body, places, references, tuple(findings.notes)
    )


def _skipped(document: Document) -> Skipped | None:
    kind, metadata = document.body.get("kind"), document.body.get("metadata")
    if not isinstance(kind, str) or kind in _KINDS or not is_foreign(kind, _KINDS):
        return None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return Skipped(document.path, kind, name if isinstance(name, str) else "")
