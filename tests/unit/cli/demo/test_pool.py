"""The pool of the demo: which files it takes, and what it makes of what was measured."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from app.cli.demo.client import DemoFailed
from app.cli.demo.play import EXAMPLE
from app.cli.demo.pool import Measured, read_pool, tabulate
from app.cli.demo.words import in_percent

POOL = """
apiVersion: pool.kubevirt.io/v1
kind: VirtualMachinePool
metadata: {name: tiny}
spec:
  size: 2
  template: {image: ubuntu, memory: 1Gi}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "pool.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example_becomes_the_body_of_a_put():
    pool = read_pool(EXAMPLE)
    assert pool.name == "fast-start-pool"
    assert {**pool.body, "template": ...} == {"size": 10, "min_available": 5, "auto_replenish": True, "template": ...}
    assert pool.body["template"]["spec"]["volumes"][0]["containerDisk"] == {"image": "ubuntu:22.04"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1\nb", "is not YAML at line "),
        ("", "has no document"),
        ("- 1", "documents[0] is a list"),
        (f"{POOL}---{POOL}", "documents[0] makes pool 'tiny' already"),
        (f"{POOL}---{POOL.replace('tiny', 'other')}", "must have one document, of kind VirtualMachinePool"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}",
            "documents[0].kind: is Pod, which this service does not apply",
        ),
        ("apiVersion: pool.kubevirt.io/v1\nkind: VirtualMachinePool", "documents[0].metadata: is missing"),
        (POOL + "  minAvailible: 1", "is not a known field; did you mean `minAvailable`?"),
        (POOL.replace("size: 2", "size: 0"), "spec.size is 0"),
    ],
)
def test_a_file_that_is_no_pool_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = written(tmp_path, text)
    with pytest.raises(DemoFailed, match=re.escape(sentence)) as raised:
        read_pool(path)
    assert str(path) in raised.value.detail


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(DemoFailed, match=r"cannot be read: No such file or directory\. Name a pool's file with --pool"):
        read_pool(tmp_path / "none.yaml")


def test_the_saving_is_never_rounded_up_to_all_of_it():
    told = io.StringIO()
    measured = Measured(size=1, warm_up=31, cold_boot=30, own_boot=29.96, claim=0.0011, backfill=61.5)
    Console(file=told, width=100).print(tabulate(measured))
    text = told.getvalue()
    for part in ("1 VM from nothing", "31.0 s", "30.0 s", "1.1 ms", "99.99 %", "61.5 s"):
        assert part in text


@pytest.mark.parametrize(
    ("share", "digits", "words"),
    [
        (1.0, 1, "over 99.9 %"),
        (0.99999, 1, "99.9 %"),
        (1 - 1e-12, 2, "over 99.99 %"),
        (0.29, 0, "29 %"),
        (0.8, 0, "80 %"),
        (0.0, 1, "0.0 %"),
    ],
)
def test_shares_are_rounded_down(share, digits, words):
    assert in_percent(share, digits=digits) == words
