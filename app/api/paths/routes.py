"""How long each start path takes on this cluster."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from app.api.claims.fast_path import route as claim_route
from app.api.dependencies import Svc
from app.api.pages import After, cut, decode
from app.api.paths.schemas import PathPage, PathView
from app.api.problems import responses
from app.domain.paths import StartPath
from app.domain.statistics import BootTimes
from app.errors import TooManyLists
from app.store import path_times as paths
from app.store.path_times import PathTimes

router = APIRouter(prefix="/v1/paths", tags=["paths"])
_MAX_SHAPES = 100


@router.get(
    "",
    operation_id="listPaths",
    summary="List start paths and how long they take",
    response_description="Each path over all shapes, then each path for each shape",
    responses=responses(TooManyLists),
)
async def list_paths(
    svc: Svc,
    limit: Annotated[int, Query(ge=1, le=_MAX_SHAPES, description="Maximum number of shapes.")] = 20,
    after: After = None,
    shape: Annotated[str | None, Query(description="Only this shape.", max_length=200)] = None,
    path: Annotated[StartPath | None, Query(description="Only this path.")] = None,
) -> PathPage:
    """Measured from the last starts and claims on this cluster. If nothing was measured, the figures are null and `basis` says so.
    The first page begins with each path over all shapes (`shape` is null).
    """
    items: list[PathView] = []
    shapes: Sequence[str]
    async with svc.lists.turn() as tx:
        if shape is not None:
            shapes, following = [shape], None
        else:
            if after is None:
                items += _views(None, await paths.overall(tx), path)
            found = await paths.shapes(tx, after=decode(after) or "", limit=limit + 1)
            shapes, following = cut(found, limit, str)
        for each, times in (await paths.of_shapes(tx, shapes)).items():
            items += _views(each, times, path)
    return PathPage(items=items, next=following)


def _views(shape: str | None, times: PathTimes, only: StartPath | None) -> list[PathView]:
    cold = times.of(StartPath.COLD)
    return [PathView.of(path, shape, _served(path, times), cold) for path in StartPath if only is None or path is only]


def _served(path: StartPath, times: PathTimes) -> BootTimes:
    """The times of a path; of claims of warm VMs at least what the service takes for one."""
    found = times.of(path)
    if path is not StartPath.POOL or found.p50 is None or found.p95 is None or not claim_route.WARM_SECONDS:
        return found
    served = sorted(claim_route.WARM_SECONDS)
    p50, p95 = (served[int(share * (len(served) - 1))] for share in (0.5, 0.95))
    return BootTimes(found.count, max(found.p50, p50), max(found.p95, p95))
