"""Label and field selectors of queries, with the grammar and the messages of Kubernetes' parser."""

import re
from dataclasses import dataclass

from app.devcluster.apiserver.registry import PODS, Resource
from app.devcluster.apiserver.status import Json, bad_request

_TOKEN = re.compile(r"\s*(==|!=|=|!|>|<|\(|\)|,|[^\s=!<>(),]+)")
_SYMBOLS = frozenset({"==", "!=", "=", "!", ">", "<", "(", ")", ","})
_ANYTHING = "!, identifier, or 'end of string'"


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
            case _:
                return _compares(value, self.operator, self.values[0])


@dataclass(frozen=True, slots=True)
class Selector:
    """The selectors of a list or watch; both must match."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[tuple[str, bool, str], ...] = ()

    @property
    def empty(self) -> bool:
        return not self.labels and not self.fields

    def matches(self, obj: Json) -> bool:
        labels = obj["metadata"].get("labels") or {}
        if not all(requirement.matches(labels) for requirement in self.labels):
            return False
        return all((_field(obj, path) == value) is equal for path, equal, value in self.fields)


def parse_selector(resource: Resource, labels: str, fields: str) -> Selector:
    """Raises ApiError 400 with the message of Kubernetes' parser."""
    return Selector(parse_labels(labels), _parse_fields(resource, fields))


def parse_labels(text: str) -> tuple[Requirement, ...]:
    tokens = _TOKEN.findall(text)
    if not tokens:
        return ()
    found: list[Requirement] = []
    position = 0
    while True:
        requirement, position = _parse_requirement(tokens, position)
        found.append(requirement)
        if position == len(tokens):
            return tuple(found)
        if tokens[position] != ",":
            raise bad_request(f"found '{tokens[position]}', expected: ',' or 'end of string'")
        position += 1


def _parse_requirement(tokens: list[str], position: int) -> tuple[Requirement, int]:
    first = _at(tokens, position)
    if first == "!":
        key = _at(tokens, position + 1)
        if not key or key in _SYMBOLS:
            raise bad_request(f"unable to parse requirement: found '{key}', expected: identifier")
        return Requirement(key, "absent"), position + 2
    if not first or first in _SYMBOLS:
        raise bad_request(f"found '{first}', expected: {_ANYTHING}")
    operator = _at(tokens, position + 1)
    if operator in {"", ","}:
        return Requirement(first, "exists"), position + 1
    if operator in {"=", "==", "!=", ">", "<"}:
        value = _at(tokens, position + 2)
        if value in _SYMBOLS or not value:
            return Requirement(first, _plain(operator), ("",)), position + 2
        return Requirement(first, _plain(operator), (value,)), position + 3
    if operator in {"in", "notin"}:
        values, position = _parse_values(tokens, position + 2)
        return Requirement(first, operator, values), position
    raise bad_request(
        f"unable to parse requirement: found '{operator}', expected: in, notin, =, ==, !=, gt, lt, or 'end of string'"
    )


def _parse_values(tokens: list[str], position: int) -> tuple[tuple[str, ...], int]:
    opening = _at(tokens, position)
    if opening != "(":
        raise bad_request(f"unable to parse requirement: found '{opening}' expected: '('")
    values: list[str] = []
    position += 1
    while (part := _at(tokens, position)) != ")":
        if not part:
            raise bad_request("unable to parse requirement: found '', expected: ',' or ')'")
        if part != ",":
            values.append(part)
        position += 1
    return tuple(values) or ("",), position + 1


def _plain(operator: str) -> str:
    return {"=": "in", "==": "in", "!=": "notin"}.get(operator, operator)


def _at(tokens: list[str], position: int) -> str:
    return tokens[position] if position < len(tokens) else ""


def _compares(value: str | None, operator: str, bound: str) -> bool:
    try:
        left, right = int(value or ""), int(bound)
    except ValueError:
        return False
    return left > right if operator == ">" else left < right


def _parse_fields(resource: Resource, text: str) -> tuple[tuple[str, bool, str], ...]:
    found: list[tuple[str, bool, str]] = []
    for part in filter(None, text.split(",")):
        path, operator, value = _split_field(part)
        if path not in _fields_of(resource):
            raise bad_request(f"field label not supported: {path}")
        found.append((path, operator != "!=", value))
    return tuple(found)


def _split_field(part: str) -> tuple[str, str, str]:
    for operator in ("!=", "==", "="):
        path, found, value = part.partition(operator)
        if found:
            return path.strip(), operator, value.strip()
    raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")


def _fields_of(resource: Resource) -> frozenset[str]:
    always = {"metadata.name", "metadata.namespace"}
    if resource is PODS:
        always |= {"spec.nodeName", "status.phase", "spec.schedulerName", "status.podIP"}
    if resource.plural == "secrets":
        always |= {"type"}
    return frozenset(always)


def _field(obj: Json, path: str) -> str:
    value: object = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)
