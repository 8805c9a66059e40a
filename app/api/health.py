"""Whether this process lives, and whether it can do its work; and its figures."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from app.api.dependencies import Services, services
from app.errors import DatabaseUnavailable
from app.store import migrations as migrating
from app.store import watch_state as watches
from app.store.watch_state import WatchState

router = APIRouter(tags=["health"])
Svc = Annotated[Services, Depends(services)]
_METRICS_EXAMPLE = 'emberpool_claim_seconds_bucket{le="0.005",outcome="warm"} 42.0\n'


class Live(BaseModel):
    status: Literal["ok"] = "ok"


class Check(BaseModel):
    ok: bool
    detail: str
    age_seconds: float | None = Field(default=None, description="Since the last sign of life.")


class Readiness(BaseModel):
    """`degraded`: warm VMs can be claimed, but the picture of the cluster is old or missing. `unready`: send nothing here."""

    status: Literal["ready", "degraded", "unready"]
    database: Check
    migrations: Check
    cluster_watch: Check


@router.get("/healthz", operation_id="getHealth", summary="Is the process alive", response_description="It answers")
async def get_health() -> Live:
    """Asks nothing of the database or the cluster: a process is not to be restarted for what ails them."""
    return Live()


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can it serve: database, migrations, age of the cluster watch",
    response_description="Requests can be sent here; `degraded` says that the cluster is not seen at the moment",
    responses={503: {"model": Readiness, "description": "The database is away, or was not migrated"}},
)
async def get_readiness(svc: Svc, response: Response) -> Readiness:
    """A cluster that is away does not make it unready: warm VMs are claimed without the cluster."""
    try:
        async with svc.db.begin() as tx:
            revision = await migrating.current(tx)
            watch = await watches.get(tx, watches.VMS) if revision is not None else None
    except DatabaseUnavailable as error:
        response.status_code = 503
        away = Check(ok=False, detail=error.detail)
        unknown = Check(ok=False, detail="not known while the database is away")
        return Readiness(status="unready", database=away, migrations=unknown, cluster_watch=unknown)
    head = migrating.head()
    # Revisions are numbers of one width. One that is ahead of us is a newer program's, which keeps what we need (migrations
    # expand before they contract), so that the replicas of a rolling update serve until they are replaced.
    migrated = revision is not None and revision >= head
    migrations = Check(
        ok=migrated,
        detail=f"at {revision or 'nothing'}, this program needs {head}"
        + ("" if migrated else ": run `emberpool migrate`"),
    )
    cluster = _judge_watch(watch, svc.settings.relist_seconds)
    if not migrations.ok:
        response.status_code = 503
    status: Literal["ready", "degraded", "unready"] = "unready"
    if migrations.ok:
        status = "ready" if cluster.ok else "degraded"
    return Readiness(
        status=status, database=Check(ok=True, detail="answers"), migrations=migrations, cluster_watch=cluster
    )


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Figures of this process, for Prometheus",
    response_class=Response,
    response_description="Text in Prometheus' format",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRICS_EXAMPLE}}}},
)
async def get_metrics() -> Response:
    """Each process counts for itself: scrape every replica, API and worker."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _judge_watch(watch: WatchState | None, relist_seconds: float) -> Check:
    if watch is None or watch.list_age_seconds is None:
        return Check(ok=False, detail="the cluster has not been listed yet; does a worker run?")
    age = round(watch.list_age_seconds, 1)
    if watch.broken_since is not None:
        return Check(
            ok=False, detail=f"broken since {watch.broken_since.isoformat()}: {watch.broken_reason}", age_seconds=age
        )
    if age > 2 * relist_seconds + 30:
        return Check(
            ok=False, detail=f"last listed {age:.0f} s ago by {watch.holder}; does a worker run?", age_seconds=age
        )
    return Check(ok=True, detail=f"watched by {watch.holder}", age_seconds=age)
