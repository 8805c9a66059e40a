"""Structural schemas of the custom kinds: pruning, unknown fields, defaults, and validation in the server's words.

`schemas.json` is made from the CRDs of KubeVirt v1.9.0, CDI v1.66.0 and external-snapshotter v8.6.0 (all Apache-2.0) by
`tests/support/crd_schemas.py`: descriptions gone, equal subtrees stored once. It is read when first needed.

The members of a node: `t` its type, o(bject), a(rray), s(tring), i(nteger), b(oolean), n(umber), q (integer or string) or
x (anything); `p` properties; `v` the schema of the values of a map; `l` that of the items of a list; `r` required members;
`d` the default; `e` the allowed values; `keep` where unknown members are not pruned. `ruled` lists the kinds with CEL
rules: the server says that it skipped those where the object has errors that would confuse them.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import Json, cause

_GO_TYPES = {"o": "object", "a": "array", "s": "string", "i": "integer", "b": "boolean", "n": "number"}
_BLOCKING = frozenset(
    {
        "FieldValueRequired",
        "FieldValueTypeInvalid",
        "FieldValueNotSupported",
        "FieldValueTooMany",
        "FieldValueTooLong",
    }
)
_OBJECT_META = frozenset(
    {
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "ownerReferences",
        "finalizers",
        "managedFields",
    }
)


@dataclass(slots=True)
class Checked:
    """An object after its schema was applied: pruned, with defaults; and its unknown fields and errors."""

    obj: Json
    unknown: list[str] = field(default_factory=list)
    causes: list[Json] = field(default_factory=list)


def check(resource: Resource, obj: Json) -> Checked:
    """Prune and validate against the schema of the kind; a kind without one passes unchanged."""
    root = _document()["kinds"].get(resource.id)
    if root is None:
        return Checked(obj)
    walk = _Walk(_document()["nodes"])
    metadata = obj.get("metadata")
    pruned = walk.visit({key: value for key, value in obj.items() if key != "metadata"}, root, "")
    if isinstance(metadata, dict):
        walk.unknown += [f"metadata.{key}" for key in metadata if key not in _OBJECT_META]
        pruned["metadata"] = {key: value for key, value in metadata.items() if key in _OBJECT_META}
    return Checked(pruned, sorted(walk.unknown), walk.causes)


def skips_rules(resource: Resource, causes: list[Json]) -> bool:
    """Whether these causes make the server say that it did not check its CEL rules."""
    return resource.id in _document()["ruled"] and any(item["reason"] in _BLOCKING for item in causes)


def columns(resource: Resource) -> list[Json]:
    """The printer columns of a custom kind."""
    found: list[Json] = _document()["columns"].get(resource.id, [])
    return found


@cache
def _document() -> Json:
    document: Json = json.loads(resources.files("app.devcluster.apiserver").joinpath("schemas.json").read_bytes())
    return document


class _Walk:
    def __init__(self, nodes: list[Json]) -> None:
        self._nodes = nodes
        self.unknown: list[str] = []
        self.causes: list[Json] = []

    def visit(self, value: Any, index: int, path: str) -> Any:
        node = self._nodes[index]
        if value is None:
            return None
        if not self._typed(value, node["t"], path):
            return value
        if isinstance(value, dict):
            return self._object(value, node, path)
        if isinstance(value, list):
            if "maxitems" in node and len(value) > node["maxitems"]:
                self._wrong(path, f"Too many: {len(value)}: must have at most {node['maxitems']} items", "TooMany")
            if "l" not in node:
                return value
            return [self.visit(item, node["l"], f"{path}[{number}]") for number, item in enumerate(value)]
        self._scalar(value, node, path)
        return value

    def _object(self, value: Json, node: Json, path: str) -> Json:
        properties = node.get("p")
        prefix = f"{path}." if path else ""
        missing = [name for name in node.get("r", ()) if value.get(name) is None]
        self.causes += [cause("FieldValueRequired", "Required value", f"{prefix}{name}") for name in missing]
        if properties is None:
            if "v" not in node:
                if not node.get("keep") and path and node["t"] == "o":
                    self.unknown += [f"{prefix}{name}" for name in value]
                    return {}
                return value
            return {name: self.visit(item, node["v"], f"{prefix}{name}") for name, item in value.items()}
        result: Json = {}
        for name, item in value.items():
            child = properties.get(name)
            if child is not None:
                if item is None and not self._nodes[child].get("null"):
                    continue
                result[name] = self.visit(item, child, f"{prefix}{name}")
            elif node.get("keep"):
                result[name] = item
            else:
                self.unknown.append(f"{prefix}{name}")
        for name, child in properties.items():
            if name not in result and "d" in self._nodes[child]:
                result[name] = self._nodes[child]["d"]
        return result

    def _typed(self, value: Any, expected: str, path: str) -> bool:
        if expected == "x":
            return True
        actual = _kind(value)
        if expected == "q":
            fits = actual in {"s", "i"}
        elif expected == "n":
            fits = actual in {"n", "i"}
        else:
            fits = actual == expected
        if not fits:
            wanted = "integer or string" if expected == "q" else _GO_TYPES[expected]
            shown = _shown_type(actual)
            self._wrong(path, f'Invalid value: "{shown}": {path} in body must be of type {wanted}: "{shown}"', "Type")
        return fits

    def _scalar(self, value: Any, node: Json, path: str) -> None:
        if "e" in node and value not in node["e"]:
            allowed = ", ".join(f'"{item}"' for item in node["e"])
            self._wrong(path, f'Unsupported value: "{value}": supported values: {allowed}', "NotSupported")
        if isinstance(value, str):
            self._text(value, node, path)
        elif "min" in node and value < node["min"]:
            bound = node["min"]
            self._wrong(
                path, f"Invalid value: {value}: {path} in body should be greater than or equal to {bound}", "Invalid"
            )
        elif "max" in node and value > node["max"]:
            bound = node["max"]
            self._wrong(
                path, f"Invalid value: {value}: {path} in body should be less than or equal to {bound}", "Invalid"
            )

    def _text(self, value: str, node: Json, path: str) -> None:
        if "re" in node and not re.search(node["re"], value):
            self._wrong(path, f"Invalid value: \"{value}\": {path} in body should match '{node['re']}'", "Invalid")
        if len(value) < node.get("minlen", 0):
            bound = node["minlen"]
            self._wrong(
                path, f'Invalid value: "{value}": {path} in body should be at least {bound} chars long', "Invalid"
            )
        if "maxlen" in node and len(value) > node["maxlen"]:
            bound = node["maxlen"]
            self._wrong(path, f"Too long: may not be more than {bound} bytes", "TooLong")

    def _wrong(self, path: str, message: str, kind: str) -> None:
        reason = {
            "Type": "FieldValueTypeInvalid",
            "NotSupported": "FieldValueNotSupported",
            "TooMany": "FieldValueTooMany",
            "TooLong": "FieldValueTooLong",
        }.get(kind, "FieldValueInvalid")
        self.causes.append(cause(reason, message, path))


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "b"
        case int():
            return "i"
        case float():
            return "n"
        case str():
            return "s"
        case list():
            return "a"
        case _:
            return "o"


def _shown_type(kind: str) -> str:
    return "number" if kind == "i" else _GO_TYPES[kind]
