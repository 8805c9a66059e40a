"""Affinity and anti-affinity between pods (as in kube-scheduler 1.36)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from app.devcluster.apiserver.label_selectors import selects, with_keys
from app.devcluster.apiserver.status import Json

AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
EXISTING = "node(s) didn't satisfy existing pods anti-affinity rules"

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_HARD_WEIGHT = 1
"""The weight of an existing pod's required affinity in the score of a new pod that it matches."""

_Place = tuple[str, str]
_Placed = Iterable[tuple[Json, Json]]
"""Pods with the node each is on."""


class PodTerms:
    """The terms between one pod to be scheduled and all placed pods; built for each decision."""

    def __init__(self, pod: Json, placed: _Placed, namespace_labels: Callable[[str], dict[str, str]]) -> None:
        self._pod = pod
        self._namespace_labels = namespace_labels
        self._affinity = _required(pod, "podAffinity")
        self._anti = _required(pod, "podAntiAffinity")
        self._near: Counter[_Place] = Counter()
        self._apart: Counter[_Place] = Counter()
        self._forbidden: Counter[_Place] = Counter()
        self._preferences: Counter[_Place] = Counter()
        preferences = list(_weighted(pod))
        for other, node in placed:
            labels = node["metadata"].get("labels") or {}
            if self._affinity and all(self._meets(term, pod, other) for term in self._affinity):
                _count(self._near, self._affinity, labels)
            _count(self._apart, (term for term in self._anti if self._meets(term, pod, other)), labels)
            self._prefer(preferences, pod, other, labels)
            if other["spec"].get("affinity"):
                theirs = _required(other, "podAntiAffinity")
                _count(self._forbidden, (term for term in theirs if self._meets(term, other, pod)), labels)
                back = [*_weighted(other), *((_HARD_WEIGHT, term) for term in _required(other, "podAffinity"))]
                self._prefer(back, other, pod, labels)

    def refuse(self, node: Json) -> tuple[str, bool] | None:
        """Why the pod must not go there, and whether other pods' leaving could change that; None where it may."""
        labels = node["metadata"].get("labels") or {}
        if not self._is_near(labels):
            return AFFINITY, False
        if any(self._apart[_place(term, labels)] for term in self._anti if term["topologyKey"] in labels):
            return ANTI_AFFINITY, True
        if any(self._forbidden[key, value] for key, value in labels.items()):
            return EXISTING, True
        return None

    def score(self, node: Json) -> int:
        """The sum of the weights that count there; negative where the pod should stay away."""
        labels = node["metadata"].get("labels") or {}
        return sum(self._preferences[key, value] for key, value in labels.items())

    def _is_near(self, labels: dict[str, str]) -> bool:
        if any(term["topologyKey"] not in labels for term in self._affinity):
            return False
        if all(self._near[_place(term, labels)] for term in self._affinity):
            return True
        # The first pod of a group with affinity to itself may go anywhere.
        return not self._near and all(self._meets(term, self._pod, self._pod) for term in self._affinity)

    def _prefer(self, terms: Iterable[tuple[int, Json]], owner: Json, other: Json, labels: dict[str, str]) -> None:
        for weight, term in terms:
            if term["topologyKey"] in labels and self._meets(term, owner, other):
                self._preferences[_place(term, labels)] += weight

    def _meets(self, term: Json, owner: Json, other: Json) -> bool:
        """Whether the owner's term selects `other`."""
        own, labels = owner["metadata"].get("labels") or {}, other["metadata"].get("labels") or {}
        selector = with_keys(term.get("labelSelector"), term.get("matchLabelKeys") or (), own)
        selector = with_keys(selector, term.get("mismatchLabelKeys") or (), own, "NotIn")
        if not selects(selector, labels):
            return False
        namespace = other["metadata"]["namespace"]
        named, chosen = term.get("namespaces") or (), term.get("namespaceSelector")
        if not named and chosen is None:
            return bool(namespace == owner["metadata"]["namespace"])
        return namespace in named or selects(chosen, self._namespace_labels(namespace))


def has_pod_terms(pod: Json) -> bool:
    """Whether the pod has rules about other pods."""
    affinity = pod["spec"].get("affinity") or {}
    return bool(affinity.get("podAffinity") or affinity.get("podAntiAffinity"))


def _required(pod: Json, kind: str) -> list[Json]:
    found: list[Json] = ((pod["spec"].get("affinity") or {}).get(kind) or {}).get(_REQUIRED) or []
    return found


def _weighted(pod: Json) -> Iterator[tuple[int, Json]]:
    """Preferred terms with their weights; those of anti-affinity are negative."""
    affinity = pod["spec"].get("affinity") or {}
    for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
        for item in (affinity.get(kind) or {}).get(_PREFERRED) or ():
            yield sign * int(item["weight"]), item["podAffinityTerm"]


def _count(places: Counter[_Place], terms: Iterable[Json], labels: dict[str, str]) -> None:
    places.update(_place(term, labels) for term in terms if term["topologyKey"] in labels)


def _place(term: Json, labels: dict[str, str]) -> _Place:
    return term["topologyKey"], labels[term["topologyKey"]]
