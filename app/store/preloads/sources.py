"""Preloads as sources of VMs: what VMs can start from now, and which images have a preload."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from app.domain.paths import FromImage, FromVolume, ImageKind, ImageRef
from app.store.database import Tx, run

# The status says what VMs start from. The state is that of the import, which may be one of a newer generation.
_BY_NAME = text("""
    SELECT name, image_kind, image, status, state, reason FROM preload
    WHERE name = :name AND deleting_at IS NULL AND deleted_at IS NULL
""")
_USABLE = """
    p.ready_at IS NOT NULL AND p.deleting_at IS NULL AND p.deleted_at IS NULL
    AND (p.status ? 'volume' OR coalesce((p.status->'on'->>'pulled')::int, 0) > 0)
"""
_FOR_IMAGES = text(f"""
    SELECT DISTINCT ON (p.image, p.image_kind) p.name, p.image_kind, p.image, p.ready_at, p.status->'on' AS nodes
    FROM preload p
    WHERE p.image = ANY(CAST(:images AS text[])) AND {_USABLE}
    ORDER BY p.image, p.image_kind, coalesce((p.status->'on'->>'pulled')::int, 0) DESC, p.ready_at DESC, p.name
""")
_UNDER_WAY = text("""
    SELECT p.name, p.image_kind, p.image FROM preload p
    WHERE p.image = ANY(CAST(:images AS text[])) AND p.deleting_at IS NULL AND p.deleted_at IS NULL
      AND p.state IN ('planned', 'importing', 'pulling') ORDER BY p.created_at
""")
_READY_AT = text("SELECT ready_at FROM preload WHERE name = :name AND deleting_at IS NULL AND deleted_at IS NULL")
_ON_CLAIMS = text("""
    SELECT name, status->'volume'->>'claim' AS claim FROM preload
    WHERE deleted_at IS NULL AND status->'volume'->>'claim' = ANY(CAST(:claims AS text[])) ORDER BY name LIMIT 1
""")
_LOCK = text("""
    SELECT image_kind, image FROM preload WHERE name = :name AND deleting_at IS NULL AND deleted_at IS NULL FOR SHARE
""")


@dataclass(frozen=True, slots=True)
class PreloadOption:
    """A preload that has `image` now. A container image is on `on_nodes` of the `of_nodes` that it is meant for."""

    name: str
    image: ImageRef
    ready_at: datetime
    on_nodes: int | None = None
    of_nodes: int | None = None


async def start_of(tx: Tx, name: str) -> FromVolume | FromImage | str | None:
    """What VMs start from. A string says why there is nothing yet. None: there is no preload of that name."""
    row = (await run(tx, _BY_NAME, name=name)).first()
    if row is None:
        return None
    if row.image_kind == ImageKind.CONTAINER:
        if (row.status.get("on") or {}).get("pulled"):
            return FromImage(row.name, row.image)
        return _why_not(row)
    volume = row.status.get("volume")
    if volume is None:
        return _why_not(row)
    kept = {name: volume[name] for name in ("claim", "size", "storage_class", "volume_mode")}
    return FromVolume(
        name=row.name,
        image=_image(row),
        access_modes=tuple(volume["access_modes"]),
        is_snapshot=volume.get("is_snapshot", False),
        **kept,
    )


async def ready_for_images(tx: Tx, images: Sequence[ImageRef]) -> list[PreloadOption]:
    """For each image the best preload, in the order of `images`. Images without a preload are left out.

    A VM starts from one preload: `domain.preload_choice.needed_image` says which of several images counts.
    """
    rows = await run(tx, _FOR_IMAGES, images=[image.reference for image in images])
    found = {_image(row): row for row in rows}
    options = []
    for image in dict.fromkeys(images):
        if (row := found.get(image)) is not None:
            nodes = row.nodes or {}
            options.append(PreloadOption(row.name, image, row.ready_at, nodes.get("pulled"), nodes.get("wanted")))
    return options


async def under_way_for_images(tx: Tx, images: Sequence[ImageRef]) -> list[str]:
    """Names of the preloads that import or pull one of the images now."""
    rows = await run(tx, _UNDER_WAY, images=[image.reference for image in images])
    return [row.name for row in rows if _image(row) in images]


async def ready_at(tx: Tx, name: str) -> datetime | None:
    """When the present volume or image became ready. None: VMs cannot start from it."""
    found: datetime | None = (await run(tx, _READY_AT, name=name)).scalar()
    return found


async def on_claims(tx: Tx, claims: Sequence[str]) -> tuple[str, str] | None:
    """A preload whose image is on one of these PersistentVolumeClaims, and that claim; None: there is no such preload."""
    row = (await run(tx, _ON_CLAIMS, claims=list(claims))).first()
    return (row.name, row.claim) if row is not None else None


async def lock(tx: Tx, name: str) -> ImageRef | None:
    """The image of the preload, whose row is locked against changes until `tx` ends. None: there is none, or it is being deleted."""
    row = (await run(tx, _LOCK, name=name)).first()
    return _image(row) if row is not None else None


def _image(row: Any) -> ImageRef:
    return ImageRef(ImageKind(row.image_kind), row.image)


def _why_not(row: Any) -> str:
    progress = (row.status.get("samples") or [[None, None]])[-1][1]
    how_far = f", {progress:.0f} %" if progress is not None else ""
    reason = f": {row.reason}" if row.reason else ""
    return f"preload {row.name!r} is not ready ({row.state}{how_far}){reason}"
