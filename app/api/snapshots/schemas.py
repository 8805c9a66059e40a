"""The shapes of answers about snapshots. What a client sends is `app.domain.snapshots.SnapshotSpec`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from app.api.pools.schemas import BootSeconds
from app.domain.snapshots import UNDER_WAY, SnapshotSpec, SnapshotState, TakeState, assess
from app.store.snapshots.rows import SnapshotRow, SnapshotUse, TakeRow

_DIGITS = 3


class IncludedVolume(BaseModel):
    """A disk that is in it."""

    name: str = Field(description="The VM's volume.", examples=["root"])
    size: str = Field(description="What a disk from it takes, as a Kubernetes quantity.", examples=["10Gi"])
    storage_class: str | None
    volume_snapshot: str = Field(description="The VolumeSnapshot in the cluster.")


class ExcludedVolume(BaseModel):
    """A volume of the VM that is not in it."""

    name: str
    reason: str | None = Field(description="KubeVirt's reason, where it gave one.")


class TakeView(BaseModel):
    """One taking of the snapshot: the first, or a refresh."""

    number: int = Field(description="Rises with each refresh.")
    state: TakeState
    state_since: datetime
    reason: str | None = Field(description="What it waits for, or why it failed.")
    vm: str | None = Field(description="The VM that it is taken from, by its name in the cluster.")
    shape: str | None = Field(description="Fingerprint of the VMs that its disks serve.")
    bytes: int | None
    created_at: datetime
    ready_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, take: TakeRow) -> Self:
        return cls(
            number=take.number,
            state=take.state,
            state_since=take.state_since,
            reason=take.reason,
            vm=take.vm_name,
            shape=take.shape,
            bytes=take.bytes,
            created_at=take.created_at,
            ready_at=take.ready_at,
            ended_at=take.ended_at,
        )


class SnapshotUseView(BaseModel):
    count: int = Field(description="VMs that started from it, of those that are still remembered.")
    last_at: datetime | None
    pools: list[str] = Field(description="Pools whose VMs start from it.")


class SnapshotView(BaseModel):
    """Of the newest ready take: `included`, `excluded`, `bytes`, `shape`, `ready_at`. That is the one that VMs start from."""

    name: str
    spec: SnapshotSpec
    state: SnapshotState
    reason: str | None = Field(description="Why it is not ready, what it waits for, or why the last refresh failed.")
    ready: bool = Field(description="Whether VMs can start from it now.")
    refreshing: bool = Field(description="A newer take is under way.")
    included: list[IncludedVolume]
    excluded: list[ExcludedVolume]
    bytes: int | None = Field(description="What its disks take together when a VM starts from it.")
    shape: str | None = Field(description="Fingerprint of the VMs that it serves.")
    created_at: datetime
    updated_at: datetime
    ready_at: datetime | None
    age_seconds: float | None = Field(description="Since it was taken; null: it is not yet.")
    used: SnapshotUseView
    boot_seconds: BootSeconds = Field(description="What VMs that started from it took, from the asking to ready.")
    takes: list[TakeView] = Field(description="Newest first; of those that are over, the last few.")

    @classmethod
    def of(cls, row: SnapshotRow, takes: Sequence[TakeRow], use: SnapshotUse, pools: list[str], now: datetime) -> Self:
        deleting = row.deleting_at is not None
        state, reason = assess([take.facts for take in takes], deleting=deleting)
        serving = next((take for take in reversed(takes) if take.state is TakeState.READY), None)
        told = serving or (takes[-1] if takes else None)
        ready_at = serving.ready_at if serving else None
        return cls(
            name=row.name,
            spec=row.spec,
            state=state,
            reason=reason,
            ready=serving is not None and not deleting,
            refreshing=serving is not None and any(take.state in UNDER_WAY for take in takes),
            included=[
                IncludedVolume(
                    name=disk["volume"],
                    size=disk["size"],
                    storage_class=disk["storage_class"],
                    volume_snapshot=disk["volume_snapshot"],
                )
                for disk in (told.disks if told else ())
            ],
            excluded=[ExcludedVolume(**volume) for volume in (told.excluded if told else ())],
            bytes=told.bytes if told else None,
            shape=told.shape if told else None,
            created_at=row.created_at,
            updated_at=row.updated_at,
            ready_at=ready_at,
            age_seconds=round((now - ready_at).total_seconds(), _DIGITS) if ready_at is not None else None,
            used=SnapshotUseView(count=use.used, last_at=use.last_at, pools=pools),
            boot_seconds=BootSeconds(count=use.boots, p50=_rounded(use.p50), p95=_rounded(use.p95)),
            takes=[TakeView.of(take) for take in reversed(takes)],
        )


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, _DIGITS) if seconds is not None else None
