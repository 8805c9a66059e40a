"""The resource requests of pods, counted as kube-scheduler counts them, and their QoS class."""

import math
from decimal import Decimal

from app.devcluster.apiserver.quantities import parse_quantity
from app.devcluster.apiserver.status import Json

_Amounts = dict[str, Decimal]


def pod_requests(pod: Json) -> dict[str, int]:
    """CPU in thousandths, everything else in whole units, and the pod itself as `pods`.

    The requests of containers that run at the same time add up, including restartable init containers. An init container
    that ends counts together with the restartable ones that started before it, if that is more.
    """
    asked: _Amounts = {}
    for container in pod["spec"]["containers"]:
        _add(asked, _requests(container))
    beside: _Amounts = {}
    peak: _Amounts = {}
    for container in pod["spec"].get("initContainers") or ():
        wanted = _requests(container)
        if container.get("restartPolicy") == "Always":
            _add(asked, wanted)
            _add(beside, wanted)
            _raise(peak, beside)
        else:
            _add(wanted, beside)
            _raise(peak, wanted)
    _raise(asked, peak)
    return {"pods": 1, **{name: _count(name, amount) for name, amount in asked.items()}}


def allocatable(node: Json, name: str) -> int:
    """In the units of `pod_requests`."""
    return _count(name, parse_quantity(node["status"]["allocatable"].get(name, "0")))


def qos_class(spec: Json) -> str:
    """Guaranteed where CPU and memory of every container are limited to its requests; BestEffort where none has any."""
    containers = [*spec["containers"], *(spec.get("initContainers") or ())]
    resources = [container.get("resources") or {} for container in containers]
    named = {
        name
        for item in resources
        for given in (item.get("requests") or {}, item.get("limits") or {})
        for name in given
        if name in {"cpu", "memory"}
    }
    if not named:
        return "BestEffort"
    return "Guaranteed" if all(_is_bound(item) for item in resources) else "Burstable"


def _is_bound(resources: Json) -> bool:
    limits = resources.get("limits") or {}
    requests = {**limits, **(resources.get("requests") or {})}
    return all(
        name in limits and parse_quantity(requests[name]) == parse_quantity(limits[name]) for name in ("cpu", "memory")
    )


def _requests(container: Json) -> _Amounts:
    given = container.get("resources") or {}
    amounts = {**(given.get("limits") or {}), **(given.get("requests") or {})}
    return {name: parse_quantity(value) for name, value in amounts.items()}


def _add(total: _Amounts, more: _Amounts) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, Decimal(0)) + amount


def _raise(total: _Amounts, least: _Amounts) -> None:
    for name, amount in least.items():
        total[name] = max(total.get(name, Decimal(0)), amount)


def _count(name: str, amount: Decimal) -> int:
    return math.ceil(amount * 1000 if name == "cpu" else amount)
