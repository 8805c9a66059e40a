"""The demo: what it takes as a pool, what it says, and that it leaves nothing behind."""

import io
import re
import tempfile
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from app.config import Settings
from app.demo import play as demo
from app.demo.client import DemoFailed
from app.demo.pool import Measured, PoolFile, read_pool, tabulate

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


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{demo._PREFIX}*"))


def test_the_example_becomes_the_body_of_a_put():
    pool = read_pool(demo.EXAMPLE)
    assert pool.name == "fast-start-pool"
    assert {**pool.body, "template": ...} == {"size": 10, "min_available": 5, "auto_replenish": True, "template": ...}
    assert pool.body["template"]["spec"]["volumes"][0]["containerDisk"] == {"image": "ubuntu:22.04"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1\nb", "is not YAML in line "),
        ("", "holds no document"),
        ("- 1", "documents[0] is a list"),
        (f"{POOL}---{POOL}", "documents[0] makes pool 'tiny' already"),
        (f"{POOL}---{POOL.replace('tiny', 'other')}", "must hold one document, of kind VirtualMachinePool"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "documents[0].kind: 'Pod' is not taken here"),
        ("apiVersion: pool.kubevirt.io/v1\nkind: VirtualMachinePool", "documents[0].metadata: is missing"),
        (POOL + "  minAvailible: 1", "there is no such field; did you mean `minAvailable`?"),
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


def test_the_whole_of_it(tmp_path):
    before = leftovers()
    told = io.StringIO()
    demo.play(
        Settings(port=0),
        read_pool(written(tmp_path, POOL)),
        Console(file=told, width=200),
        cold_boot_seconds=0.3,
        stay=False,
    )
    text = told.getvalue()
    for part in (
        "a cold boot is simulated to take 0.3 s",
        "PUT /v1/pools/tiny asks for 2 VMs",
        "2/2 warm",
        "hands out a running VM",
        "Cold boot, median (simulated)",
        "Pool full again after the claim",
        "The same VM by all four paths",
        "why not faster: pool: no pool has this shape; snapshot: no snapshot of this shape; preload: preload 'ubuntu-image' is on its way",
        "pool 'ubuntu-from-snapshot' had a VM of this shape ready",
        "Only the claim from the pool measures something real",
        "pinned runs on node",
        "2 of its 31 CPUs are pinned now",
        "512 of its 32768 pages of 2Mi are taken now",
        "it does not fit. node1: 1Gi hugepages: 16 free of 16, 20 needed",
        "made by the cluster's own controller, and listed by kubectl",
        "a claim takes ubuntu-listed-",
        "/docs",
    ):
        assert part in text
    assert "until Ctrl-C" not in text
    assert leftovers() <= before
    (address,) = re.findall(r"OpenAPI UI: (\S+)/docs", text)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_what_the_service_refuses_is_told_in_its_words():
    before = leftovers()
    with pytest.raises(DemoFailed, match=r"PUT /v1/pools/tiny was answered with 422 invalid-request: size: .*10000"):
        demo.play(
            Settings(port=0),
            PoolFile("tiny", {"size": 10_001, "template": {"image": "ubuntu", "memory": "1Gi"}}),
            Console(file=io.StringIO()),
            cold_boot_seconds=0.3,
            stay=False,
        )
    assert leftovers() <= before


def test_the_saving_is_never_rounded_up_to_all_of_it():
    told = io.StringIO()
    measured = Measured(size=1, warm_up=31, cold_boot=30, own_boot=29.96, claim=0.0011, backfill=61.5)
    Console(file=told, width=100).print(tabulate(measured))
    text = told.getvalue()
    for part in ("1 VM from nothing", "31.0 s", "30.0 s", "1.1 ms", "99.99 %", "61.5 s"):
        assert part in text
