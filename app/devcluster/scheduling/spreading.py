"""topologySpreadConstraints: pods spread evenly over nodes, zones or other domains (as in kube-scheduler 1.36)."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from app.devcluster.apiserver.label_selectors import selects, with_keys
from app.devcluster.apiserver.status import Json
from app.devcluster.scheduling.node_terms import matches_node, untolerated

UNEVEN = "node(s) didn't match pod topology spread constraints"
NO_LABEL = f"{UNEVEN} (missing required label)"
_HOSTNAME = "kubernetes.io/hostname"


class Spread:
    """The constraints of one pod of one kind, with their counts over all nodes; built for each decision."""

    def __init__(self, pod: Json, kind: str, nodes: Sequence[Json], pods_on: Callable[[str], Iterable[Json]]) -> None:
        """`kind` is DoNotSchedule or ScheduleAnyway."""
        self._pod = pod
        self._labels = pod["metadata"].get("labels") or {}
        self._rules = [rule for rule in rules_of(pod) if rule["whenUnsatisfiable"] == kind]
        self._selectors = [
            with_keys(rule.get("labelSelector"), rule.get("matchLabelKeys") or (), self._labels) for rule in self._rules
        ]
        self._counts: list[Counter[str]] = [Counter() for _ in self._rules]
        if not self._rules:
            return
        for node in nodes:
            self._add(node, list(pods_on(node["metadata"]["name"])))

    def refuse(self, node: Json) -> tuple[str, bool] | None:
        """Why the pod must not go there, and whether other pods' leaving could change that; None where it may."""
        labels = node["metadata"].get("labels") or {}
        for rule, selector, counts in zip(self._rules, self._selectors, self._counts, strict=True):
            domain = labels.get(rule["topologyKey"])
            if domain is None:
                return NO_LABEL, False
            least = min(counts.values()) if len(counts) >= rule.get("minDomains", 1) else 0
            if counts[domain] + selects(selector, self._labels) - least > rule["maxSkew"]:
                return UNEVEN, True
        return None

    def scores(self, nodes: Sequence[Json]) -> list[int]:
        """Scores from 0 to 100 for nodes that passed the filters; higher where the domains have fewer pods."""
        if not self._rules:
            return [0 for _ in nodes]
        raw = self._raw_scores(nodes)
        told = [value for value in raw if value is not None]
        most, least = max(told, default=0), min(told, default=0)
        return [0 if value is None else (100 * (most + least - value) // most if most else 100) for value in raw]

    def _raw_scores(self, nodes: Sequence[Json]) -> list[int | None]:
        """The weighted number of pods there already; None for a node that lacks a label."""
        complete = [node for node in nodes if self._has_labels(node)]
        weights = []
        for rule in self._rules:
            key = rule["topologyKey"]
            domains = {node["metadata"]["labels"][key] for node in complete}
            weights.append(math.log((len(complete) if key == _HOSTNAME else len(domains)) + 2))
        found: list[int | None] = []
        for node in nodes:
            if not self._has_labels(node):
                found.append(None)
                continue
            labels = node["metadata"]["labels"]
            total = 0.0
            for rule, counts, weight in zip(self._rules, self._counts, weights, strict=True):
                total += counts[labels[rule["topologyKey"]]] * weight + rule["maxSkew"] - 1
            found.append(math.floor(total + 0.5))
        return found

    def _add(self, node: Json, pods: list[Json]) -> None:
        """Count the pods of a node, if it has all labels and the policies of the rule include it."""
        if not self._has_labels(node):
            return
        for rule, selector, counts in zip(self._rules, self._selectors, self._counts, strict=True):
            if not self._is_included(rule, node):
                continue
            domain = node["metadata"]["labels"][rule["topologyKey"]]
            counts[domain] += sum(1 for pod in pods if self._is_counted(pod, selector))

    def _is_counted(self, pod: Json, selector: Json | None) -> bool:
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata or metadata["namespace"] != self._pod["metadata"]["namespace"]:
            return False
        return selects(selector, metadata.get("labels") or {})

    def _is_included(self, rule: Json, node: Json) -> bool:
        if rule.get("nodeAffinityPolicy", "Honor") == "Honor" and not matches_node(self._pod, node):
            return False
        return rule.get("nodeTaintsPolicy", "Ignore") != "Honor" or not untolerated(self._pod, node)

    def _has_labels(self, node: Json) -> bool:
        labels = node["metadata"].get("labels") or {}
        return all(rule["topologyKey"] in labels for rule in self._rules)


def rules_of(pod: Json) -> list[Json]:
    found: list[Json] = pod["spec"].get("topologySpreadConstraints") or []
    return found
