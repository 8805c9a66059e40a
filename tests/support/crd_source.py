"""Compiles upstream CRDs into the compact schema file that the dev cluster ships.

Run as a script with a folder of CRDs (KubeVirt v1.9.0, CDI v1.66.0, external-snapshotter v8.6.0) to write the file anew:
`python tests/support/crd_source.py FOLDER`.
"""

import json
import sys
from pathlib import Path

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


def compile_crds(folder: Path) -> dict:
    """Schemas with equal subtrees stored once: `nodes` is a table, children are indices into it."""
    table = _Table()
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


class _Table:
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
