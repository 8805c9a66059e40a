"""Bodies of answers about the installation."""

from datetime import datetime
from typing import Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.domain.adoption import Step
from app.domain.ownership import Word
from app.store.installation import InstallationRow


class DecisionView(BaseModel):
    """What a decision would do now."""

    refused: str | None = Field(default=None, description="Why it would be refused; null if it would not.")
    does: list[str] = Field(default=[], description="What it does, one sentence each.")


class FoundVmView(BaseModel):
    """A VM in the cluster that carries this service's labels, and what adopting it would do."""

    name: str
    pool: str | None
    installation: str | None = Field(description="The id that it carries; null if it carries none.")
    claim_id: UUID | None
    adopt: Step = Field(
        description=(
            "`keep`: its claim is known and gets a whole lease. `rebuild`: its claim is rebuilt from what it carries. `replace`: it "
            "carries no claim and is removed. `leave`: nothing is done to it."
        )
    )
    why: str


class HeldView(BaseModel):
    """Objects that no row knows and that are not removed until an operator decides."""

    kind: str
    count: int
    detail: str


class InstallationView(BaseModel):
    """The database, whose id all objects carry that it made in the cluster."""

    id: UUID
    created_at: datetime
    namespace: str | None = Field(description="Where its objects are; null if it has made none.")
    instance: str | None
    state: Literal["working", "waiting"] = Field(
        description="`waiting`: nothing is done in the cluster, and no VM is handed out, until an operator has decided."
    )
    reason: str | None = Field(description="Why it waits.")
    since: datetime | None = Field(description="Since when it waits.")
    confirmed_at: datetime | None = Field(
        description="When a worker last found the VMs in the cluster to be its own; null: never."
    )
    held: list[HeldView]
    adopt: DecisionView
    disown: DecisionView
    vms: list[FoundVmView] = Field(description="The VMs that a decision would be about, at most 200.")
    more: int = Field(description="How many more there are.")
    decision: Word | None = Field(description="A decision that the leading worker has not carried out yet.")
    outcome: str | None = Field(description="What the last decision did.")

    @classmethod
    def of(cls, row: InstallationRow) -> Self:
        found = row.findings
        return cls(
            id=UUID(row.identity.id),
            created_at=row.created_at,
            namespace=row.namespace,
            instance=row.instance,
            state="working" if row.waits is None else "waiting",
            reason=row.waits,
            since=row.waits_since,
            confirmed_at=row.confirmed_at,
            held=[
                HeldView(kind=kind, count=len(each["uids"]), detail=each["detail"]) for kind, each in row.held.items()
            ],
            adopt=DecisionView.model_validate(found.get("adopt") or {}),
            disown=DecisionView.model_validate(found.get("disown") or {}),
            vms=[FoundVmView.model_validate(each) for each in found.get("vms") or []],
            more=found.get("more") or 0,
            decision=row.decision,
            outcome=row.outcome,
        )
