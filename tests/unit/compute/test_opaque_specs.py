"""Nothing but `compute/kubevirt` opens a VM's spec, and `manifests` reads only what users write.

The type checker holds the first part: `VmSpec` is an `object`, which has no keys. What it cannot see (a value that passed through
`Any`) is looked for here, by the keys that a VirtualMachine has.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from app.domain.templates import VmSpec

APP = Path(__file__).parents[3] / "app"
READERS = ("compute/kubevirt/", "manifests/", "devcluster/")
KEYS = frozenset(
    [
        "containerDisk",
        "dataVolumeTemplates",
        "domain",
        "readinessProbe",
        "runStrategy",
        "terminationGracePeriodSeconds",
        "virtualMachineTemplate",
        "volumes",
    ]
)
SPECS = frozenset({"vm_spec", "VmSpec"})


def opened(tree: ast.AST) -> Iterator[str]:
    """Where the code takes a key from a VM's spec, or casts one."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=value, slice=key):
                pass
            case ast.Call(func=ast.Attribute(value=value, attr="get" | "pop" | "setdefault"), args=[key, *_]):
                pass
            case ast.Call(func=ast.Name(id="cast"), args=[_, ast.Attribute(attr="vm_spec") as value]):
                key = value
            case _:
                continue
        named = getattr(value, "attr", getattr(value, "id", ""))
        if named in SPECS or (isinstance(key, ast.Constant) and key.value in KEYS):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_a_spec_has_no_keys_for_the_type_checker():
    assert VmSpec.__supertype__ is object


def test_no_other_module_takes_a_key_from_a_vm_manifest():
    found = {
        name: list(opened(ast.parse(path.read_text())))
        for path in sorted(APP.rglob("*.py"))
        if not (name := path.relative_to(APP).as_posix()).startswith(READERS)
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_such_a_module_would_be_found():
    code = 'pool.vm_spec["template"]\nspec.get("dataVolumeTemplates")\ncast(dict, pool.vm_spec)'
    assert len(list(opened(ast.parse(code)))) == 3
