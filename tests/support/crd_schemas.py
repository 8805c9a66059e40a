"""The schemas of custom resources: compiled from upstream's definitions into the file that the dev cluster ships, and opened
again as JSON schemas, so that each object that we send is held against them.

Source: the CustomResourceDefinitions of KubeVirt v1.9.0, CDI v1.66.0 and external-snapshotter v8.6.0, all published under the
Apache License 2.0. To compile other versions, run this with a folder that has each as `<plural>.<group>.yaml`:
`python -m tests.support.crd_schemas FOLDER`.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

SCHEMA_FILE = Path(__file__).parents[2] / "app" / "devcluster" / "apiserver" / "schemas.json"
KINDS = {
    "kubevirt.io": ("v1", ("virtualmachines", "virtualmachineinstances")),
    "pool.kubevirt.io": ("v1beta1", ("virtualmachinepools",)),
    "snapshot.kubevirt.io": (
        "v1beta1",
        ("virtualmachinesnapshots", "virtualmachinesnapshotcontents", "virtualmachinerestores"),
    ),
    "clone.kubevirt.io": ("v1beta1", ("virtualmachineclones",)),
    "cdi.kubevirt.io": ("v1beta1", ("datavolumes", "datasources", "dataimportcrons", "storageprofiles")),
    "snapshot.storage.k8s.io": ("v1", ("volumesnapshots", "volumesnapshotclasses", "volumesnapshotcontents")),
}
_KEPT = {
    "enum": "e",
    "pattern": "re",
    "format": "f",
    "default": "d",
    "minimum": "min",
    "maximum": "max",
    "minLength": "minlen",
    "maxLength": "maxlen",
    "maxItems": "maxitems",
    "required": "r",
}
_TYPES = {"object": "o", "array": "a", "string": "s", "integer": "i", "boolean": "b", "number": "n"}
_TYPE_NAMES = {short: long for long, short in _TYPES.items()}


def compile_crds(folder: Path) -> dict:
    """Schemas with equal subtrees stored once: `nodes` is a table, children are indices into it."""
    table = SchemaTable()
    kinds, columns, ruled = {}, {}, []
    for group, (version, plurals) in KINDS.items():
        for plural in plurals:
            crd = yaml.safe_load((folder / f"{plural}.{group}.yaml").read_text())
            served = next(item for item in crd["spec"]["versions"] if item["name"] == version)
            name = f"{group}/{plural}"
            kinds[name] = table.add(served["schema"]["openAPIV3Schema"])
            columns[name] = served.get("additionalPrinterColumns", [])
            if "x-kubernetes-validations" in json.dumps(served["schema"]):
                ruled.append(name)
    return {"kinds": kinds, "columns": columns, "nodes": table.nodes, "ruled": ruled}


@functools.cache
def shipped() -> dict[str, Any]:
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def kind_names() -> list[str]:
    """`group/plural` of each custom kind, in the order in which they are compiled."""
    return [f"{group}/{plural}" for group, (_, plurals) in KINDS.items() for plural in plurals]


def open_schema(kind: str) -> dict[str, Any]:
    """The schema of `group/plural` as upstream writes it, as far as the shipped file has it."""
    nodes = shipped()["nodes"]

    @functools.cache
    def open_node(place: int) -> dict[str, Any]:
        node = nodes[place]
        schema = {long: node[short] for long, short in _KEPT.items() if short in node}
        if node["t"] == "q":
            schema["x-kubernetes-int-or-string"] = True
        elif node["t"] != "x":
            schema["type"] = _TYPE_NAMES[node["t"]]
        if "null" in node:
            schema["nullable"] = True
        if "keep" in node:
            schema["x-kubernetes-preserve-unknown-fields"] = True
        if "p" in node:
            schema["properties"] = {name: open_node(child) for name, child in node["p"].items()}
        if "v" in node:
            schema["additionalProperties"] = open_node(node["v"])
        if "l" in node:
            schema["items"] = open_node(node["l"])
        return schema

    return open_node(shipped()["kinds"][kind])


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Holds objects of `group/plural` against the schema; as with `fieldValidation=Strict`, a field that it lacks is an error."""
    return jsonschema.Draft202012Validator(_strictly(open_schema(kind)))


def complaints(kind: str, body: dict[str, Any]) -> list[str]:
    """What the schema of `group/plural` has against the object; nothing where it is valid."""
    return [f"{error.json_path}: {error.message}" for error in validator(kind).iter_errors(body)]


def _strictly(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields forbidden wherever it does not ask to preserve them."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _strictly(child) for name, child in schema["properties"].items()}
        if "x-kubernetes-preserve-unknown-fields" not in schema:
            strict.setdefault("additionalProperties", False)
    for name in ("additionalProperties", "items"):
        if isinstance(schema.get(name), dict):
            strict[name] = _strictly(schema[name])
    if "x-kubernetes-int-or-string" in schema:
        strict["type"] = ["integer", "string"]
    if "nullable" in schema and "type" in schema:
        strict["type"] = [schema["type"], "null"]
    return strict


class SchemaTable:
    """Schemas, each a row of `nodes` that names its children by their rows; equal ones are one row."""

    def __init__(self):
        self.nodes = []
        self._seen = {}

    def add(self, schema):
        node = {short: schema[long] for long, short in _KEPT.items() if long in schema}
        node["t"] = "q" if schema.get("x-kubernetes-int-or-string") else _TYPES.get(schema.get("type"), "x")
        if schema.get("nullable"):
            node["null"] = 1
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            node["keep"] = 1
        if "properties" in schema:
            node["p"] = {name: self.add(child) for name, child in sorted(schema["properties"].items())}
        if isinstance(schema.get("additionalProperties"), dict):
            node["v"] = self.add(schema["additionalProperties"])
        if "items" in schema:
            node["l"] = self.add(schema["items"])
        return self._intern(node)

    def _intern(self, node):
        text = json.dumps(node, sort_keys=True)
        if text not in self._seen:
            self._seen[text] = len(self.nodes)
            self.nodes.append(node)
        return self._seen[text]


if __name__ == "__main__":
    compiled = compile_crds(Path(sys.argv[1]))
    SCHEMA_FILE.write_text(json.dumps(compiled, separators=(",", ":"), sort_keys=True) + "\n")
