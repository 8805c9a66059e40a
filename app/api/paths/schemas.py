"""Bodies of answers about start paths."""

from typing import Final, Self

from pydantic import Field

from app.api.pages import Page
from app.api.views import Microseconds, View
from app.domain.paths import EXPECTED_SAVING, StartPath
from app.domain.statistics import BootTimes


class PathView(View):
    """The measured times of one path, for one shape or over all shapes, and how much it saved. Times are in seconds."""

    path: StartPath
    shape: str | None = Field(description="null: all shapes together.")
    count: int = Field(description="Number of recent starts or claims measured.")
    p50: Microseconds | None = Field(description="null: no data.")
    p95: Microseconds | None
    saving: float | None = Field(
        description="Fraction of the median cold start that the path saves, for the same shape or over all shapes. null: no data.",
        examples=[0.62],
    )
    expected: float | None = Field(
        description="The fraction that the design expects. Informational: no decision depends on it.",
        examples=[0.6],
    )
    basis: str = Field(description="What the figures are measured from, or what is missing.")

    @classmethod
    def of(cls, path: StartPath, shape: str | None, times: BootTimes, cold: BootTimes) -> Self:
        return cls.from_row(
            times,
            path=path,
            shape=shape,
            saving=_saving(path, times, cold),
            expected=EXPECTED_SAVING.get(path),
            basis=_basis(path, shape, times, cold),
        )


class PathPage(Page[PathView]):
    """A page of paths."""


_MOST: Final = 0.9999


def _saving(path: StartPath, times: BootTimes, cold: BootTimes) -> float | None:
    if path is StartPath.COLD or times.p50 is None or not cold.p50:
        return None
    return min(round(1 - times.p50 / cold.p50, 4), _MOST)  # a claim takes time, if less than the database's clock shows


def _basis(path: StartPath, shape: str | None, times: BootTimes, cold: BootTimes) -> str:
    of = "over all shapes" if shape is None else "of this shape"
    if not times.count:
        return (
            "no data: no VM has used this path yet"
            if shape is None
            else "no data: no VM of this shape has used this path yet"
        )
    what = (
        f"the last {_counted(times.count, 'claim')} of warm VMs {of}, from the arrival of the claim, and at least what this process "
        "took for its last warm answers"
        if path is StartPath.POOL
        else f"the last {_counted(times.count, 'start')} {of}, from planning the VM until it was ready"
    )
    if path is StartPath.COLD:
        return what
    if not cold.count:
        return f"{what}; there is no cold start {of} to compare with"
    mixed = "; the mix of shapes may differ" if shape is None else ""
    return f"{what}; compared with the last {_counted(cold.count, 'cold start')} {of}{mixed}"


def _counted(count: int, what: str) -> str:
    """`start` for one, `3 starts` for three: to be read after "the last"."""
    return what if count == 1 else f"{count} {what}s"
