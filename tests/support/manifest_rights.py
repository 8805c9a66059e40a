"""The rights that docker/kubernetes.yaml gives, and accounts of a dev cluster that have them."""

from collections.abc import Iterable
from typing import Final

import yaml

from app.devcluster import Rule, Subject
from tests.support.checkout import ROOT

NAMESPACE: Final = "emberpool"
Right = tuple[str, str, str]
"""API group, resource, verb."""
_DOCUMENTS: Final = list(yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8")))


def rights_of(kind: str, name: str) -> list[Right]:
    """Those of a Role or ClusterRole."""
    return [
        (group, resource, verb)
        for document in _DOCUMENTS
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


API_RIGHTS: Final = rights_of("Role", "emberpool-api")
WORKER_RIGHTS: Final = rights_of("Role", "emberpool-worker")
CLUSTER_RIGHTS: Final = rights_of("ClusterRole", "emberpool-nodes")


def account(name: str, rights: Iterable[Right], *, in_cluster: Iterable[Right] = ()) -> Subject:
    """One that has rights in the namespace, and in the whole cluster."""
    rules = [Rule((group,), (resource,), (verb,), NAMESPACE) for group, resource, verb in rights]
    rules += [Rule((group,), (resource,), (verb,)) for group, resource, verb in in_cluster]
    return Subject(name, tuple(rules))
