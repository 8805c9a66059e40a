"""The rules of a pod about nodes: selectors, node affinity, tolerations (as in kube-scheduler 1.36)."""

from collections.abc import Iterable

from app.devcluster.apiserver.label_selectors import rule_holds
from app.devcluster.apiserver.status import Json

UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_KEEPS_AWAY = frozenset({"NoSchedule", "NoExecute"})


def matches_node(pod: Json, node: Json) -> bool:
    """The pod's nodeSelector and its required node affinity."""
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return False
    required = _node_affinity(pod).get(_REQUIRED)
    return required is None or any(_matches_term(term, node) for term in required.get("nodeSelectorTerms") or ())


def named_nodes(pod: Json) -> set[str] | None:
    """The only nodes that the required affinity allows by name; None where an alternative names none."""
    terms = (_node_affinity(pod).get(_REQUIRED) or {}).get("nodeSelectorTerms") or ()
    found: set[str] = set()
    for term in terms:
        lists = [
            set(rule.get("values") or ())
            for rule in term.get("matchFields") or ()
            if rule["key"] == "metadata.name" and rule["operator"] == "In"
        ]
        if not lists:
            return None
        found |= set.intersection(*lists)
    return found if terms else None


def preference(pod: Json, node: Json) -> int:
    """The sum of the weights of the preferred node affinity terms that match."""
    return sum(
        int(item["weight"])
        for item in _node_affinity(pod).get(_PREFERRED) or ()
        if _matches_term(item.get("preference") or {}, node)
    )


def untolerated(pod: Json, node: Json, effects: frozenset[str] = _KEEPS_AWAY) -> list[Json]:
    """Taints with these effects that the pod does not tolerate, in the order of the node."""
    tolerations = pod["spec"].get("tolerations") or ()
    taints = node["spec"].get("taints") or ()
    return [taint for taint in taints if taint["effect"] in effects and not tolerates(tolerations, taint)]


def tolerates(tolerations: Iterable[Json], taint: Json) -> bool:
    return any(_tolerates(item, taint) for item in tolerations)


def is_closed(pod: Json, node: Json) -> bool:
    """The node is cordoned and the pod does not tolerate that."""
    cordon = {"key": UNSCHEDULABLE, "effect": "NoSchedule"}
    return bool(node["spec"].get("unschedulable")) and not tolerates(pod["spec"].get("tolerations") or (), cordon)


def _node_affinity(pod: Json) -> Json:
    found: Json = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    return found


def _matches_term(term: Json, node: Json) -> bool:
    """Whether all its conditions hold; a term without conditions matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    labels = node["metadata"].get("labels") or {}
    names = {"metadata.name": node["metadata"]["name"]}
    return all(rule_holds(rule, labels) for rule in expressions) and all(rule_holds(rule, names) for rule in fields)


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    match toleration.get("operator") or "Equal":
        case "Exists":
            return True
        case "Equal":
            return bool((toleration.get("value") or "") == (taint.get("value") or ""))
        case _:
            return False
