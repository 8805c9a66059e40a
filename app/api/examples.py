"""The examples of the OpenAPI document, which stand in an `examples.json` beside the routes of each resource."""

from functools import cache
from importlib import resources
from typing import Any

import orjson

KINDS = ("schemas", "bodies", "responses", "problems")


@cache
def load() -> dict[str, dict[str, Any]]:
    """The entries of all files by kind: `schemas` by the schema's name, `bodies` and `responses` by operation id, `problems` (the
    `detail` of an error) by code.
    """
    merged: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    root = resources.files("app.api")
    for folder in (root, *sorted(root.iterdir(), key=lambda each: each.name)):
        file = folder / "examples.json"
        if file.is_file():
            for kind, entries in orjson.loads(file.read_bytes()).items():
                merged[kind] |= entries
    return merged
