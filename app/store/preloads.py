"""Preloads: which images are to be near, and how far they are."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.paths import FromImage, FromVolume, ImageKind, ImageRef

_READY = text("""
    SELECT name, image_kind, image, status FROM preload
    WHERE name = :name AND state = 'ready' AND deleting_at IS NULL AND deleted_at IS NULL
""")


async def start_of(tx: AsyncConnection, name: str) -> FromVolume | FromImage | str:
    """What holds the preload's image; a string says why nothing does."""
    row = (await tx.execute(_READY, {"name": name})).first()
    if row is None:
        return f"preload {name!r} is not ready"
    if row.image_kind == ImageKind.CONTAINER:
        return FromImage(row.name, row.image)
    volume = row.status["volume"]
    return FromVolume(
        name=row.name,
        image=ImageRef(ImageKind(row.image_kind), row.image),
        claim=volume["claim"],
        size=volume["size"],
        storage_class=volume["storage_class"],
        access_modes=tuple(volume["access_modes"]),
        volume_mode=volume["volume_mode"],
    )
