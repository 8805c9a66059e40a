"""What routes depend on: the services that `bootstrap` builds and the application carries."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from app.api.events.tail import EventTail
from app.api.lists import Lists
from app.background import PartHealth
from app.compute.gateway import Gateway
from app.config import Settings
from app.services.claims.service import ClaimService
from app.services.guests.service import GuestService
from app.services.handovers.outcomes import HandoverOutcomes
from app.services.manifests.service import ManifestService
from app.services.paths.selector import PathSelector
from app.services.vms.console import Consoles
from app.store.database import Database


@dataclass(frozen=True, slots=True)
class Services:
    """`probe`: a connection for readiness alone. `lists`: connections for lists alone. `background`: of each part that runs beside the requests. `stopping` is set when the process is asked to stop; requests that wait and streams end then."""

    settings: Settings
    db: Database
    probe: Database
    lists: Lists
    background: Sequence[PartHealth]
    gateway: Gateway
    claim_service: ClaimService
    path_selector: PathSelector
    handovers: HandoverOutcomes
    guests: GuestService
    tail: EventTail
    consoles: Consoles
    manifests: ManifestService
    stopping: asyncio.Event


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Svc = Annotated[Services, Depends(services)]
"""As the type of a route's parameter: the services of the application."""
