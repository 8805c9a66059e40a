"""The shape of what each path costs."""

from typing import Self

from pydantic import BaseModel, Field

from app.domain.paths import EXPECTED_SAVING, StartPath
from app.domain.statistics import BootTimes


class PathView(BaseModel):
    """One path for one shape, or over all of them: what it took here, and what it saved. Times are in seconds."""

    path: StartPath
    shape: str | None = Field(description="null: over all shapes.")
    count: int = Field(description="How many of the last ones this is taken from.")
    p50: float | None = Field(description="null: no data.")
    p95: float | None
    saving: float | None = Field(
        description="Share of a cold start's median that is saved, measured for the same shape, or over all. null: no data.",
        examples=[0.62],
    )
    expected: float | None = Field(
        description="The share that the project's mission expects. Only shown: nothing is decided by it.",
        examples=[0.6],
    )
    basis: str = Field(description="What it is measured from, or what is missing.")

    @classmethod
    def of(cls, path: StartPath, shape: str | None, times: BootTimes, cold: BootTimes) -> Self:
        return cls(
            path=path,
            shape=shape,
            count=times.count,
            p50=_round(times.p50),
            p95=_round(times.p95),
            saving=_saving(path, times, cold),
            expected=EXPECTED_SAVING.get(path),
            basis=_basis(path, shape, times, cold),
        )


def _saving(path: StartPath, times: BootTimes, cold: BootTimes) -> float | None:
    if path is StartPath.COLD or times.p50 is None or not cold.p50:
        return None
    return round(1 - times.p50 / cold.p50, 4)


def _basis(path: StartPath, shape: str | None, times: BootTimes, cold: BootTimes) -> str:
    of = "over all shapes" if shape is None else "of this shape"
    if not times.count:
        return f"no data: nothing {of} was served by this path yet"
    what = (
        f"the last {times.count} claims of warm VMs {of}, from their arrival in the database"
        if path is StartPath.POOL
        else f"the last {times.count} starts {of}, from the plan to the first ready"
    )
    if path is StartPath.COLD:
        return what
    if not cold.count:
        return f"{what}; no data on a cold start {of} to compare with"
    mixed = "; shapes differ, so that their mix does too" if shape is None else ""
    return f"{what}; against the last {cold.count} cold starts {of}{mixed}"


def _round(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None
