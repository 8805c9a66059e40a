"""All documents of a body to wishes, in the order in which they can be fulfilled."""

import dataclasses
from collections.abc import Callable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Final

from app.errors import FieldProblem
from app.manifests import pools, snapshots, volumes
from app.manifests import virtual_machines as machines
from app.manifests.documents import Document
from app.manifests.fields import Findings
from app.manifests.heads import Head, KindOfDocument, read_head, read_kind
from app.manifests.requests import Reference, Wish, located

_TRANSLATORS: Final[dict[str, tuple[KindOfDocument, Callable[[Document, Head], Wish]]]] = {
    pools.KIND.name: (pools.KIND, pools.translate_pool),
    snapshots.KIND.name: (snapshots.KIND, snapshots.translate_snapshot),
    machines.KIND.name: (machines.KIND, machines.translate_machine),
    volumes.DATA_VOLUME.name: (volumes.DATA_VOLUME, volumes.translate_data_volume),
    volumes.IMPORT_CRON.name: (volumes.IMPORT_CRON, volumes.translate_import_cron),
}
_KINDS: Final = {name: kind for name, (kind, _) in _TRANSLATORS.items()}


def translate(documents: Sequence[Document], *, namespace: str) -> tuple[list[Wish], list[FieldProblem]]:
    """The wish of each document that has one, in the documents' order, and everything that is wrong with any of them.

    No two wishes are for the same thing.
    """
    wishes: list[Wish] = []
    problems: list[FieldProblem] = []
    first: dict[Reference, Document] = {}
    for document in documents:
        findings = Findings(document)
        wish = _translate_one(document, namespace, findings)
        if wish is not None and wish.name:
            other = first.setdefault(wish.key, document)
            if other is document:
                wishes.append(dataclasses.replace(wish, sound=not findings.problems))
            else:
                findings.refuse(
                    f"{document.path}.metadata.name",
                    f"{other.path} makes {wish.resource.noun} {wish.name!r} already: each needs a name of its own",
                )
        problems.extend(findings.problems)
    return wishes, problems


def order(wishes: Sequence[Wish]) -> tuple[list[Wish], list[FieldProblem]]:
    """What others need comes before them, else the order of the documents. A circle of references is a problem."""
    by_key = {wish.key: wish for wish in wishes}
    sorter = TopologicalSorter({wish.key: [need for need in wish.needs if need in by_key] for wish in wishes})
    try:
        sorter.prepare()
    except CycleError as error:
        around: list[Reference] = error.args[1]
        wish, needed = by_key[around[1]], around[0]
        others = " and ".join(by_key[key].document.path for key in dict.fromkeys(around))
        message = f"{others} refer to each other in a circle, so that none of them can be first"
        return [], [located(wish.document, wish.needs[needed], message)]
    position = {wish.key: number for number, wish in enumerate(wishes)}
    found: list[Wish] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        found.extend(by_key[key] for key in ready)
        sorter.done(*ready)
    return found, []


def _translate_one(document: Document, namespace: str, findings: Findings) -> Wish | None:
    kind = read_kind(document, _KINDS, findings)
    if kind is None:
        return None
    head = read_head(document, kind, namespace, findings)
    return _TRANSLATORS[kind.name][1](document, head)
