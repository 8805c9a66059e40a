"""What lists cost beside a long history, and what they cost the claims: `python -m bench.lists [--size 1000000]`.

A durable Postgres with so many ended claims, as many VMs and four times as many events, 1,000 pools and 10,000 live VMs; one API
process. Each list, with each combination of its filters, is read page by page over one connection; then claims are made over another,
alone and beside 16 clients that list, in rounds that take turns. Writes `bench/results/lists.json`, and exits with 1 where a p50 is
above 20 ms, or the claims' p99 more than doubles.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import multiprocessing
import statistics
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path

from bench.load import Client, quantile
from bench.rig import fill, machine, make_pool, open_database, serve_api
from bench.size_rows import make_history, make_pools

_RESULTS = Path(__file__).parent / "results" / "lists.json"
_POOLS = 1000
_LIVE = 10
_LISTING = 16
_P50_MS = 20.0
_RATIO = 2.0
_CLAIMS = 400


def paths(size: int) -> Iterator[str]:
    """Every list with every combination of its filters; of a filter that is common, and of one that is rare."""
    filters: dict[str, dict[str, list[str]]] = {
        "claims": {
            "pool": ["pool-7"],
            "state": ["bound", "pending", "released", "failed"],
            "label": ["team=web", "team=old", f"job=ci-{size // 2 + 1}"],
            "shape": ["shape-10"],
        },
        "vms": {"pool": ["pool-7"], "state": ["ready", "failed", "deleted", "lost"], "ended": ["true"]},
        "events": {"pool": ["pool-7"], "kind": ["pool", "vm", "claim", "snapshot"], "order": ["newest"]},
        "pools": {},
        "snapshots": {},
        "preloads": {},
    }
    for name, options in filters.items():
        for values in itertools.product(*([None, *given] for given in options.values())):
            chosen = {key: value for key, value in zip(options, values, strict=True) if value is not None}
            yield f"/v1/{name}?{urllib.parse.urlencode(chosen)}".rstrip("?")


class Reader:
    """One connection that reads lists, one page after the other, and begins anew after the last."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def read(self, path: str) -> tuple[float, str | None]:
        """Milliseconds until the whole page is there, and the cursor of the next."""
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise SystemExit(f"GET {path}: {answer.status}: {body.decode()}")
        return took, json.loads(body)["next"]

    def walk(self, path: str, pages: int) -> list[float]:
        took, after = [], None
        for _ in range(pages):
            cursor = {} if after is None else {"after": after}
            joined = "&" if "?" in path else "?"
            seconds, after = self.read(path + (joined + urllib.parse.urlencode(cursor) if cursor else ""))
            took.append(seconds)
        return took


def _list_on(port: int, wanted: list[str], first: int, stop: Event) -> None:
    reader = Reader(port)
    for path in itertools.cycle([*wanted[first:], *wanted[:first]]):
        if stop.is_set():
            return
        reader.read(path)


@contextmanager
def listing(port: int, wanted: list[str], clients: int) -> Iterator[None]:
    """So many clients that list without a pause, in processes of their own."""
    stop = multiprocessing.Event()
    running = [
        multiprocessing.Process(target=_list_on, args=(port, wanted, number * 7 % len(wanted), stop))
        for number in range(clients)
    ]
    for process in running:
        process.start()
    time.sleep(1)
    try:
        yield
    finally:
        stop.set()
        for process in running:
            process.join()


def _claim_p99(client: Client) -> float:
    """Of claims that follow each other at some 100 a second."""
    took = []
    for _ in range(_CLAIMS):
        took.append(client.post())
        time.sleep(0.008)
    return quantile(took, 0.99)


def measure(url: str, folder: Path, given: argparse.Namespace) -> dict[str, object]:
    pool_id = asyncio.run(make_pool(url, "claims"))
    asyncio.run(fill(url, pool_id, 2 * _CLAIMS * given.rounds + 100))
    wanted = list(paths(given.size))
    rows = []
    alone, beside = [], []
    with serve_api(url, folder) as api:
        reader = Reader(api.port)
        for path in wanted:
            reader.walk(path, 2)
            for limit in (100, 500):
                took = reader.walk(f"{path}{'&' if '?' in path else '?'}limit={limit}", given.pages)
                rows.append({"list": path, "limit": limit, "p50": statistics.median(took), "p99": quantile(took, 0.99)})
        client = Client(api.port, "/v1/claim", '{"pool": "claims"}')
        _claim_p99_warm(client)
        for _ in range(given.rounds):
            alone.append(_claim_p99(client))
            with listing(api.port, wanted, _LISTING):
                beside.append(_claim_p99(client))
            print(f"claim p99: {alone[-1]:.2f} ms alone, {beside[-1]:.2f} ms beside {_LISTING} clients that list")
    ratio = statistics.median(after / before for after, before in zip(beside, alone, strict=True))
    return {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "size": given.size,
        "pools": _POOLS,
        "lists_ms": [{**row, "p50": round(float(row["p50"]), 2), "p99": round(float(row["p99"]), 2)} for row in rows],
        "claim_p99_ms": {"alone": [round(v, 2) for v in alone], "beside": [round(v, 2) for v in beside]},
        "claim_p99_ratio": round(ratio, 2),
    }


def _claim_p99_warm(client: Client) -> None:
    for _ in range(20):
        client.post()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000, help="ended claims")
    parser.add_argument("--pages", type=int, default=12, help="pages of each list")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the results")
    given = parser.parse_args()
    with open_database() as (url, folder):
        asyncio.run(make_pools(url, _POOLS, live=_LIVE))
        asyncio.run(make_history(url, given.size, print))
        result = measure(url, folder, given)
    slow = []
    for row in result["lists_ms"]:  # type: ignore[attr-defined]
        print(f"{row['p50']:8.2f} {row['p99']:8.2f} ms  {row['limit']:4}  {row['list']}")
        slow += [row] if row["p50"] > _P50_MS else []
    print(f"claim p99 beside {_LISTING} clients that list: {result['claim_p99_ratio']} of what it is alone")
    if given.write:
        _RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    if slow or float(str(result["claim_p99_ratio"])) > _RATIO:
        sys.exit(1)


if __name__ == "__main__":
    main()
