"""How long each path took on this cluster, measured from the rows: from a bounded number of the latest ones each time.

A VM's time is from its planning until it was first ready. The time of a claim on a warm VM is from its arrival to its binding,
by the database's clock: it is 0 for a claim that found a VM ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from app.domain.paths import StartPath
from app.domain.statistics import BootTimes
from app.store.database import Tx, run

LAST = 200
_CLAIMS_LOOKED_AT = 2000
_FIGURES = """count(*) AS n, percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) AS p95"""
_SECONDS = "greatest(0, extract(epoch FROM asked_at - created_at)) + boot_seconds AS seconds"
_STARTED = ", ".join(f"('{path}')" for path in StartPath if path is not StartPath.POOL)

_OF_SHAPES = text(f"""
    SELECT s.shape, p.path, f.n, f.p50, f.p95 FROM unnest(CAST(:shapes AS text[])) AS s(shape)
    CROSS JOIN (VALUES {_STARTED}) AS p(path) CROSS JOIN LATERAL (
        SELECT {_FIGURES} FROM (
            SELECT {_SECONDS} FROM vm WHERE vm.path = p.path AND vm.shape = s.shape AND boot_seconds IS NOT NULL
            ORDER BY ready_at DESC LIMIT :last) last) f
""")
_OVERALL = text(f"""
    SELECT p.path, f.n, f.p50, f.p95 FROM (VALUES {_STARTED}) AS p(path) CROSS JOIN LATERAL (
        SELECT {_FIGURES} FROM (
            SELECT {_SECONDS} FROM vm WHERE vm.path = p.path AND boot_seconds IS NOT NULL
            ORDER BY ready_at DESC LIMIT :last) last) f
""")

# The latest claims of each pool of a shape, but only those whose VM had that shape: the pool's template may have changed. The
# VM is looked up for each claim, because a join might be planned to read all VMs.
_CLAIMED_OF_SHAPES = text(f"""
    SELECT s.shape, f.n, f.p50, f.p95 FROM unnest(CAST(:shapes AS text[])) AS s(shape) CROSS JOIN LATERAL (
        SELECT {_FIGURES} FROM (
            SELECT extract(epoch FROM c.bound_at - c.created_at) AS seconds FROM (
                SELECT id FROM pool WHERE pool.shape = s.shape AND pool.deleted_at IS NULL AND pool.kind = 'pool' LIMIT 50) p
            CROSS JOIN LATERAL (
                SELECT vm_id, created_at, bound_at FROM claim
                WHERE pool_id = p.id AND claim.path = 'pool' AND bound_at IS NOT NULL ORDER BY id DESC LIMIT :last) c
            WHERE (SELECT v.shape FROM vm v WHERE v.id = c.vm_id) = s.shape) last) f
""")
_CLAIMED = text(f"""
    SELECT {_FIGURES} FROM (
        SELECT extract(epoch FROM bound_at - created_at) AS seconds FROM (
            SELECT path, created_at, bound_at FROM claim ORDER BY id DESC LIMIT :looked_at) newest
        WHERE path = 'pool' AND bound_at IS NOT NULL LIMIT :last) last
""")

# Steps from one shape to the next in the index, so that a shape with a million VMs costs one step.
_SHAPES = text(f"""
    WITH RECURSIVE path(path) AS (VALUES {_STARTED}),
    walk(path, shape, n) AS (
        SELECT path, (SELECT min(shape) FROM vm WHERE vm.path = path.path AND boot_seconds IS NOT NULL AND shape > :after), 1 FROM path
        UNION ALL
        SELECT w.path, (SELECT min(shape) FROM vm WHERE vm.path = w.path AND boot_seconds IS NOT NULL AND shape > w.shape), w.n + 1
        FROM walk w WHERE w.shape IS NOT NULL AND w.n < :limit)
    SELECT DISTINCT shape FROM walk WHERE shape IS NOT NULL ORDER BY shape LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class PathTimes:
    """How long each path took, for one shape or for all. A path that is missing was never measured."""

    by_path: dict[StartPath, BootTimes]

    def of(self, path: StartPath) -> BootTimes:
        return self.by_path.get(path, BootTimes())


async def of_shapes(tx: Tx, shapes: Sequence[str]) -> dict[str, PathTimes]:
    """The times of every path, for each of these shapes."""
    found: dict[str, dict[StartPath, BootTimes]] = {shape: {} for shape in shapes}
    params = {"shapes": list(shapes), "last": LAST}
    for row in await run(tx, _OF_SHAPES, **params):
        found[row.shape][StartPath(row.path)] = _times(row)
    for row in await run(tx, _CLAIMED_OF_SHAPES, **params):
        found[row.shape][StartPath.POOL] = _times(row)
    return {shape: PathTimes(times) for shape, times in found.items()}


async def starts_of_shape(tx: Tx, shape: str) -> PathTimes:
    """The times of one shape, without claims of warm VMs."""
    rows = await run(tx, _OF_SHAPES, shapes=[shape], last=LAST)
    return PathTimes({StartPath(row.path): _times(row) for row in rows})


async def starts_overall(tx: Tx) -> PathTimes:
    """The times over all shapes, without claims of warm VMs."""
    return PathTimes({StartPath(row.path): _times(row) for row in await run(tx, _OVERALL, last=LAST)})


async def overall(tx: Tx) -> PathTimes:
    """The times of every path over all shapes."""
    times = dict((await starts_overall(tx)).by_path)
    claimed = (await run(tx, _CLAIMED, last=LAST, looked_at=_CLAIMS_LOOKED_AT)).one()
    return PathTimes({**times, StartPath.POOL: _times(claimed)})


async def shapes(tx: Tx, *, after: str, limit: int) -> list[str]:
    """Shapes of which a VM was ever ready, in order, after the shape `after`."""
    return [row.shape for row in await run(tx, _SHAPES, after=after, limit=limit)]


def _times(row: Any) -> BootTimes:
    return BootTimes(row.n, row.p50, row.p95)
