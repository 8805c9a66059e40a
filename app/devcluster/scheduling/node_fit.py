"""Why a node cannot take a pod, in kube-scheduler's words and order (Kubernetes 1.36)."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from app.devcluster.apiserver.pod_resources import allocatable
from app.devcluster.apiserver.status import Json
from app.devcluster.scheduling.node_terms import is_closed, matches_node, named_nodes, untolerated

_NOT_NAMED = "node(s) didn't satisfy plugin(s) [NodeAffinity]"


class Refusal(NamedTuple):
    """The reasons of the first filter that refused a node; `resolvable` where other pods' leaving could change that."""

    reasons: tuple[str, ...]
    resolvable: bool


def refuse_node(pod: Json, node: Json) -> Refusal | None:
    """Check the properties of the node, whatever runs there."""
    named = named_nodes(pod)
    if named and node["metadata"]["name"] not in named:
        reason = _NOT_NAMED
    elif is_closed(pod, node):
        reason = "node(s) were unschedulable"
    elif untolerated(pod, node):
        reason = "node(s) had untolerated taint(s)"
    elif not matches_node(pod, node):
        reason = "node(s) didn't match Pod's node affinity/selector"
    else:
        return None
    return Refusal((reason,), resolvable=False)


def refuse_load(node: Json, asked: dict[str, int], used: dict[str, int]) -> Refusal | None:
    """Check what is free on the node. `asked` and `used` are in the units of `pod_requests`."""
    lacking = [
        name for name, amount in asked.items() if amount and used.get(name, 0) + amount > allocatable(node, name)
    ]
    if not lacking:
        return None
    reasons = tuple("Too many pods" if name == "pods" else f"Insufficient {name}" for name in lacking)
    beyond = any(name != "pods" and asked[name] > allocatable(node, name) for name in lacking)
    return Refusal(reasons, resolvable=not beyond)


def explain(nodes: int, refusals: Sequence[Refusal]) -> str:
    """The message of a pod that fits nowhere, including what preemption could do on each node."""
    if not nodes:
        return "no nodes available to schedule pods"
    told = Counter(reason for refusal in refusals for reason in refusal.reasons)
    resolvable = sum(1 for refusal in refusals if refusal.resolvable)
    preemption = Counter(
        {
            "No preemption victims found for incoming pod": resolvable,
            "Preemption is not helpful for scheduling": nodes - resolvable,
        }
    )
    head = f"0/{nodes} nodes are available"
    return f"{head}: {_histogram(told)}. no new claims to deallocate, preemption: {head}: {_histogram(preemption)}."


def _histogram(reasons: Counter[str]) -> str:
    """Sorted as text, counts first, as upstream sorts them."""
    return ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items() if count))
