"""Bodies of answers about snapshots. The body of `POST /v1/snapshots` is `app.domain.snapshot_specs.SnapshotSpec`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from app.api.pages import Page
from app.api.views import BootSeconds, Milliseconds, View
from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import UNDER_WAY, SnapshotState, TakeState, assess
from app.store.snapshots.rows import SnapshotRow, SnapshotUse, TakeRow


class IncludedVolume(BaseModel):
    """A disk that the snapshot contains."""

    name: str = Field(description="Name of the volume in the VM.", examples=["root"])
    size: str = Field(description="Size of a disk restored from it, as a Kubernetes quantity.", examples=["10Gi"])
    storage_class: str | None
    volume_snapshot: str = Field(description="The VolumeSnapshot in the cluster.")


class ExcludedVolume(BaseModel):
    """A volume of the VM that the snapshot does not contain."""

    name: str
    reason: str | None = Field(description="The reason that KubeVirt gives, if any.")


class TakeView(View):
    """One attempt to take the snapshot: the first one, or a refresh."""

    number: int = Field(description="Increases with each refresh.")
    state: TakeState
    state_since: datetime
    reason: str | None = Field(description="What the take waits for, or why it failed.")
    vm: str | None = Field(description="Name in the cluster of the VM that it is taken from.")
    shape: str | None = Field(description="Fingerprint of the VMs that can start from its disks.")
    bytes: int | None
    memory_bytes: int | None = Field(description="What the kept memory takes; null if there is none.")
    fingerprint: str | None = Field(description="What its memory can be restored with; null if there is none.")
    stale_reason: str | None = Field(description="Why its memory cannot be restored any more; null if it can.")
    created_at: datetime
    ready_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, take: TakeRow) -> Self:
        return cls.from_row(take, vm=take.vm_name)


class SnapshotUseView(BaseModel):
    count: int = Field(description="Number of VMs that were created from the snapshot.")
    last_at: datetime | None
    pools: list[str] = Field(description="Pools whose VMs start from the snapshot.")


class SnapshotView(View):
    """VMs start from the newest ready take; `included`, `excluded`, the bytes, `shape` and `ready_at` describe that one."""

    name: str
    spec: SnapshotSpec
    state: SnapshotState
    reason: str | None = Field(
        description="Why the snapshot is not ready, what it waits for, or why the last refresh failed."
    )
    ready: bool = Field(description="VMs can start from the snapshot now.")
    refreshing: bool = Field(description="A newer take is in progress.")
    included: list[IncludedVolume]
    excluded: list[ExcludedVolume]
    memory: bool = Field(
        description="The snapshot keeps memory: VMs that start from it do not boot, and have exactly its `shape`."
    )
    memory_bytes: int | None = Field(description="What the kept memory takes; null if there is none yet.")
    fingerprint: str | None = Field(
        description="What the memory can be restored with, in the cluster's words; equal for the same QEMU, machine and devices."
    )
    stale_reason: str | None = Field(
        description="Why the memory cannot be restored any more; null if it can. A refresh takes it again."
    )
    bytes: int | None = Field(description="Total size of the disks of a VM that starts from the snapshot.")
    shape: str | None = Field(description="Fingerprint of the VMs that can start from the snapshot.")
    created_at: datetime
    updated_at: datetime
    ready_at: datetime | None
    age_seconds: Milliseconds | None = Field(
        description="Time since the snapshot was taken; null if it is not ready yet."
    )
    used: SnapshotUseView
    boot_seconds: BootSeconds = Field(description="Boot times of VMs that started from the snapshot.")
    takes: list[TakeView] = Field(description="Newest first; only the last few of those that have ended.")

    @classmethod
    def of(cls, row: SnapshotRow, takes: Sequence[TakeRow], use: SnapshotUse, pools: list[str], now: datetime) -> Self:
        deleting = row.deleting_at is not None
        state, reason = assess([take.facts for take in takes], deleting=deleting)
        serving = next((take for take in reversed(takes) if take.state is TakeState.READY), None)
        shown = serving or (takes[-1] if takes else None)
        ready_at = serving.ready_at if serving else None
        return cls.from_row(
            row,
            state=state,
            reason=reason,
            ready=serving is not None and serving.stale_reason is None and not deleting,
            memory_bytes=shown.memory_bytes if shown else None,
            fingerprint=shown.fingerprint if shown else None,
            stale_reason=shown.stale_reason if shown else None,
            refreshing=serving is not None and any(take.state in UNDER_WAY for take in takes),
            included=[{**disk, "name": disk["volume"]} for disk in (shown.disks if shown else ())],
            excluded=shown.excluded if shown else (),
            bytes=shown.bytes if shown else None,
            shape=shown.shape if shown else None,
            ready_at=ready_at,
            age_seconds=(now - ready_at).total_seconds() if ready_at is not None else None,
            used=SnapshotUseView(count=use.used, last_at=use.last_at, pools=pools),
            boot_seconds=BootSeconds(count=use.boots, p50=use.p50, p95=use.p95),
            takes=[TakeView.of(take) for take in reversed(takes)],
        )


class SnapshotPage(Page[SnapshotView]):
    """A page of snapshots."""
