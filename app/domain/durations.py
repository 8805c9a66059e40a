"""Durations in words."""

from typing import Final

_UNITS: Final = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def in_words(seconds: int) -> str:
    """In the largest unit that leaves no rest: `1 day`, `36 hours`, `90 seconds`."""
    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
    count = seconds // size
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
