"""Each command line that is written down somewhere is one that the program, the dev cluster or the Makefile takes."""

import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest
import typer
import yaml

from tests.support.checkout import ROOT, TOOLS


@pytest.fixture(scope="module")
def program() -> typer.core.TyperGroup:
    cli = importlib.import_module("app.cli.program")
    (found,) = [value for value in vars(cli).values() if isinstance(value, typer.Typer)]
    return typer.main.get_command(found)


def parse(program: typer.core.TyperGroup, arguments: list[str]) -> None:
    """Read a command line as the program would, and run nothing. Raises a usage error where the program does not take it."""
    name, *rest = arguments
    program.commands[name].make_context(name, rest, parent=program.make_context("emberpool", list(arguments)))


def compose_services() -> dict:
    command = [TOOLS / "docker-compose", "--profile", "dev", "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["services"]


def container_commands() -> list[list[str]]:
    composed = [
        each["command"] for each in compose_services().values() if each.get("command") and not each.get("entrypoint")
    ]
    documents = yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8"))
    pods = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Deployment"]
    deployed = [container["args"] for pod in pods for container in (*pod["initContainers"], *pod["containers"])]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    default = json.loads(re.search(r"^CMD (.*)$", dockerfile, flags=re.MULTILINE).group(1))
    return [*composed, *deployed, default]


@pytest.mark.parametrize("arguments", container_commands(), ids=" ".join)
def test_the_containers_commands_are_the_programs(program, arguments):
    parse(program, arguments)


def test_a_wrong_command_would_be_seen(program):
    with pytest.raises(Exception, match="'cook' is not one of"):
        parse(program, ["serve", "--role", "cook"])
    with pytest.raises(Exception, match="No such option: --sideways"):
        parse(program, ["migrate", "--sideways"])


def test_the_images_entry_point_is_what_installing_makes():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (entry,) = json.loads(re.search(r"^ENTRYPOINT (.*)$", dockerfile, flags=re.MULTILINE).group(1))
    assert f'{entry} = "app.__main__:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_composed_dev_clusters_command_is_the_dev_clusters():
    service = compose_services()["devcluster"]
    assert service["entrypoint"][0] == "python"
    known = subprocess.run(
        [sys.executable, *service["entrypoint"][1:], *service["command"], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert known.returncode == 0, known.stderr
    for argument in service["command"]:
        assert argument.partition("=")[0] in known.stdout


def test_the_makefile_runs_what_the_program_takes(program):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    run = re.findall(r"^\t\$\(BIN\)/emberpool ([^$>\n]+)", makefile, flags=re.MULTILINE)
    assert {line.strip() for line in run} == {"demo", "up", "openapi"}
    for line in run:
        parse(program, shlex.split(line))


def test_the_documents_commands_are_the_programs(program):
    named = set()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"^ {4}(?:\.venv/bin/)?emberpool (.*)$", text, flags=re.MULTILINE):
            parse(program, shlex.split(line))
        named |= set(re.findall(r"`emberpool ([a-z][a-z-]*)", text))
    assert {"serve", "import-pool"} <= named <= set(program.commands)
