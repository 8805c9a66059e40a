"""What the routes need, put together in `wiring` and carried by the application."""

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from app.api.tail import EventTail
from app.cluster.gateway import Gateway
from app.config import Settings
from app.store.database import Database
from app.usecases.choosing import Chooser
from app.usecases.claiming import ClaimDesk
from app.usecases.manifests import ManifestDesk


@dataclass(frozen=True, slots=True)
class Services:
    """`stopping` is set when the process is told to stop: what waits or streams ends then."""

    settings: Settings
    db: Database
    gateway: Gateway
    desk: ClaimDesk
    chooser: Chooser
    tail: EventTail
    manifests: ManifestDesk
    stopping: asyncio.Event


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
