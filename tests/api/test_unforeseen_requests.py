"""Requests that nobody thought of, made by schemathesis from the OpenAPI document: its examples, values at the edges of every schema and
beyond them, random ones, and sequences in which one request uses what another made.

The budget is 45 seconds in all, and the same requests come in the same order; a busy machine gets less far.
EMBERPOOL_TEST_FUZZ_SECONDS gives each test more time, and other requests each time; the seed is told at the end of a run that fails.
"""

import asyncio
import os
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, TOOLS
from tests.support.patience import PATIENCE
from tests.support.service import bind, serve

_SECONDS = int(os.environ.get("EMBERPOOL_TEST_FUZZ_SECONDS", "0"))
_TOKEN = "t0ken"
_TOLD = 20_000


def arguments(port: int, phases: str, seconds: int) -> list[str]:
    drawn = ["--generation-database", "none"] if _SECONDS else ["--generation-deterministic"]
    return [
        *("--config-file", str(ROOT / "tests" / "support" / "schemathesis.toml")),
        *("run", str(ROOT / "openapi" / "openapi.json"), "--url", f"http://127.0.0.1:{port}"),
        *("--header", f"Authorization: Bearer {_TOKEN}"),
        *("--request-timeout", str(PATIENCE)),
        *("--phases", phases, "--max-time", str(_SECONDS or seconds), *drawn),
        *("--continue-on-failure", "--no-color", "--warnings", "off"),
    ]


@pytest.mark.timeout(_SECONDS + 300)
@pytest.mark.parametrize(
    ("first", "later", "seconds"),
    [("examples", ",coverage,fuzzing", 32), ("stateful", "", 13)],
    ids=["single", "sequences"],
)
async def test_every_request_is_answered_as_the_document_says(
    database_url, dev_cluster, tmp_path: Path, first, later, seconds
):
    async with (
        serve(database_url, dev_cluster, tmp_path, api_token=_TOKEN, console_idle_seconds=1) as server,
        bind(server.app) as (_, port),
    ):
        process = await asyncio.create_subprocess_exec(
            *(TOOLS / "schemathesis", *arguments(port, first + later, seconds)),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},  # for its hooks
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )
        told, _ = await process.communicate()
    output = told.decode(errors="replace")
    assert process.returncode == 0, output[-_TOLD:]
    assert f"  ✅ {first.title()}\n" in output, output[-_TOLD:]
