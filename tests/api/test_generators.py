"""The document is fit for the generators of clients that people use: they make all of it, without a warning, and what they make works."""

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, TOOLS
from tests.support.service import listen

OWN = TOOLS.parent / "generators" / "bin"
NODE_MODULES = TOOLS.parent / "typescript" / "node_modules"
GIVEN = ROOT / "tests" / "generators"
DOCUMENT = ROOT / "openapi" / "openapi.json"

pytestmark = pytest.mark.asyncio(loop_scope="module")
with_python_generator = pytest.mark.skipif(
    not OWN.is_dir(), reason="openapi-python-client is not installed; `make pytest` installs it"
)
with_typescript_generator = pytest.mark.skipif(
    shutil.which("node") is None or not NODE_MODULES.is_dir(),
    reason="openapi-typescript is not installed; install node and npm, and `make pytest` installs it",
)


async def run(*command, folder: Path) -> str:
    """What the command wrote. It has to succeed."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        env={**given, "PATH": f"{OWN}{os.pathsep}{given['PATH']}", "NO_COLOR": "1", "NO_PROXY": "127.0.0.1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode(errors="replace")[-8000:]
    return told.decode()


@pytest.fixture
async def generated_python(tmp_path) -> Path:
    arguments = ("--path", DOCUMENT, "--meta", "none", "--output-path", tmp_path / "generated", "--fail-on-warning")
    told = await run(OWN / "openapi-python-client", "generate", *arguments, folder=tmp_path)
    assert told.split() == ["Generating", str(tmp_path / "generated")], told
    return tmp_path


@pytest.fixture
async def generated_typescript(tmp_path) -> Path:
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    for name in ("package.json", "tsconfig.json", "use.ts"):
        shutil.copy(GIVEN / "typescript" / name, tmp_path / name)
    told = await run(
        "node", NODE_MODULES / ".bin" / "openapi-typescript", DOCUMENT, "-o", "schema.d.ts", folder=tmp_path
    )
    assert "warn" not in told.lower(), told
    return tmp_path


async def states(server, pool: str) -> list[str]:
    page = (await server.client.get("/v1/claims", params={"pool": pool})).json()
    return [claim["state"] for claim in page["items"]]


@with_python_generator
async def test_what_openapi_python_client_makes_has_every_operation_and_no_names_that_were_numbered(generated_python):
    made = generated_python / "generated"
    operations = {path.stem for path in (made / "api").glob("*/*.py")} - {"__init__"}
    assert len(operations) == DOCUMENT.read_text(encoding="utf-8").count('"operationId"')
    assert [path.stem for path in (made / "models").glob("*_type_[0-9].py")] == []
    call = (made / "api" / "claims" / "claim.py").read_text(encoding="utf-8")
    assert "body: PoolClaim | VmClaim" in call
    for path in (made / "api").glob("*/*.py"):
        assert "client: AuthenticatedClient," not in path.read_text(encoding="utf-8"), path.name


@with_python_generator
async def test_what_openapi_python_client_makes_claims_reads_and_releases_a_vm(server, generated_python):
    await server.fill("for-python")
    shutil.copy(GIVEN / "python" / "use.py", generated_python / "use.py")
    async with listen(server.app) as client:
        await run(OWN / "python", "use.py", str(client.base_url).rstrip("/"), "for-python", folder=generated_python)
    assert await states(server, "for-python") == ["released"]


@with_typescript_generator
async def test_what_openapi_typescript_makes_claims_reads_and_releases_a_vm(server, generated_typescript):
    await server.fill("for-typescript")
    await run("node", NODE_MODULES / ".bin" / "tsc", "--project", ".", folder=generated_typescript)
    async with listen(server.app) as client:
        address = str(client.base_url).rstrip("/")
        await run("node", Path("made") / "use.js", address, "for-typescript", folder=generated_typescript)
    assert await states(server, "for-typescript") == ["released"]
