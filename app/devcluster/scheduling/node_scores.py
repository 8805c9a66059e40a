"""The best of the nodes that fit: kube-scheduler's default scores and their weights (Kubernetes 1.36)."""

from collections.abc import Callable, Sequence
from fractions import Fraction

from app.devcluster.apiserver.pod_images import pod_images
from app.devcluster.apiserver.pod_resources import allocatable
from app.devcluster.apiserver.status import Json
from app.devcluster.scheduling.node_terms import preference, untolerated
from app.devcluster.scheduling.pod_terms import PodTerms
from app.devcluster.scheduling.spreading import Spread

_TOP = 100
_TAINTS, _NODE_AFFINITY, _SPREAD, _POD_AFFINITY = 3, 2, 2, 2
_IMAGE_FLOOR, _IMAGE_CEILING = 23 * 2**20, 1000 * 2**20
_MEASURED = ("cpu", "memory")


def choose_node(
    pod: Json,
    nodes: Sequence[Json],
    asked: dict[str, int],
    used: Callable[[str], dict[str, int]],
    terms: PodTerms,
    spread: Spread,
    everywhere: Sequence[Json],
) -> Json:
    """The best of `nodes`, which is not empty. Equal ones are ordered by load, then by name; upstream chooses at random."""
    shares = [_shares(node, asked, used(node["metadata"]["name"])) for node in nodes]
    taints = [len(untolerated(pod, node, frozenset({"PreferNoSchedule"}))) for node in nodes]
    totals = [
        _TAINTS * repelled + _NODE_AFFINITY * liked + _SPREAD * even + _POD_AFFINITY * social + _room(share) + near
        for repelled, liked, even, social, share, near in zip(
            [_TOP - score for score in _scaled(taints)],
            _scaled([preference(pod, node) for node in nodes]),
            spread.scores(nodes),
            _between([terms.score(node) for node in nodes]),
            shares,
            [_nearness(pod, node, everywhere) for node in nodes],
            strict=True,
        )
    ]
    order = [
        (-total, max(share), node["metadata"]["name"]) for total, share, node in zip(totals, shares, nodes, strict=True)
    ]
    return nodes[order.index(min(order))]


def _shares(node: Json, asked: dict[str, int], used: dict[str, int]) -> tuple[Fraction, ...]:
    """The shares of CPU and of memory that would be used."""
    return tuple(
        min(Fraction(1), Fraction(used.get(name, 0) + asked.get(name, 0), max(1, allocatable(node, name))))
        for name in _MEASURED
    )


def _room(shares: tuple[Fraction, ...]) -> int:
    """NodeResourcesFit (the least allocated) and NodeResourcesBalancedAllocation, each of weight 1."""
    free = sum(int(_TOP * (1 - share)) for share in shares) // len(shares)
    balance = int(_TOP * (1 - abs(shares[0] - shares[1]) / 2))
    return free + balance


def _nearness(pod: Json, node: Json, everywhere: Sequence[Json]) -> int:
    """ImageLocality: the bytes that the node has already, each image weighted by the number of nodes that have it."""
    wanted = pod_images(pod)
    total = 0
    for image in wanted:
        size = _held_bytes(node, image)
        if size:
            holders = sum(1 for other in everywhere if _held_bytes(other, image))
            total += size * holders // len(everywhere)
    ceiling = _IMAGE_CEILING * max(1, len(wanted))
    return _TOP * (min(max(total, _IMAGE_FLOOR), ceiling) - _IMAGE_FLOOR) // (ceiling - _IMAGE_FLOOR)


def _held_bytes(node: Json, image: str) -> int:
    return next((int(item["sizeBytes"]) for item in node["status"].get("images", ()) if image in item["names"]), 0)


def _scaled(scores: Sequence[int]) -> list[int]:
    """Scaled so that the greatest becomes 100."""
    most = max(scores)
    return [_TOP * score // most if most else 0 for score in scores]


def _between(scores: Sequence[int]) -> list[int]:
    """Scaled so that the least becomes 0 and the greatest 100."""
    least, most = min(scores), max(scores)
    return [_TOP * (score - least) // (most - least) if most > least else 0 for score in scores]
