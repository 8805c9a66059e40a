"""Which image of a template a preload must have for VMs to start from it. Pure."""

from collections.abc import Sequence

from app.domain.paths import ImageKind, ImageRef

_IMPORTED = frozenset({ImageKind.HTTP, ImageKind.REGISTRY, ImageKind.S3, ImageKind.GCS})


def needed_image(images: Sequence[ImageRef]) -> ImageRef | str:
    """The image that a preload must have. A string says why there is no such image.

    An import takes longer than anything else, and a VM starts from one preload only: if two images are imported, a preload of
    one would not save the wait for the other. If none is imported, it is the first container image, from which the VM boots.
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
        return "its disks are cloned from volumes, which need no preload"
    return "its disks come from no image that could be preloaded"
