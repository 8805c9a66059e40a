"""What is generated of the Python client is what its sources and the OpenAPI document make."""

import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from scripts.client.__main__ import generate
from tests.support.checkout import ROOT

FOLDER = ROOT / "clients" / "python"


def test_the_generated_files_are_up_to_date():
    for path, text in generate().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.relative_to(ROOT)} is out of date: run `make client`"


def test_the_client_for_threads_has_no_word_of_asyncio():
    for path in (FOLDER / "emberpool" / "client" / "_sync").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not [word for word in ("async def", "await ", "import asyncio", "client._async") if word in source], (
            path.name
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of what git tracks, or would."""
    source, out = tmp_path_factory.mktemp("client"), tmp_path_factory.mktemp("out")
    listed = subprocess.run(["git", "ls-files", "-z", "."], cwd=FOLDER, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((FOLDER / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_its_wheel_has_every_file_and_asks_for_no_part_of_the_service(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in opened.namelist() if name.endswith("METADATA")]
        told = BytesParser().parsebytes(opened.read(metadata))
    assert names == {
        str(path.relative_to(FOLDER)) for path in (FOLDER / "emberpool").rglob("*") if path.suffix in {".py", ".typed"}
    }
    assert told["Name"] == "emberpool-client"
    assert sorted(each.split(">")[0] for each in told.get_all("Requires-Dist")) == [
        "httpx",
        "httpx-sse",
        "tenacity",
        "typing-extensions",
    ]


def test_it_is_imported_without_anything_of_the_service(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path)
    program = "import emberpool.client, sys; print(emberpool.client.__file__, sorted({'app', 'pydantic', 'typer'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{tmp_path}/emberpool/client/__init__.py", "[]"]


def test_its_version_is_the_services():
    found = [
        tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        for folder in (FOLDER, ROOT)
    ]
    assert found[0] == found[1]


def test_its_licence_is_the_services():
    assert (FOLDER / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
