"""One program, of which a client's command reads only what a client needs."""

import subprocess
import sys
from unittest.mock import patch

import pytest
import typer
from typer.main import get_command

from app.cli import program as cli
from app.cli.client import program
from app.errors import InvalidRequest
from tests.support.patience import PATIENCE

HEAVY = {"sqlalchemy", "kubernetes_asyncio", "fastapi", "uvicorn", "aiohttp"}
SCRIPT = """
import sys
from app.__main__ import main
try:
    main()
except SystemExit:
    print(sorted({name.partition(".")[0] for name in sys.modules} & %r), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("there is no such pool", "There is no such pool."),
        ("http://127.0.0.1:8080: refused", "http://127.0.0.1:8080: refused."),
        ("paths.0: is wrong", "paths.0: is wrong."),
    ],
    ids=["a sentence", "an address", "a field"],
)
def test_an_error_is_a_sentence(capsys, detail, told):
    alone = typer.Typer()

    @alone.command()
    def fail() -> None:
        raise InvalidRequest(detail)

    with pytest.raises(SystemExit), patch.object(sys, "argv", ["emberpool"]):
        program.run(alone)
    assert capsys.readouterr().err == f"{InvalidRequest.title}. {told}\n"


@pytest.mark.parametrize("command", ["apply", "claim", "get", "release"])
def test_a_client_starts_without_the_service(command):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT % HEAVY, command, "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
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
