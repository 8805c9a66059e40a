"""The demo as a whole: what it says, and that it leaves nothing behind."""

import io
import re
import tempfile
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from app.cli.demo import play as demo
from app.cli.demo.client import DemoFailed
from app.cli.demo.pool import PoolFile
from app.config import Settings

BODY = {"size": 2, "template": {"image": "ubuntu", "memory": "1Gi"}}


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{demo._PREFIX}*"))


def test_the_whole_of_it():
    before = leftovers()
    told = io.StringIO()
    demo.play(
        Settings(port=0),
        PoolFile("tiny", BODY),
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
            PoolFile("tiny", {**BODY, "size": 10_001}),
            Console(file=io.StringIO()),
            cold_boot_seconds=0.3,
            stay=False,
        )
    assert leftovers() <= before
