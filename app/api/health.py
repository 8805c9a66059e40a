"""Liveness, readiness and metrics of this process."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from app.api.dependencies import Svc
from app.background import PartHealth
from app.errors import DatabaseUnavailable
from app.gate import Gate
from app.store import installation, leases
from app.store import migrations as migrating
from app.store import watch_state as watches
from app.store.pools import put_off
from app.store.watch_state import WatchState

router = APIRouter(tags=["health"])
_WAITING_SECONDS = 5.0
_METRICS_EXAMPLE = 'emberpool_claim_seconds_bucket{le="0.005",outcome="warm"} 42.0\n'


class Live(BaseModel):
    status: Literal["ok"] = "ok"


class Check(BaseModel):
    ok: bool
    detail: str
    age_seconds: float | None = Field(default=None, description="Time since the watch last reported.")


class Readiness(BaseModel):
    """`degraded`: warm VMs can be claimed, but the data about the cluster is stale or missing, or work in the background waits; or
    (`installation`) no VM is handed out until an operator has decided whose they are, and the API tells what to do.
    `unready`: send no requests.
    """

    status: Literal["ready", "degraded", "unready"]
    database: Check
    migrations: Check
    background: Check
    installation: Check = Field(description="Whether the VMs in the cluster are this database's.")
    cluster_watch: Check
    creates: Check = Field(description="Whether the cluster takes VMs: not ok while no create of any pool succeeds.")


@router.get(
    "/healthz",
    operation_id="getHealth",
    summary="Check whether the process is alive",
    response_description="It is alive",
)
async def get_health() -> Live:
    """Does not check the database or the cluster, because restarting the process would not repair them."""
    return Live()


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Check whether the process can serve requests",
    response_description="The process can serve requests; `degraded` means that the cluster is not observed, or takes no VMs",
    responses={503: {"model": Readiness, "description": "The database is not available or not migrated"}},
)
async def get_readiness(svc: Svc, response: Response) -> Readiness:
    """Checks that the database can be read and written, its migrations, what runs in the background, and the age of the cluster
    watch. The process is ready even if the cluster is unavailable, because claims of warm VMs do not need the cluster.
    """
    background = _judge_background(svc.background)
    try:
        async with svc.probe.begin() as tx:
            schema = await migrating.read_schema(tx)
            watch = await watches.get(tx, watches.VMS) if schema.revision is not None else None
            off = await put_off.of_all(tx) if schema.problem() is None else None
            held = (await installation.read(tx)).held if schema.problem() is None else {}
            if schema.revision is not None:
                await leases.try_write(tx)
    except DatabaseUnavailable as error:
        response.status_code = 503
        unavailable = Check(ok=False, detail=error.detail)
        unknown = Check(ok=False, detail="unknown while the database is not available")
        return Readiness(
            status="unready",
            database=unavailable,
            migrations=unknown,
            background=background,
            installation=_judge_installation(svc.claim_service.gate, {}),
            cluster_watch=unknown,
            creates=unknown,
        )
    problem = schema.problem()
    migrations = Check(
        ok=problem is None, detail=problem or f"at {schema.revision}, this program needs {migrating.head()}"
    )
    cluster = _judge_watch(watch, svc.settings.relist_seconds)
    if not migrations.ok:
        response.status_code = 503
    installed = _judge_installation(svc.claim_service.gate, held)
    status: Literal["ready", "degraded", "unready"] = "unready"
    if migrations.ok:
        status = "ready" if cluster.ok and background.ok and installed.ok and off is None else "degraded"
    return Readiness(
        status=status,
        database=Check(ok=True, detail="can be read and written"),
        migrations=migrations,
        background=background,
        installation=installed,
        cluster_watch=cluster,
        creates=Check(ok=off is None, detail=str(off or "nothing puts them off")),
    )


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Read the metrics of this process",
    response_class=Response,
    response_description="Metrics in the text format of Prometheus",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRICS_EXAMPLE}}}},
)
async def get_metrics() -> Response:
    """Each process has its own metrics: scrape every replica, API and worker."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _judge_background(parts: Sequence[PartHealth]) -> Check:
    """A part whose attempts have failed for a while. One statement that was cancelled is no reason to tell anybody."""
    waiting = [part for part in parts if part.failing_seconds > _WAITING_SECONDS]
    if not waiting:
        return Check(ok=True, detail="works")
    names = ", ".join(part.part for part in waiting)
    return Check(
        ok=False, detail=f"waiting for {max(p.failing_seconds for p in waiting):.0f} s ({names}): {waiting[0].reason}"
    )


def _judge_installation(gate: Gate, held: dict[str, dict[str, Any]]) -> Check:
    reason = gate.claims or gate.work
    if reason is not None:
        return Check(ok=False, detail=reason)
    if held:
        told = "; ".join(f"{kind}: {each['detail']}" for kind, each in sorted(held.items()))
        return Check(
            ok=False, detail=f"objects that no row knows wait for an operator (emberpool adopt --dry-run): {told}"
        )
    return Check(ok=True, detail="the VMs in the cluster are this database's")


def _judge_watch(watch: WatchState | None, relist_seconds: float) -> Check:
    if watch is None or watch.list_age_seconds is None:
        why = watch.broken_reason if watch is not None else None
        if why is not None:
            return Check(ok=False, detail=f"the cluster has never been listed: {why}")
        return Check(ok=False, detail="the cluster has not been listed yet; check that a worker is running")
    age = round(watch.list_age_seconds, 1)
    if watch.broken_since is not None:
        return Check(
            ok=False, detail=f"broken since {watch.broken_since.isoformat()}: {watch.broken_reason}", age_seconds=age
        )
    if age > 2 * relist_seconds + 30:
        return Check(
            ok=False,
            detail=f"last listed {age:.0f} s ago by {watch.holder}; check that a worker is running",
            age_seconds=age,
        )
    return Check(ok=True, detail=f"watched by {watch.holder}", age_seconds=age)
