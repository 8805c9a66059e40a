"""What the views of several resources share. A view is the body of an answer."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypeAliasType

from app.domain.stages import in_order

Milliseconds = Annotated[float, AfterValidator(lambda seconds: round(seconds, 3))]
"""Seconds, rounded to milliseconds."""
Microseconds = Annotated[float, AfterValidator(lambda seconds: round(seconds, 6))]
"""Seconds, rounded to microseconds."""
Fingerprint = Annotated[str, AfterValidator(lambda fingerprint: fingerprint[:12])]
"""The first digits of a fingerprint, which are enough to tell two of them apart."""
StageSeconds = TypeAliasType("StageSeconds", dict[str, float | None])
Stages = Annotated[
    StageSeconds | None,
    BeforeValidator(lambda stored: in_order(stored) if stored else None),
    Field(
        examples=[{"queue": 0.021, "disk": 0.0, "schedule": 0.0, "image": 2.0, "start": 1.0, "boot": 9.0, "agent": 0.4}]
    ),
]
STAGES = (
    "Seconds by stage of the start; each stage begins when the previous one ends. `queue` ends when the service asks the cluster "
    "for the VM; `disk` when its DataVolumes exist, so that its instance can be created; `schedule` when its pod has a node; "
    "`image` when the pod runs, after pulling its images; `start` when the domain runs; `boot` when the guest agent connects or, "
    "without an agent, when the VM is ready; `agent` when the VM is ready. A stage is null if the cluster reports no time for it. "
    "The cluster reports whole seconds, so the stages may not add up exactly. The whole object is null for a moment after the VM "
    "becomes ready, until its pod has been read."
)


class View(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def from_row(cls, row: object, **changed: object) -> Self:
        """A view with the row's attributes of the same names, except for those in `changed`."""
        return cls.model_validate(
            {name: getattr(row, name) for name in cls.model_fields if name not in changed} | changed
        )


class BootSeconds(View):
    """Time from requesting a VM from the cluster until it was ready, measured on this cluster. null: none measured yet."""

    count: int = Field(description="Number of boots measured.")
    p50: Milliseconds | None
    p95: Milliseconds | None
