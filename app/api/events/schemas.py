"""Bodies of answers about events."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator, Field

from app.api.views import View


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
