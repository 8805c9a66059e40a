"""One program, of which a client's command reads only what a client needs."""

import subprocess
import sys

import pytest
from typer.main import get_command

from app import cli
from app.commands import program

HEAVY = {"sqlalchemy", "kubernetes_asyncio", "fastapi", "uvicorn", "aiohttp"}
SCRIPT = """
import sys
from app.__main__ import main
try:
    main()
except SystemExit:
    print(sorted({name.partition(".")[0] for name in sys.modules} & %r), file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["apply", "claim", "get", "release"])
def test_a_client_starts_without_the_service(command):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT % HEAVY, command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "[]\n"
    assert f"{command} [OPTIONS]" in done.stdout


def test_the_whole_program_has_them_too():
    assert {"apply", "claim", "get", "release"} < set(get_command(cli.app).commands)


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [(["get", "pools"], True), (["up"], False), (["--help"], False), ([], False), (["gets"], False)],
)
def test_anything_else_is_the_whole_programs(arguments, taken):
    assert program.takes(arguments) is taken
