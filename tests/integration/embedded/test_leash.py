"""A program on the leash runs as it would without, and ends when its starter lets go, however that happens."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support.patience import PATIENCE

LEASH = [sys.executable, "-m", "app.embedded.leash"]
PROGRAM = """
import signal, sys
def stop(*_):
    print("stopping", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print(__name__, *sys.argv[1:], flush=True)
signal.pause()
"""
STARTER = """
import os, signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "short.py").write_text("import sys; sys.exit(int(sys.argv[1]))", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_it_runs_as_the_main_program_with_its_arguments_until_let_go(environment):
    with subprocess.Popen(
        [*LEASH, "program", "one", "--two"], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == "__main__ one --two\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.stdout.readline() == "stopping\n"
        assert process.wait(30) == 3


def test_its_exit_code_is_the_programs(environment):
    with subprocess.Popen([*LEASH, "short", "7"], env=environment, stdin=subprocess.PIPE) as process:
        assert process.wait(30) == 7


def test_it_ends_when_its_starter_is_killed(environment):
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, *LEASH, "program"],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as starter:
        assert starter.stdout.readline() == "__main__\n"
        # The program has the output too, so that this ends only when both have.
        output, _ = starter.communicate("now\n", timeout=PATIENCE)
    assert starter.returncode == -signal.SIGKILL
    assert output == "stopping\n"
