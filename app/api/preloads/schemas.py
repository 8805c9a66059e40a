"""Bodies of answers about preloads. The body of `PUT /v1/preloads/{name}` is `app.domain.preloads.PreloadSpec`."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.pages import Page
from app.api.views import View
from app.domain.preload_lifecycle import PreloadState, PullState, estimate, is_usable
from app.domain.preloads import PreloadSpec
from app.store.preloads.rows import PreloadRow


class PreloadProgress(BaseModel):
    """Progress of the current import or pull, or of the last one. null: unknown."""

    percent: float | None
    bytes_done: int | None = Field(
        description="Computed from the size of the volume, because CDI reports only a percentage.",
        examples=[4617089843],
    )
    bytes_total: int | None = Field(description="Size of the volume.", examples=[10737418240])
    bytes_per_second: float | None = Field(description="Over the last minute.")
    ends_at: datetime | None = Field(description="Estimated from the speed of the last minute.")
    phase: str | None = Field(description="Phase reported by CDI.", examples=["ImportInProgress"])
    restarts: int = Field(description="How often CDI restarted the importer.")


class PreloadVolume(View):
    """The volume from which the disks of VMs are cloned."""

    name: str
    size: str
    storage_class: str | None
    access_modes: list[str]
    volume_mode: str | None
    kind: str = Field(
        description="CDI may store the import of a schedule as a snapshot.", examples=["PersistentVolumeClaim"]
    )
    adopted: bool = Field(description="The volume existed before the preload and is kept when the preload is deleted.")
    since: datetime


class PreloadOnNode(View):
    node: str
    state: PullState
    reason: str | None = Field(description="Why the kubelet cannot pull the image.")


class PreloadNodes(BaseModel):
    """The nodes that have the container image. The preload is ready when the first of them has it."""

    pulled: int
    desired: int
    items: list[PreloadOnNode]


class PreloadView(View):
    id: UUID
    name: str
    spec: PreloadSpec
    state: PreloadState
    state_since: datetime
    ready: bool = Field(description="VMs can start from the preload now, even during a refresh.")
    ready_at: datetime | None = Field(description="When the current image became ready.")
    reason: str | None = Field(description="What the preload waits for, or why it failed.")
    last_failure: str | None = Field(description="Why the last attempt failed; null again after a success.")
    failures: int = Field(description="Number of consecutive failed attempts.")
    next_try_at: datetime | None = Field(description="When a failed preload is tried again.")
    generation: int = Field(description="Increases with each import: after an edit, a refresh or a retry.")
    progress: PreloadProgress
    volume: PreloadVolume | None
    nodes: PreloadNodes | None
    used: int = Field(description="Number of VMs that started from the preload.")
    used_at: datetime | None
    automatic: bool = Field(
        description="Created by a claim with `remember`; deleted when it is unused for a long time."
    )
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, preload: PreloadRow, now: datetime) -> Self:
        status = preload.status
        estimated = estimate(status.samples, status.bytes_total, now)
        under_way = preload.state in {PreloadState.IMPORTING, PreloadState.PULLING}
        return cls.from_row(
            preload,
            ready=is_usable(preload.spec, status) and preload.deleting_at is None,
            last_failure=status.failure,
            failures=preload.attempts,
            next_try_at=preload.due_at if preload.state is PreloadState.FAILED else None,
            progress=PreloadProgress(
                percent=estimated.percent,
                bytes_done=estimated.bytes_done,
                bytes_total=status.bytes_total,
                bytes_per_second=estimated.bytes_per_second if under_way else None,
                ends_at=estimated.ends_at if under_way else None,
                phase=status.phase or None,
                restarts=status.restarts,
            ),
            volume=_volume(preload),
            nodes=_nodes(preload),
            used=preload.uses,
        )


class PreloadPage(Page[PreloadView]):
    """A page of preloads."""


def _volume(preload: PreloadRow) -> PreloadVolume | None:
    serving = preload.status.serving
    if serving is None:
        return None
    volume = serving.volume
    return PreloadVolume.from_row(
        volume,
        name=volume.claim,
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
        desired=max(0, on.wanted) if on else len(status.nodes),
        items=[PreloadOnNode.from_row(node) for node in status.nodes],
    )
