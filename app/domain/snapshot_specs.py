"""What a snapshot is asked to be. The same shape is the body of `POST /v1/snapshots` and what the store keeps."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationInfo, field_validator, model_validator

from app.domain.pools import Count, PoolName

MAX_KEPT = 20

VmName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253, examples=["ubuntu-template"])
]


class Quiesce(StrEnum):
    """`stop`: the guest is shut down first. `freeze`: the guest keeps running while its agent flushes and freezes the file systems."""

    STOP = "stop"
    FREEZE = "freeze"


class SnapshotSource(BaseModel):
    """An existing VM in the namespace, or a pool, of whose template a new VM is booted. Set exactly one field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"pool": "fast-start-pool"}]}
    )

    vm: VmName | None = Field(default=None, description="Name of an existing VM in the namespace.")
    pool: PoolName | None = Field(
        default=None, description="Boot a VM of this pool's template for the snapshot, and remove it afterwards."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.vm is None) == (self.pool is None):
            raise ValueError("name one vm or one pool, and not both")
        return self


class SnapshotSpec(BaseModel):
    """A snapshot and how to take it. Times are in seconds."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "ubuntu-ready", "source": {"pool": "fast-start-pool"}, "refresh": True}]
        },
    )

    name: PoolName
    source: SnapshotSource
    quiesce: Quiesce | None = Field(
        default=None,
        description=(
            "How to make the disks consistent. Default: `stop` for a VM of a pool, unless its memory is kept. An existing VM is never "
            "stopped: its snapshot is taken in the state that the VM is in."
        ),
    )
    memory: Annotated[bool, Strict()] = Field(
        default=False,
        description=(
            "Keep the VM's memory with its disks, of one moment: VMs that start from the snapshot do not boot, but go on from there, each "
            "with an identity of its own. The VM must run, and is paused for a fraction of a second. Only where the cluster can: "
            "KubeVirt keeps no memory. Whatever is in the memory, secrets too, is in every VM that starts from it."
        ),
    )
    refresh: Annotated[bool, Strict()] = Field(
        default=False,
        description="For a pool: refresh the snapshot when the template changes, or the preload that the pool starts from.",
    )
    keep: Count = Field(default=1, ge=1, le=MAX_KEPT, description="Number of takes to keep; VMs start from the newest.")
    timeout_seconds: Count = Field(
        default=600,
        ge=1,
        le=86_400,
        description="Time limit for the storage. A take that is not ready after this time has failed.",
    )

    @field_validator("quiesce")
    @classmethod
    def _never_stops_a_vm_of_others(cls, value: Quiesce | None, info: ValidationInfo) -> Quiesce | None:
        source = info.data.get("source")
        if value is Quiesce.STOP and source is not None and source.vm is not None:
            raise ValueError(
                "a VM that stands there is not stopped for a snapshot; stop it yourself, or leave this out"
            )
        return value

    @field_validator("memory")
    @classmethod
    def _runs_while_its_memory_is_kept(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's signature
        if value and info.data.get("quiesce") is Quiesce.STOP:
            raise ValueError("a VM that is stopped has no memory to keep; leave quiesce out, or leave memory out")
        return value

    @field_validator("refresh")
    @classmethod
    def _refreshes_from_a_pool(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's signature
        source = info.data.get("source")
        if value and source is not None and source.pool is None:
            raise ValueError("only a snapshot of a pool refreshes itself; POST .../refresh takes a new one of a VM")
        return value

    @property
    def stops(self) -> bool:
        """Whether the VM is stopped before it is taken."""
        return self.source.pool is not None and self.quiesce is not Quiesce.FREEZE and not self.memory
