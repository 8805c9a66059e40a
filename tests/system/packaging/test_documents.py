"""The documents name what exists: files, commands, targets, settings, requests."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from app.config import Settings
from scripts.reference import pages
from tests.support.checkout import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
OPENAPI = json.loads((ROOT / "openapi" / "openapi.json").read_text(encoding="utf-8"))
READ_ELSEWHERE = {
    *("EMBERPOOL_ROOT", "EMBERPOOL_CLAIM", "EMBERPOOL_POOL", "EMBERPOOL_VM", "EMBERPOOL_LEASE"),  # in guests
    *("EMBERPOOL_SERVER", "EMBERPOOL_URL"),  # by the client commands and the Python client
    *("EMBERPOOL_TEST_POSTGRES_BIN", "EMBERPOOL_TEST_FUZZ_SECONDS", "EMBERPOOL_TEST_CLONES"),  # by the tests
}
REFUSED_ON_PURPOSE = {"size": -1, "template": {"image": "a", "memory": "64Mi"}}

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors_of(path: Path) -> set[str]:
    """As GitHub and the site make them of headings: small letters, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.+)$", text_of(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@each_document
def test_each_link_within_the_repository_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), target


@each_document
def test_each_file_that_is_named_exists(path):
    if path.name == "CHANGELOG.md":
        return  # it tells of files that have been
    named = re.findall(
        r"\b((?:app|bench|docker|docs|examples|migrations|openapi|requirements|scripts|tests)/[\w./-]*\w)",
        text_of(path),
    )
    for name in named:
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), name


@each_document
def test_each_make_target_that_is_named_exists(path):
    assert set(re.findall(r"(?:^ +|`)make ([a-z]+)", text_of(path), flags=re.MULTILINE)) <= TARGETS


@each_document
def test_each_variable_that_is_named_is_read_somewhere(path):
    read = {f"EMBERPOOL_{name.upper()}" for name in Settings.model_fields} | READ_ELSEWHERE
    assert set(re.findall(r"\bEMBERPOOL_[A-Z_]*[A-Z]\b", text_of(path))) <= read


def test_each_log_event_that_operators_are_told_of_is_written():
    named = set(re.findall(r"`((?:claim|loop|pool|vm|watch)\.[a-z_]+)`", text_of(ROOT / "docs" / "operations.md")))
    code = "\n".join(map(text_of, ROOT.glob("app/**/*.py")))
    assert named
    for event in named:
        assert f'"{event}"' in code, event


def test_the_generated_pages_say_what_the_code_says():
    for path, text in pages().items():
        assert text_of(path) == text, f"{path.name} is out of date: run `make reference`"


def curl_commands() -> Iterator[list[str]]:
    for path in DOCUMENTS:
        for command in re.findall(r"^    (curl .*)$", text_of(path).replace("\\\n", " "), flags=re.MULTILINE):
            if "127.0.0.1:8080/v1" in command:
                yield shlex.split(command)


def operation_of(method: str, url: str) -> dict:
    asked = re.sub(r"^http://127\.0\.0\.1:8080|\?.*$", "", url)
    (found,) = [
        operations
        for template, operations in OPENAPI["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), asked)
        and not (asked in OPENAPI["paths"] and template != asked)
    ]
    return found[method.lower()]


@pytest.mark.parametrize("command", [*curl_commands()], ids=" ".join)
def test_each_request_that_is_shown_is_one_that_the_api_takes(command):
    method = command[command.index("-X") + 1] if "-X" in command else "GET"
    (url,) = [word for word in command if word.startswith("http")]
    operation = operation_of(method, url)
    parameters = {each["name"] for each in operation.get("parameters", ())}
    assert set(re.findall(r"[?&](\w+)=", url)) <= parameters
    if "--json" not in command:
        return
    body = json.loads(command[command.index("--json") + 1])
    reference = operation["requestBody"]["content"]["application/json"]["schema"]
    valid = Draft202012Validator({**reference, "components": OPENAPI["components"]}).is_valid(body)
    assert valid is (body != REFUSED_ON_PURPOSE)
