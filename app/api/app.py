"""The HTTP application: its routes, and what the OpenAPI document says at the top."""

from importlib import metadata

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import Receive, Scope, Send

from app.api import document, health, problems
from app.api.claims import batch
from app.api.claims import routes as claims
from app.api.claims.fast_path import route as claim_route
from app.api.claims.fast_path.route import ClaimRoute
from app.api.dependencies import Services
from app.api.edge import Edge
from app.api.events import routes as events
from app.api.guests.route import MAX_BODY_BYTES, PREFIX, GuestRoute
from app.api.installation import routes as installation
from app.api.manifests import routes as manifests
from app.api.nodes import routes as nodes
from app.api.paths import routes as paths
from app.api.placements import routes as placements
from app.api.pools import routes as pools
from app.api.preloads import routes as preloads
from app.api.queries import check_query
from app.api.snapshots import routes as snapshots
from app.api.vms import console
from app.api.vms import routes as vms
from app.config import Role
from app.errors import NotFound

_DESCRIPTION = """
1. `PUT /v1/pools/{name}` sets which KubeVirt VMs to keep warm, and how many.
2. `POST /v1/claim` hands out one of them in milliseconds. It is yours until its lease expires: renew the claim, or release it.
3. The pool then refills. `GET /v1/pools/{name}` shows its status, and `GET /v1/events` shows what happens.
4. A claim may describe its VM instead (`vm`). It is then served by the fastest path: a warm pool, kept memory, a snapshot, a preloaded image or a
   cold start. The answer names the path and the reason, and `GET /v1/paths` shows how long each path takes on this cluster.

The forms below are filled in: execute PUT, then claim. Every error is an RFC 9457 problem with a stable `code`.
If the service was started with a token, enter it under Authorize. If not, every route is open, and the locks mean nothing.
"""
_TAGS = [
    {"name": "pools", "description": "Which VMs to keep warm, and how many."},
    {"name": "snapshots", "description": "Disks of booted VMs, from which other VMs start."},
    {"name": "preloads", "description": "Images that are imported, or pulled onto nodes, before a VM needs them."},
    {"name": "claims", "description": "Claim a VM, keep it, release it."},
    {
        "name": "paths",
        "description": "How long each path to a VM takes here: a warm pool, kept memory, a snapshot, a preloaded image, a cold start.",
    },
    {"name": "vms", "description": "Each VM and its history."},
    {"name": "nodes", "description": "Where VMs can run, what is free there, and whether a VM fits."},
    {"name": "manifests", "description": "Kubernetes-style YAML, applied as pools, snapshots, preloads and claims."},
    {"name": "events", "description": "What happened, as a page or as a stream."},
    {
        "name": "installation",
        "description": "Whose the VMs in the cluster are: after a restore of the database, or beside another service.",
    },
    {"name": "health", "description": "Whether the service can do its work."},
]
_ASKING = 500
_ROUTES = (
    *(claim_route, batch, claims, pools, preloads, snapshots),
    *(paths, vms, console, nodes, placements, manifests, events, installation),
)
"""In the order in which the OpenAPI document lists them."""


def create_app(role: Role = Role.ALL) -> FastAPI:
    """The application without its services: enough for the OpenAPI document."""
    app: FastAPI = FastAPIOffline(
        title="Emberpool",
        version=metadata.version("emberpool"),
        summary="VMs that are ready before they are asked for.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        redoc_url=None,
        redirect_slashes=False,
        swagger_ui_parameters={"displayRequestDuration": True, "tryItOutEnabled": True, "defaultModelsExpandDepth": 0},
    )
    if role is not Role.WORKER:
        for routes in _ROUTES:
            app.include_router(routes.router, dependencies=[Depends(check_query)])
    app.include_router(health.router)
    problems.install(app)
    document.install(app)
    return app


def create_edge(services: Services) -> Edge:
    """The application with its services, behind the checks that every request passes first; claims take a shorter way."""
    settings = services.settings
    app = create_app(settings.role)
    app.state.services = services
    serves = settings.role is not Role.WORKER
    claim = ClaimRoute(services) if serves else None
    guests = GuestRoute(services.guests) if serves and settings.guest_port is None else None
    return Edge(app, claim=claim, guests=guests, settings=settings)


def create_guest_edge(services: Services) -> Edge:
    """What the port of guests serves: their paths, and nothing else. Each that waits has a connection, and a few ask."""
    settings = services.settings
    bounds = {"max_connections": settings.max_waiting_guests + _ASKING, "max_body_bytes": MAX_BODY_BYTES}
    return Edge(_nothing, claim=None, guests=GuestRoute(services.guests), settings=settings.model_copy(update=bounds))


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    error = NotFound(f"this port is for guests, whose paths begin with {PREFIX}; the API has another port")
    await problems.render(error, instance=scope["path"])(scope, receive, send)
