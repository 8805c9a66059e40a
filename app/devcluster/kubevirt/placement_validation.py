"""Validation of a VM's placement as in KubeVirt v1.9.0: CPUs, affinity, spreading.

The messages and paths are KubeVirt's; its paths omit the member `affinity`.
"""

from collections.abc import Callable, Iterable, Iterator

from app.devcluster.apiserver.quantities import Quantity, parse_quantity, whole
from app.devcluster.apiserver.status import Json, cause
from app.devcluster.kubevirt.launcher_resources import count_cpus

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_FEATURE_POLICIES = frozenset({"", "force", "require", "optional", "disable", "forbid"})
_ACTIONS = ("DoNotSchedule", "ScheduleAnyway")
_MOST_WEIGHT = 100
_NEEDS_VALUES = "must be specified when `operator` is 'In' or 'NotIn'"
_TAKES_NO_VALUES = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"


def check_cpu_range(spec: Json, where: str) -> list[Json]:
    requests, limits = _cpu(spec, "requests"), _cpu(spec, "limits")
    if limits is None or requests is None or not 0 < limits.amount < requests.amount:
        return []
    field = f"{where}.domain.resources.requests.cpu"
    message = f"{field} '{requests}' is greater than {where}.domain.resources.limits.cpu '{limits}'"
    return [cause("FieldValueInvalid", message, field)]


def check_pinned_count(spec: Json, where: str) -> list[Json]:
    """The number of pinned CPUs is that of the topology or of the resources; where both are given they must agree."""
    domain = spec["domain"]
    cpu = domain.get("cpu") or {}
    if not cpu.get("dedicatedCpuPlacement") or not any(cpu.get(name) for name in ("cores", "sockets", "threads")):
        return []
    given = [whole(item.amount) for name in ("requests", "limits") if (item := _cpu(spec, name)) and item.amount > 0]
    if not given or count_cpus(spec) in given:
        return []
    resources = f"{where}.domain.resources"
    message = (
        f"{resources}.requests.cpu or {resources}.limits.cpu must not be provided at the same time with "
        f"{where}.domain.cpu.cores when DedicatedCPUPlacement is true "
    )
    return [cause("FieldValueInvalid", message, f"{where}.domain.cpu.dedicatedCpuPlacement")]


def check_features(spec: Json, where: str) -> list[Json]:
    return [
        cause(
            "FieldValueNotSupported",
            f"CPU feature {feature.get('name')} uses policy {feature['policy']} that is not supported.",
            f"{where}.domain.cpu.features[{number}].policy",
        )
        for number, feature in enumerate((spec["domain"].get("cpu") or {}).get("features") or ())
        if feature.get("policy", "") not in _FEATURE_POLICIES
    ]


def check_realtime(spec: Json, where: str) -> list[Json]:
    cpu = spec["domain"].get("cpu") or {}
    if cpu.get("realtime") is None:
        return []
    causes: list[Json] = []
    realtime = f"{where}.domain.cpu.realtime"
    if not cpu.get("dedicatedCpuPlacement"):
        field = f"{where}.domain.cpu.dedicatedCpuPlacement"
        causes.append(cause("FieldValueRequired", f"{field} must be set to true when {realtime} is used", field))
    if (cpu.get("numa") or {}).get("guestMappingPassthrough") is None:
        field = f"{where}.domain.cpu.numa.guestMappingPassthrough"
        causes.append(cause("FieldValueRequired", f"{field} must be defined when {realtime} is used", field))
    return causes


def check_affinity(spec: Json, where: str) -> list[Json]:
    affinity = spec.get("affinity") or {}
    found = list(_node_affinity(affinity.get("nodeAffinity") or {}, f"{where}.nodeAffinity"))
    for kind in ("podAffinity", "podAntiAffinity"):
        found += _pod_affinity(affinity.get(kind) or {}, f"{where}.{kind}")
    return found


def check_spreading(spec: Json, where: str) -> list[Json]:
    found: list[Json] = []
    path = f"{where}.topologySpreadConstraints"
    rules = spec.get("topologySpreadConstraints") or ()
    for number, rule in enumerate(rules):
        here = f"{path}[{number}]"
        if rule["maxSkew"] <= 0:
            found.append(_invalid(f"{here}.maxSkew", rule["maxSkew"], "must be greater than zero"))
        if not rule["topologyKey"]:
            found.append(_required(f"{here}.topologyKey", "can not be empty"))
        if rule["whenUnsatisfiable"] not in _ACTIONS:
            supported = ", ".join(f'"{name}"' for name in _ACTIONS)
            told = f'Unsupported value: "{rule["whenUnsatisfiable"]}": supported values: {supported}'
            found.append(_told(f"{here}.whenUnsatisfiable", told))
        found += _label_selector(rule.get("labelSelector"), f"{path}.labelSelector")
        pair = (rule["topologyKey"], rule["whenUnsatisfiable"])
        if any((later["topologyKey"], later["whenUnsatisfiable"]) == pair for later in rules[number + 1 :]):
            told = f'Duplicate value: "{{{pair[0]}, {pair[1]}}}"'
            found.append(_told(f"{here}.{{topologyKey, whenUnsatisfiable}}", told))
    return found


PLACEMENT_CHECKS: tuple[Callable[[Json, str], list[Json]], ...] = (
    check_features,
    check_realtime,
    check_affinity,
    check_spreading,
)
"""The checks after those of pinning and NUMA, in the order of the validator."""


def _cpu(spec: Json, part: str) -> Quantity | None:
    given = (spec["domain"].get("resources") or {}).get(part) or {}
    return Quantity.parse(given["cpu"]) if "cpu" in given and parse_quantity(given["cpu"]) else None


def _node_affinity(affinity: Json, path: str) -> Iterator[Json]:
    required = affinity.get(_REQUIRED)
    if required is not None:
        terms = required.get("nodeSelectorTerms") or ()
        if not terms:
            yield _required(f"{path}.{_REQUIRED}.nodeSelectorTerms", "must have at least one node selector term")
        for number, term in enumerate(terms):
            yield from _node_term(term, f"{path}.{_REQUIRED}.nodeSelectorTerms[{number}]")
    for number, item in enumerate(affinity.get(_PREFERRED) or ()):
        here = f"{path}.{_PREFERRED}[{number}]"
        yield from _weight(item, here)
        yield from _node_term(item.get("preference") or {}, f"{here}.preference")


def _node_term(term: Json, path: str) -> Iterator[Json]:
    for number, rule in enumerate(term.get("matchExpressions") or ()):
        yield from _rule(rule, f"{path}.matchExpressions[{number}]", compares=True)
    for number, rule in enumerate(term.get("matchFields") or ()):
        here = f"{path}.matchFields[{number}]"
        if rule["operator"] not in {"In", "NotIn"}:
            yield _invalid(f"{here}.operator", rule["operator"], "not a valid selector operator")
        elif len(rule.get("values") or ()) != 1:
            told = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
            yield _required(f"{here}.values", told)
        if rule["key"] != "metadata.name":
            yield _invalid(f"{here}.key", rule["key"], "not a valid field selector key")


def _pod_affinity(affinity: Json, path: str) -> Iterator[Json]:
    for number, term in enumerate(affinity.get(_REQUIRED) or ()):
        yield from _pod_term(term, f"{path}.{_REQUIRED}[{number}]")
    for number, item in enumerate(affinity.get(_PREFERRED) or ()):
        here = f"{path}.{_PREFERRED}[{number}]"
        yield from _weight(item, here)
        yield from _pod_term(item["podAffinityTerm"], f"{here}.podAffinityTerm")


def _pod_term(term: Json, path: str) -> Iterator[Json]:
    yield from _label_selector(term.get("labelSelector"), f"{path}.labelSelector")
    yield from _label_selector(term.get("namespaceSelector"), f"{path}.namespaceSelector")
    if not term["topologyKey"]:
        yield _required(f"{path}.topologyKey", "can not be empty")


def _label_selector(selector: Json | None, path: str) -> Iterator[Json]:
    for number, rule in enumerate((selector or {}).get("matchExpressions") or ()):
        yield from _rule(rule, f"{path}.matchExpressions[{number}]", compares=False)


def _rule(rule: Json, path: str, *, compares: bool) -> Iterator[Json]:
    """`compares`: Gt and Lt are valid operators here."""
    values: Iterable[str] = rule.get("values") or ()
    match rule["operator"]:
        case "In" | "NotIn":
            if not values:
                yield _required(f"{path}.values", _NEEDS_VALUES)
        case "Exists" | "DoesNotExist":
            if values:
                yield _told(f"{path}.values", f"Forbidden: {_TAKES_NO_VALUES}")
        case "Gt" | "Lt" if compares:
            if len(list(values)) != 1:
                yield _required(f"{path}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
        case operator:
            yield _invalid(f"{path}.operator", operator, "not a valid selector operator")


def _weight(item: Json, path: str) -> Iterator[Json]:
    if not 0 < item["weight"] <= _MOST_WEIGHT:
        yield _invalid(f"{path}.weight", item["weight"], "must be in the range 1-100")


def _required(field: str, why: str) -> Json:
    return _told(field, f"Required value: {why}")


def _invalid(field: str, value: object, why: str) -> Json:
    shown = f'"{value}"' if isinstance(value, str) else value
    return _told(field, f"Invalid value: {shown}: {why}")


def _told(field: str, why: str) -> Json:
    """An error of the API machinery as the webhook passes it on: the message repeats the field."""
    return cause("FieldValueInvalid", f"{field}: {why}", field)
