"""What the repository holds for everyone must not speak of the machine that it was written on."""

import re
import subprocess

import pytest

from tests.support.checkout import ROOT

# In parts, so that this file does not find itself.
MACHINE_PATHS = re.compile(r"(?<![\w.-])/(?:wo" + r"rk|ro" + r"ot|opt/py" + r"pi|opt/whe" + r"els)(?:/|\b(?!\w))")
# The built-in guest has a home for its superuser, which is no place of anybody's machine.
GUESTS = "app/devcluster/guests/images/"
REGISTRIES = re.compile(r"py" + r"pi\.org|python" + r"hosted\.org|(?<!emit-)index" + r"-url|find" + r"-links")


def tracked_texts() -> list[tuple[str, str]]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():  # a tracked file may be deleted and not yet committed
            content = path.read_bytes()
            if b"\0" not in content:
                found.append((name, content.decode("utf-8")))
    assert found
    return found


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["machine paths", "registries"])
def test_no_tracked_file_names_a_place_of_its_author(pattern):
    hits = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line) and not (pattern is MACHINE_PATHS and name.startswith(GUESTS))
    ]
    assert not hits, "\n".join(hits)


def test_the_ci_entry_can_be_run_as_it_is_cloned():
    done = subprocess.run(
        ["git", "ls-files", "--stage", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("100755 ")
