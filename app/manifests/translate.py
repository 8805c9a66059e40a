"""Translates all documents of a body into requests, and orders them so that each follows what it refers to."""

import dataclasses
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Final

from app.errors import FieldProblem
from app.manifests import pools, snapshots, virtual_machines, volumes
from app.manifests.documents import Document
from app.manifests.fields import Findings
from app.manifests.heads import read_head, read_kind, read_settings
from app.manifests.requests import Reference, Resource, ResourceRequest, located

_KINDS: Final = {
    kind.name: kind
    for kind in (pools.KIND, snapshots.KIND, virtual_machines.KIND, volumes.DATA_VOLUME, volumes.IMPORT_CRON)
}


def translate(documents: Sequence[Document], *, namespace: str) -> tuple[list[ResourceRequest], list[FieldProblem]]:
    """The request of each document that has one, in the documents' order, and the problems of all documents.

    No two requests are for the same resource.
    """
    requests: list[ResourceRequest] = []
    problems: list[FieldProblem] = []
    first: dict[Reference, Document] = {}
    for document in documents:
        findings = Findings(document)
        request = _translate_one(document, namespace, findings)
        if request is not None and request.name:
            other = first.setdefault(request.key, document)
            if other is document:
                requests.append(dataclasses.replace(request, valid=not findings.problems))
            else:
                findings.refuse(
                    f"{document.path}.metadata.name",
                    f"{other.path} makes {request.resource.noun} {request.name!r} already: give each a name of its own",
                )
        problems.extend(findings.problems)
    return requests, problems


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
    kind = read_kind(document, _KINDS, findings)
    if kind is None:
        return None
    head = read_head(document, namespace, findings)
    body, places = read_settings(head, kind.settings)
    places[""] = head.spec.path
    if head.labels and kind.resource is not Resource.CLAIM:
        findings.note(f"metadata.labels were ignored: a {kind.resource.noun} has no labels")
    references = kind.translate(head, body, places)
    return ResourceRequest(
        document, kind.name, kind.resource, head.name, body, places, references, tuple(findings.notes)
    )
