"""A test that hangs ends, and what it waits for is told: with bounds that are shorter than those of the project's own tests."""

import subprocess
import sys
from pathlib import Path

from tests.support import hangs
from tests.support.patience import PATIENCE

_ROOT = Path(__file__).parents[3]
_PLUGIN = """
from tests.support import hangs
from tests.support.hangs import *

hangs.TEARDOWN_SECONDS = {teardown}
hangs.MARGIN_SECONDS = {margin}
"""
_FAILS_AND_WAITS = """
import asyncio
import pytest

@pytest.fixture
async def held():
    yield
    await never_comes()

async def never_comes():
    await asyncio.Event().wait()

async def test_it(held):
    assert False, "as wrong as can be"

def test_next():
    pass
"""
_KEEPS_IT_TO_ITSELF = """
import time

def test_it():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""


def run(folder: Path, source: str, *arguments: str, teardown: float = 60, margin: float = 60) -> tuple[int, str]:
    (folder / "conftest.py").write_text(_PLUGIN.format(teardown=teardown, margin=margin))
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            folder,
            *arguments,
            folder / "test_it.py",
        ],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_teardown_has_its_bound_after_a_failure_and_tells_what_it_awaits(tmp_path):
    code, told = run(tmp_path, _FAILS_AND_WAITS, teardown=0.3)
    assert code == 1
    assert "1 failed, 1 passed, 1 error" in told
    assert "as wrong as can be" in told
    assert "Timeout (>0.3s)" in told
    assert "in never_comes" in told


def test_what_keeps_its_timeout_to_itself_ends_with_its_process(tmp_path):
    code, told = run(tmp_path, _KEEPS_IT_TO_ITSELF, "--timeout", "0.2", margin=0.6)
    assert code == 1
    assert "test_it.py::test_it (call) hangs for 0.8 s" in told
    assert "in test_it" in told


async def test_a_task_is_described_down_to_what_it_waits_for():
    assert "in test_a_task_is_described_down_to_what_it_waits_for" in hangs.describe_tasks()
