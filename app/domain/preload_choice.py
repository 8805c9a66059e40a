"""Which image has to be near for a VM to count as started from a preload. Pure."""

from collections.abc import Sequence

from app.domain.paths import ImageKind, ImageRef

_IMPORTED = frozenset({ImageKind.HTTP, ImageKind.REGISTRY, ImageKind.S3, ImageKind.GCS})


def needed_image(images: Sequence[ImageRef]) -> ImageRef | str:
    """The one of a template's images that decides; a string says why none does.

    An import takes longer than anything else, and a VM starts from one preload: where two images are imported, the other one
    would be waited for all the same. Where none is, it is the first container image: it is what boots.
    """
    imported = [image for image in dict.fromkeys(images) if image.kind in _IMPORTED]
    if len(imported) > 1:
        return f"its disks are imported from {len(imported)} images, and a VM starts from one preload"
    if imported:
        return imported[0]
    container = next((image for image in images if image.kind is ImageKind.CONTAINER), None)
    if container is not None:
        return container
    if images:
        return "its disks are cloned from volumes, which are near already"
    return "its disks come from no image that could be preloaded"
