"""`python -m scripts.client` writes the files; `generate` gives them for the test that holds them to the document."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from scripts.client.operations import operations_module
from scripts.client.schemas import schemas_module
from scripts.client.threads import HAND_WRITTEN, for_threads

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "clients" / "python" / "emberpool" / "client"


def generate() -> dict[Path, str]:
    """The text of each generated file."""
    document = json.loads((ROOT / "openapi" / "openapi.json").read_text(encoding="utf-8"))
    operations = PACKAGE / "_async" / "operations.py"
    found = {PACKAGE / "schemas.py": schemas_module(document), operations: operations_module(document)}
    for path in sorted({operations, *(PACKAGE / "_async").glob("*.py")}):
        if path.name != HAND_WRITTEN:
            source = found.get(path) or path.read_text(encoding="utf-8")
            found[PACKAGE / "_sync" / path.name] = for_threads(source)
    return {path: _format(path, text) for path, text in found.items()}


def _format(path: Path, text: str) -> str:
    """As the project's formatter wants it."""
    ruff = Path(sys.executable).parent / "ruff"
    for command in (["check", "--quiet", "--select", "I,F401", "--fix", "--exit-zero"], ["format", "--quiet"]):
        done = subprocess.run(  # noqa: S603 - our own formatter
            [ruff, *command, "--stdin-filename", path, "-"],
            input=text,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        text = done.stdout
    return text


def main() -> None:
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
