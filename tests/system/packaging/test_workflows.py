"""What the hosting service reads: workflows, issue forms and dependabot's settings, checked against their schemas."""

import re
import subprocess
import tomllib

import pytest
import yaml

from tests.support.checkout import ROOT, TOOLS

GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", sorted(GITHUB.glob("ISSUE_TEMPLATE/[!c]*.yml"))),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("dependabot", [GITHUB / "dependabot.yml"]),
    ],
)
def test_each_file_is_valid_by_its_schema(schema, files):
    assert files
    command = [TOOLS / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_action_is_pinned_to_a_commit_and_says_its_version(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if re.search(r"\buses: (?!\./)", line)]
    for line in lines:
        assert re.search(r"uses: (docker://\S+:\d+(\.\d+)+|\S+@[0-9a-f]{40}  # v\d+\.\d+\.\d+)$", line), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_workflow_may_do_more_than_read_unless_a_job_says_so(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}


def test_the_tests_run_on_every_python_that_the_project_names():
    matrix = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]["tests"]["strategy"]
    named = [
        match[1]
        for each in PROJECT["classifiers"]
        if (match := re.fullmatch(r".*Python :: (\d\.\d+)", each)) is not None
    ]
    assert matrix["matrix"]["python"] == named
    assert f">={named[0]}" == PROJECT["requires-python"]


def test_the_makefile_has_each_target_that_a_workflow_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    run = {name for path in WORKFLOWS for name in re.findall(r"run: make ([a-z]+)", path.read_text(encoding="utf-8"))}
    assert {"lint", "docs", "pytest", "dist", "lock"} <= run <= targets
