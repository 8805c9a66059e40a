"""What each path to a VM costs on this cluster."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.api.dependencies import Services, services
from app.api.pages import After, Page, decode, encode
from app.api.paths.schemas import PathView
from app.api.problems import responses
from app.domain.paths import StartPath
from app.errors import DatabaseUnavailable, InvalidRequest
from app.store import path_times as paths
from app.store.path_times import PathTimes

router = APIRouter(prefix="/v1/paths", tags=["paths"])
_MAX_SHAPES = 100


@router.get(
    "",
    operation_id="listPaths",
    summary="What each path costs",
    response_description="Each path over all shapes, then each path of each shape",
    responses=responses(InvalidRequest, DatabaseUnavailable),
)
async def list_paths(
    svc: Annotated[Services, Depends(services)],
    limit: Annotated[int, Query(ge=1, le=_MAX_SHAPES, description="At most so many shapes.")] = 20,
    after: After = None,
    shape: Annotated[str | None, Query(description="This shape only.", max_length=200, pattern=r"^[^\x00]*$")] = None,
    path: Annotated[StartPath | None, Query(description="This path only.")] = None,
) -> Page[PathView]:
    """Measured on this cluster, from the last starts and claims, and never assumed: where nothing was measured the figures are
    null and `basis` says so. The first page begins with each path over all shapes (`shape` null).
    """
    items: list[PathView] = []
    following = None
    async with svc.db.begin() as tx:
        if shape is not None:
            shapes = [shape]
        else:
            if after is None:
                items += _views(None, await paths.overall(tx), path)
            shapes = await paths.shapes(tx, after=decode(after) or "", limit=limit + 1)
            if len(shapes) > limit:
                shapes = shapes[:limit]
                following = encode(shapes[-1])
        for each, times in (await paths.of_shapes(tx, shapes)).items():
            items += _views(each, times, path)
    return Page(items=items, next=following)


def _views(shape: str | None, times: PathTimes, only: StartPath | None) -> list[PathView]:
    cold = times.of(StartPath.COLD)
    return [PathView.of(path, shape, times.of(path), cold) for path in StartPath if only is None or path is only]
