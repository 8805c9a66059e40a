"""Bodies of answers about VMs."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.events.schemas import EventView
from app.api.pages import Page
from app.api.views import STAGES, Fingerprint, Milliseconds, Stages, View
from app.domain.states import VmState
from app.store.rows import VmRow


class GuestView(BaseModel):
    """What is known of the guest of a VM that has a channel."""

    hello_at: datetime | None = Field(description="When it last said that it has booted; null: it has not yet.")
    conflict: str | None = Field(description="Why nothing is handed over to it; null: it is.")


class VmView(View):
    id: UUID
    pool: str | None = Field(description="null if the VM was created for a claim that describes its VM.")
    name: str
    namespace: str
    state: VmState
    state_since: datetime
    revision: Fingerprint
    uid: str | None = Field(description="UID of the VirtualMachine in the cluster.")
    node: str | None
    addresses: list[str]
    health: str | None = Field(description="What is wrong with the VM; null if the cluster reports no problem.")
    reason: str | None = Field(description="Why the VM failed, was lost or is being released.")
    claim_id: UUID | None
    created_at: datetime
    ready_at: datetime | None
    claimed_at: datetime | None
    ended_at: datetime | None
    boot_seconds: Milliseconds | None
    path: str | None = Field(
        description="How the VM started: memory, snapshot, preload or cold. null before it starts."
    )
    source: str | None = Field(description="The snapshot or preload that the VM started from.")
    shape: str | None = Field(
        description="Fingerprint of what the VM is made from. VMs of one shape are interchangeable."
    )
    stages: Stages = Field(description=STAGES)
    guest: GuestView | None = Field(description="Of a VM whose guest has a channel to the service.")

    @classmethod
    def of(cls, vm: VmRow, *, namespace: str, **more: object) -> Self:
        return cls.from_row(vm, pool=vm.pool if vm.pool_kind == "pool" else None, namespace=namespace, **more)


class VmPage(Page[VmView]):
    """A page of VMs."""


class VmWithHistory(VmView):
    history: list[EventView] = Field(description="The VM's state changes, oldest first.")
