"""The table of snapshots tells what the memory of each takes."""

import pytest

from app.cli.client.listings import LISTINGS, Kind


def cell(snapshot):
    (column,) = [each for each in LISTINGS[Kind.SNAPSHOTS].columns if each.name == "MEMORY"]
    return column.cell(snapshot)


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        ({"memory": True, "memory_bytes": 64 * 1024**2}, "64.0MiB"),
        ({"memory": True, "memory_bytes": None}, "-"),
        ({"memory": False, "memory_bytes": None}, "none"),
        ({}, "none"),
    ],
)
def test_what_it_takes_or_that_there_is_none(snapshot, expected):
    assert cell(snapshot) == expected
