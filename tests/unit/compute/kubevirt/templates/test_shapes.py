"""Which VMs are the same to whoever boots them, and which images they come from."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.shapes import image_of_source, images_of, shape_of
from app.domain.observation import WarmWhen
from app.domain.paths import ImageKind, ImageRef
from tests.support.kubevirt_documents import SHORT, VM_SPEC, VMI_TEMPLATE, WITH_DATA_VOLUME, changed


def shape(template, warm_when=WarmWhen.AGENT):
    return expand(template, warm_when).shape


WITH_TWO_DISKS = {
    "template": {
        "spec": {
            "domain": {"memory": {"guest": "1Gi"}, "devices": {}},
            "volumes": [
                {"name": "one", "containerDisk": {"image": "a:1"}},
                {"name": "two", "containerDisk": {"image": "b:1"}},
            ],
        }
    }
}


@pytest.mark.parametrize(
    ("template", "other"),
    [
        pytest.param(SHORT, {**SHORT, "labels": {"team": "a"}}, id="labels"),
        pytest.param(SHORT, {**SHORT, "memory": "2048Mi"}, id="the spelling of a quantity"),
        pytest.param(SHORT, {**SHORT, "cpu": "2"}, id="the spelling of a number"),
        pytest.param(VMI_TEMPLATE, VM_SPEC, id="the form"),
        pytest.param(
            WITH_DATA_VOLUME,
            changed(
                changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.metadata.name", "other"),
                "template.spec.volumes.0.dataVolume.name",
                "other",
            ),
            id="a DataVolume's name",
        ),
        pytest.param(
            changed(VM_SPEC, "template.spec.domain.cpu", {"cores": 2}),
            changed(VM_SPEC, "template.spec.domain.cpu", {"cores": 2, "sockets": 1}),
            id="a default that is written out",
        ),
        pytest.param(changed(VM_SPEC, "template.spec.nodeSelector", {}), VM_SPEC, id="what is there and holds nothing"),
    ],
)
def test_what_does_not_change_a_boot_does_not_count(template, other):
    assert shape(template) == shape(other)


@pytest.mark.parametrize(
    ("template", "other"),
    [
        pytest.param(SHORT, {**SHORT, "image": "quay.io/containerdisks/fedora:43"}, id="the image"),
        pytest.param(SHORT, {**SHORT, "cpu": 4}, id="CPUs"),
        pytest.param(SHORT, {**SHORT, "memory": "4Gi"}, id="memory"),
        pytest.param(SHORT, {**SHORT, "disk": "1Gi"}, id="another disk"),
        pytest.param(SHORT, {**SHORT, "user_data": "#cloud-config"}, id="what cloud-init is told"),
        pytest.param(
            VM_SPEC, changed(VM_SPEC, "template.spec.domain.firmware", {"bootloader": {"efi": {}}}), id="firmware"
        ),
        pytest.param(VM_SPEC, changed(VM_SPEC, "template.spec.nodeSelector", {"zone": "a"}), id="placement"),
        pytest.param(
            VM_SPEC, changed(VM_SPEC, "template.spec.domain.cpu", {"dedicatedCpuPlacement": True}), id="pinning"
        ),
        pytest.param(
            WITH_DATA_VOLUME,
            changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.source", {"http": {"url": "https://a.example/b"}}),
            id="where a disk is imported from",
        ),
        pytest.param(
            WITH_TWO_DISKS,
            changed(
                changed(WITH_TWO_DISKS, "template.spec.volumes.0.containerDisk.image", "b:1"),
                "template.spec.volumes.1.containerDisk.image",
                "a:1",
            ),
            id="the order of the disks",
        ),
        pytest.param(VM_SPEC, {**VM_SPEC, "runStrategy": "RerunOnFailure"}, id="the run strategy"),
    ],
)
def test_what_changes_a_boot_counts(template, other):
    assert shape(template) != shape(other)


def test_how_a_pool_proves_a_vm_warm_is_no_part_of_its_shape():
    assert len({shape(SHORT, warm_when) for warm_when in WarmWhen}) == 1


def test_it_leaves_the_spec_as_it_is():
    spec = expand(WITH_DATA_VOLUME, WarmWhen.AGENT).spec
    before = copy.deepcopy(spec)
    shape_of(spec)
    assert spec == before


def shuffled(value, order):
    if isinstance(value, dict):
        items = [(key, shuffled(item, order)) for key, item in value.items()]
        order.shuffle(items)
        return dict(items)
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@given(st.randoms(use_true_random=False), st.sampled_from([SHORT, VM_SPEC, VMI_TEMPLATE, WITH_DATA_VOLUME]))
def test_the_order_of_keys_does_not_count(order, template):
    assert shape(shuffled(template, order)) == shape(template)


@pytest.mark.parametrize(
    ("template", "images"),
    [
        (SHORT, [ImageRef(ImageKind.CONTAINER, SHORT["image"])]),
        (WITH_DATA_VOLUME, [ImageRef(ImageKind.REGISTRY, "docker://quay.io/containerdisks/fedora:42")]),
        (WITH_TWO_DISKS, [ImageRef(ImageKind.CONTAINER, "a:1"), ImageRef(ImageKind.CONTAINER, "b:1")]),
        (changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.source", {"blank": {}}), []),
    ],
)
def test_the_images_that_a_vm_comes_from(template, images):
    assert list(images_of(expand(template, WarmWhen.AGENT).spec)) == images
    assert list(expand(template, WarmWhen.AGENT).images) == images


@pytest.mark.parametrize(
    ("source", "image"),
    [
        ({"http": {"url": "https://a.example/b.qcow2"}}, ImageRef(ImageKind.HTTP, "https://a.example/b.qcow2")),
        ({"s3": {"url": "s3://b/c"}}, ImageRef(ImageKind.S3, "s3://b/c")),
        ({"gcs": {"url": "gs://b/c"}}, ImageRef(ImageKind.GCS, "gs://b/c")),
        ({"pvc": {"namespace": "images", "name": "golden"}}, ImageRef(ImageKind.PVC, "images/golden")),
        ({"upload": {}}, None),
        ({"snapshot": {"namespace": "a", "name": "b"}}, None),
    ],
)
def test_the_image_behind_a_source(source, image):
    assert image_of_source(source) == image
