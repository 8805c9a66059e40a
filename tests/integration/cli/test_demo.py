"""The demo where it fails. tests/system/packaging/test_wheel.py runs all of it."""

import io
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from app.cli.demo import play as demo
from app.cli.demo.client import DemoFailed
from app.cli.demo.pool import PoolFile
from app.config import Settings

BODY = {"size": 2, "template": {"image": "ubuntu", "memory": "1Gi"}}


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{demo._PREFIX}*"))


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
