"""The chart: bars in proportion, nothing rounded up to all of it, and a width for every terminal."""

import io

import pytest
from rich.console import Console

from app.cli.demo.chart import Bar, draw

COLD = {"queue": 0.1, "disk": 20.0, "schedule": 0.0, "image": 1.0, "start": 1.0, "boot": 7.0, "agent": 0.9}
WARM_DISK = {"queue": 0.02, "disk": 0.0, "schedule": 1.0, "image": 1.0, "start": None, "boot": 3.0, "agent": 1.0}


def bar(path: str, seconds: float, stages: dict | None) -> Bar:
    return Bar(path, seconds, {"timings": {"stages": stages}})


BARS = [bar("cold", 30.0, COLD), bar("snapshot", 6.0, WARM_DISK), bar("pool", 0.004, None)]
COSTS = [
    {"path": "pool", "saving": 1.0, "expected": 0.8},
    {"path": "snapshot", "saving": 0.79999, "expected": 0.7},
    {"path": "preload", "saving": None, "expected": 0.6},
    {"path": "cold", "saving": None, "expected": None},
]


def drawn(width: int, bars: list[Bar] = BARS) -> list[str]:
    told = io.StringIO()
    Console(file=told, width=width).print(draw(bars, COSTS, width=width))
    return [line.rstrip() for line in told.getvalue().splitlines()]


def filling(line: str) -> str:
    return line.rsplit("  ", maxsplit=1)[-1]


def test_a_bar_is_as_long_as_its_time_and_each_stage_has_its_part():
    lines = drawn(81)
    cold = filling(next(line for line in lines if line.startswith("  cold")))
    snapshot = filling(next(line for line in lines if line.startswith("  snapshot")))
    assert (len(cold), len(snapshot)) == (60, 12)
    assert cold == "▒" * 40 + "▓" * 2 + "=" * 2 + "█" * 14 + "░" * 2
    assert snapshot == "//▓▓██████░░"


def test_stages_are_told_beside_unless_they_are_nothing():
    text = "\n".join(drawn(81))
    assert "· queue 0.1  ▒ disk 20.0  ▓ image 1.0  = start 1.0" in text
    assert "/ schedule 1.0  ▓ image 1.0  █ boot 3.0  ░ agent 1.0" in text
    assert "disk 0.0" not in text


def test_savings_are_told_beside_what_is_expected_and_never_rounded_up():
    text = "\n".join(drawn(81))
    assert "saves 79.9 % (target: 70 %)" in text
    assert "saves over 99.9 % (target: 80 %)" in text
    assert text.count("target") == 2


def test_what_was_not_measured_has_no_figure():
    lines = drawn(81, [bar("cold", 30.0, COLD), bar("preload", 12.0, None)])
    assert "no data (target: 60 %)" in lines[-1]


@pytest.mark.parametrize("width", [200, 80, 60, 40, 30])
def test_every_terminal_gets_every_path(width):
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == [
        "cold",
        "snapshot",
        "pool",
    ]
