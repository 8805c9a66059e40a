import pytest

from app.domain.paths import ImageKind, ImageRef
from app.domain.preload_choice import needed_image

HTTP = ImageRef(ImageKind.HTTP, "https://images.example/a")
REGISTRY = ImageRef(ImageKind.REGISTRY, "docker://registry.example/a")
DISK = ImageRef(ImageKind.CONTAINER, "registry.example/a")
SECOND = ImageRef(ImageKind.CONTAINER, "registry.example/b")
PVC = ImageRef(ImageKind.PVC, "vms/golden")


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ((HTTP,), HTTP),
        ((DISK, HTTP), HTTP),
        ((PVC, HTTP), HTTP),
        ((HTTP, HTTP), HTTP),
        ((DISK, SECOND), DISK),
        ((PVC, DISK), DISK),
    ],
)
def test_the_only_image_of_a_vm_is_preloaded(images, found):
    assert needed_image(images) == found


@pytest.mark.parametrize(
    ("images", "why"),
    [((HTTP, REGISTRY), "from 2 images"), ((PVC,), "need no preload"), ((), "no image")],
)
def test_a_reason_is_given_when_no_image_can_be_preloaded(images, why):
    assert why in needed_image(images)
