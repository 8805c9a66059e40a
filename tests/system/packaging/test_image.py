"""docker/Dockerfile, by hadolint and by what it says; no engine is needed for that."""

import json
import re
import subprocess
import tomllib

import pytest

from tests.support.checkout import ROOT, TOOLS

DOCKERFILE = ROOT / "docker" / "Dockerfile"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    joined = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture(scope="module")
def final_stage(instructions) -> list[tuple[str, str]]:
    last = max(number for number, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[last:]


def test_hadolint_finds_nothing():
    done = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_stages_stand_on_the_same_base_of_a_python_that_we_support(instructions):
    bases = {rest.split()[0] for word, rest in instructions if word == "FROM"}
    (base,) = bases
    version = tuple(int(part) for part in re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", base).groups())
    assert version >= (3, 11)


def test_what_is_installed_is_locked_by_hash(instructions):
    installs = [
        part for word, rest in instructions if word == "RUN" for part in rest.split("&&") if "pip install" in part
    ]
    assert len(installs) == 2
    assert "--require-hashes -r requirements/build.txt -r requirements/runtime.txt" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]  # ourselves: nothing else can come in


def test_the_final_stage_builds_and_fetches_nothing(final_stage):
    for word, rest in final_stage:
        assert not (word == "RUN" and re.search(r"\b(pip|apt|apt-get|curl|wget|gcc)\b", rest)), rest


def test_it_runs_as_a_numbered_user_who_is_not_root(final_stage):
    (user,) = [rest for word, rest in final_stage if word == "USER"]
    assert int(user.split(":")[0]) > 0


def test_its_health_check_is_a_program_that_parses(final_stage):
    (check,) = [rest for word, rest in final_stage if word == "HEALTHCHECK"]
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "the health check", "exec")
    assert "/healthz" in command[2]


def test_what_it_copies_is_there_and_reaches_the_engine(instructions):
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sources = [
        source
        for word, rest in instructions
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert "*" in ignore
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore, source


def test_nothing_secret_or_heavy_reaches_the_engine():
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    }
    assert allowed == {
        "app",
        "migrations",
        "requirements/build.txt",
        "requirements/runtime.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }


def test_the_image_tag_is_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for path in ("docker-compose.yml", "docker/kubernetes.yaml", ".github/workflows/ci.yml"):
        tags = set(re.findall(r"\bemberpool:([\w.-]+)$", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert tags == {version}, path
