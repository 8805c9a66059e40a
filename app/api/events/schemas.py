"""Bodies of answers about events."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field
from typing_extensions import TypeAliasType

from app.api.pages import Page
from app.api.views import View

EventKind = TypeAliasType("EventKind", Literal["pool", "vm", "claim", "snapshot", "preload"])
EventOrder = TypeAliasType("EventOrder", Literal["oldest", "newest"])


class EventView(View):
    cursor: Annotated[str, BeforeValidator(str)] = Field(
        description="The event's position in the history. A stream accepts it as `Last-Event-ID`.", examples=["7701-42"]
    )
    at: datetime
    type: str = Field(examples=["vm.ready"])
    pool: str | None
    vm_id: UUID | None
    claim_id: UUID | None
    data: dict[str, Any]


class EventPage(Page[EventView]):
    """A page of events."""
