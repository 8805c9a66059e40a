"""The shapes of answers about preloads. What a client sends is `app.domain.preloads.PreloadSpec`."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.domain.preload_lifecycle import PreloadState, PullState, estimate, is_usable
from app.domain.preloads import PreloadSpec
from app.store.preloads.rows import PreloadRow


class PreloadProgress(BaseModel):
    """Of the import or pull under way, or of the last one. null: not known."""

    percent: float | None
    bytes_done: int | None = Field(
        description="The share of the volume's size: CDI tells a percentage, and no bytes.", examples=[4617089843]
    )
    bytes_total: int | None = Field(description="The volume's size.", examples=[10737418240])
    bytes_per_second: float | None = Field(description="Over the last minute.")
    ends_at: datetime | None = Field(description="At the pace of the last minute.")
    phase: str | None = Field(description="CDI's.", examples=["ImportInProgress"])
    restarts: int = Field(description="How often CDI started the importer again.")


class PreloadVolume(BaseModel):
    """The volume that VMs are cloned from now."""

    name: str
    size: str
    storage_class: str | None
    access_modes: list[str]
    volume_mode: str | None
    kind: str = Field(description="A schedule's import may be kept as a snapshot.", examples=["PersistentVolumeClaim"])
    adopted: bool = Field(description="It was there before the preload, and stays when that goes.")
    since: datetime


class PreloadOnNode(BaseModel):
    node: str
    state: PullState
    reason: str | None = Field(description="Why it cannot be pulled, in the kubelet's words.")


class PreloadNodes(BaseModel):
    """Where a container image is. It counts as near once it is on one node."""

    pulled: int
    wanted: int
    items: list[PreloadOnNode]


class PreloadView(BaseModel):
    id: UUID
    name: str
    spec: PreloadSpec
    state: PreloadState
    state_since: datetime
    ready: bool = Field(description="VMs can start from it now; also while it is being refreshed.")
    ready_at: datetime | None = Field(description="Since when what they start from is what it is.")
    reason: str | None = Field(description="What it waits for, or why it failed, in words.")
    last_failure: str | None = Field(description="Why the last try failed, until one succeeds.")
    failures: int = Field(description="How many tries failed in a row.")
    next_try_at: datetime | None = Field(description="Where it failed: when it is tried anew.")
    generation: int = Field(description="Rises with each import: an edit, a refresh, a retry.")
    progress: PreloadProgress
    volume: PreloadVolume | None
    nodes: PreloadNodes | None
    used: int = Field(description="How many VMs were started from it.")
    used_at: datetime | None
    automatic: bool = Field(description="Made by a claim that is to be remembered; deleted when it is unused for long.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, preload: PreloadRow, now: datetime) -> Self:
        status = preload.status
        told = estimate(status.samples, status.bytes_total, now)
        under_way = preload.state in {PreloadState.IMPORTING, PreloadState.PULLING}
        return cls(
            id=preload.id,
            name=preload.name,
            spec=preload.spec,
            state=preload.state,
            state_since=preload.state_since,
            ready=is_usable(preload.spec, status) and preload.deleting_at is None,
            ready_at=preload.ready_at,
            reason=preload.reason,
            last_failure=status.failure,
            failures=preload.attempts,
            next_try_at=preload.due_at if preload.state is PreloadState.FAILED else None,
            generation=preload.generation,
            progress=PreloadProgress(
                percent=told.percent,
                bytes_done=told.bytes_done,
                bytes_total=status.bytes_total,
                bytes_per_second=told.bytes_per_second if under_way else None,
                ends_at=told.ends_at if under_way else None,
                phase=status.phase or None,
                restarts=status.restarts,
            ),
            volume=_volume(preload),
            nodes=_nodes(preload),
            used=preload.uses,
            used_at=preload.used_at,
            automatic=preload.automatic,
            created_at=preload.created_at,
            updated_at=preload.updated_at,
        )


def _volume(preload: PreloadRow) -> PreloadVolume | None:
    serving = preload.status.serving
    if serving is None:
        return None
    volume = serving.volume
    return PreloadVolume(
        name=volume.claim,
        size=volume.size,
        storage_class=volume.storage_class,
        access_modes=list(volume.access_modes),
        volume_mode=volume.volume_mode,
        kind="VolumeSnapshot" if volume.is_snapshot else "PersistentVolumeClaim",
        adopted=serving.adopted,
        since=serving.since,
    )


def _nodes(preload: PreloadRow) -> PreloadNodes | None:
    if not preload.spec.is_container:
        return None
    status = preload.status
    on = status.on
    return PreloadNodes(
        pulled=on.pulled if on else 0,
        wanted=max(0, on.wanted) if on else len(status.nodes),
        items=[PreloadOnNode(node=each.node, state=each.state, reason=each.reason) for each in status.nodes],
    )
