"""What a claim costs: `python -m bench.claims`, or `make bench`.

Embedded Postgres with fsync on, the served application, and the empty FastAPI POST as the yardstick, in interleaved rounds.
Prints each figure with its bound, writes `bench/results/claims.json` and `bench/results/claims.svg`, and exits with 1 where a
bound is missed by more than the spread of its rounds. Trust the ratios; absolute figures are of the machine they were taken on.
On a machine that is busy with something else it does not begin, or writes nothing and exits with 3: such figures say nothing.
"""

import argparse
import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import background_rows, rows
from bench.load import require_wrk
from bench.plot import draw
from bench.quiet import why_busy
from bench.rig import machine, open_database
from bench.rows import Bench, Figure

_NOT_JUDGED = 3
_RESULTS = Path(__file__).parent / "results"
_ROWS = {
    "throughput": rows.throughput,
    "size": rows.size_growth,
    "history": rows.history_growth,
    "waiters": rows.waiters,
    "processes": rows.processes,
    "planning": background_rows.planning,
    "pruning": background_rows.pruning,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=1_000_000, help="what `1 M` stands for")
    parser.add_argument("--row", choices=_ROWS, action="append", help="only these rows; nothing is written then")
    parser.add_argument(
        "--busy", action="store_true", help="measure although other programs are at work; nothing is written"
    )
    given = parser.parse_args()
    require_wrk()
    console = Console()
    disturbed = [why_busy("before the first row")]
    if disturbed[0] and not given.busy:
        console.print(f"{disturbed[0]}: stop them, or measure all the same with --busy")
        sys.exit(_NOT_JUDGED)
    figures: list[Figure] = []
    curves: dict[str, list[tuple[float, float, float]]] = {}
    began = time.monotonic()
    for name in given.row or _ROWS:
        console.rule(name)
        # Each row has a database of its own, so that none runs on what another has left behind.
        with open_database() as (url, folder):
            bench = Bench(url, folder, given.rounds, given.size, lambda line: console.print(line, highlight=False))
            figures += asyncio.run(_ROWS[name](bench))
            curves |= bench.curves
        disturbed.append(why_busy(f"after the row {name!r}"))
    missed = _print(console, figures, time.monotonic() - began)
    if any(disturbed):
        console.print(
            f"{'; '.join(filter(None, disturbed))}. Figures of a busy machine are not judged, and not written."
        )
        sys.exit(_NOT_JUDGED)
    if not given.row:
        _RESULTS.mkdir(exist_ok=True)
        _write(figures, curves, given)
        draw(curves, _RESULTS / "claims.svg")
    sys.exit(1 if missed else 0)


def _print(console: Console, figures: list[Figure], seconds: float) -> bool:
    table = Table("figure", "median", "rounds", "bound", "", title=f"{machine()}, {seconds:.0f} s")
    for figure in figures:
        bound = ""
        if figure.at_least is not None:
            bound = f"at least {figure.at_least:g}"
        elif figure.at_most is not None:
            bound = f"at most {figure.at_most:g}"
        verdict = "" if not bound else ("[red]missed[/red]" if figure.is_missed else "[green]held[/green]")
        unit = "" if figure.unit == "ratio" else f" {figure.unit}"
        rounds = " ".join(_short(value) for value in figure.rounds)
        table.add_row(figure.row, f"{_short(figure.value)}{unit}", rounds, bound, verdict)
    console.print(table)
    return any(figure.is_missed for figure in figures)


def _write(
    figures: list[Figure], curves: dict[str, list[tuple[float, float, float]]], given: argparse.Namespace
) -> None:
    result = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rounds": given.rounds,
        "size": given.size,
        "figures": [
            {
                "row": f.row,
                "unit": f.unit,
                "median": round(f.value, 4),
                "rounds": [round(v, 4) for v in f.rounds],
                "at_least": f.at_least,
                "at_most": f.at_most,
                "held": None if f.at_least is None and f.at_most is None else not f.is_missed,
            }
            for f in figures
        ],
        "curves_ms": {name: [list(point) for point in points] for name, points in curves.items()},
    }
    (_RESULTS / "claims.json").write_text(json.dumps(result, indent=2) + "\n")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
