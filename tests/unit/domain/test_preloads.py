"""What may be asked of a preload."""

import pytest
from pydantic import ValidationError

from app.domain.paths import ImageKind, ImageRef
from app.domain.preloads import PreloadSpec

HTTP = {"http": {"url": "https://images.example/a.qcow2"}}
REGISTRY = {"registry": {"url": "docker://registry.example/a:1"}}
PINNED = {"registry": {"url": f"docker://registry.example/a@sha256:{'0' * 64}"}}
PINNED_TAG = {
    "registry": {"url": f"docker://someone@registry.example:5000/a:1@sha256:{'0' * 64}", "pull_method": "node"}
}
CONTAINER = {"container": "registry.example/a:1"}


def spec(image=HTTP, **given):
    return PreloadSpec.model_validate({"image": image, **({} if "container" in image else {"size": "10Gi"}), **given})


@pytest.mark.parametrize(
    ("image", "reference", "source"),
    [
        (
            {
                "http": {
                    "url": "https://i.example/a",
                    "secret_ref": "s",
                    "cert_config_map": "c",
                    "extra_headers": ["A: b"],
                }
            },
            ImageRef(ImageKind.HTTP, "https://i.example/a"),
            {"http": {"url": "https://i.example/a", "secretRef": "s", "certConfigMap": "c", "extraHeaders": ["A: b"]}},
        ),
        (
            {"registry": {"url": "docker://r.example/a:1", "pull_method": "node"}},
            ImageRef(ImageKind.REGISTRY, "docker://r.example/a:1"),
            {"registry": {"url": "docker://r.example/a:1", "pullMethod": "node"}},
        ),
        (
            {"s3": {"url": "s3://bucket/a", "secret_ref": "keys"}},
            ImageRef(ImageKind.S3, "s3://bucket/a"),
            {"s3": {"url": "s3://bucket/a", "secretRef": "keys"}},
        ),
        (
            {"gcs": {"url": "gs://bucket/a"}},
            ImageRef(ImageKind.GCS, "gs://bucket/a"),
            {"gcs": {"url": "gs://bucket/a"}},
        ),
        (
            {"pvc": {"name": "golden"}},
            ImageRef(ImageKind.PVC, "vms/golden"),
            {"pvc": {"name": "golden", "namespace": "vms"}},
        ),
        (
            {"pvc": {"name": "golden", "namespace": "images"}},
            ImageRef(ImageKind.PVC, "images/golden"),
            {"pvc": {"name": "golden", "namespace": "images"}},
        ),
        (CONTAINER, ImageRef(ImageKind.CONTAINER, "registry.example/a:1"), {}),
    ],
)
def test_an_image_is_named_as_templates_name_it_and_sourced_as_cdi_takes_it(image, reference, source):
    found = spec(image).image
    assert found.reference("vms") == reference
    assert found.source("vms") == source
    assert PreloadSpec.model_validate(spec(image).model_dump(mode="json", exclude_none=True)) == spec(image)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"image": {}}, "image", "exactly one"),
        ({"image": {**HTTP, **CONTAINER}}, "image", "exactly one"),
        ({"image": {"http": None}}, "image", "exactly one"),
        ({"image": {"http": {"url": "ftp://a/b"}}, "size": "1Gi"}, "image.http.url", "pattern"),
        ({"image": {"registry": {"url": "registry.example/a"}}, "size": "1Gi"}, "image.registry.url", "pattern"),
        ({"image": HTTP}, "size", "is missing"),
        ({"image": HTTP, "size": "0"}, "size", "pattern"),
        ({"image": HTTP, "size": "10GB"}, "size", "pattern"),
        ({"image": CONTAINER, "size": "10Gi"}, "size", "container image"),
        ({"image": CONTAINER, "storage_class": "fast"}, "storage_class", "container image"),
        ({"image": CONTAINER, "access_modes": ["ReadWriteOnce"]}, "access_modes", "container image"),
        ({"image": CONTAINER, "volume_mode": "Block"}, "volume_mode", "container image"),
        ({"image": HTTP, "size": "1Gi", "node_selector": {"a": "b"}}, "node_selector", "image.container"),
        ({"image": HTTP, "size": "1Gi", "tolerations": [{"key": "a"}]}, "tolerations", "image.container"),
        ({"image": HTTP, "size": "1Gi", "pull_secret": "a"}, "pull_secret", "image.container"),
        ({"image": HTTP, "size": "1Gi", "schedule": "0 3 * * *"}, "schedule", "image.registry"),
        ({"image": REGISTRY, "size": "1Gi", "schedule": "daily"}, "schedule", "five fields of cron"),
        ({"image": PINNED, "size": "1Gi", "schedule": "@daily"}, "schedule", "pinned by its digest never changes"),
        ({"image": PINNED_TAG, "size": "1Gi", "schedule": "@daily"}, "schedule", "pinned by its digest never changes"),
        ({"image": REGISTRY, "size": "1Gi", "schedule": "0 3 * * *", "policy": "Never"}, "schedule", "Never"),
        ({"image": REGISTRY, "size": "1Gi", "keep": 2}, "keep", "schedule"),
        ({"image": HTTP, "size": "1Gi", "ttl_seconds": 1}, "ttl_seconds", "60"),
        ({"image": HTTP, "size": "1Gi", "policy": "Sometimes"}, "policy", "Always"),
        ({"image": HTTP, "size": "1Gi", "colour": "red"}, "colour", "not permitted"),
    ],
)
def test_a_contradiction_is_refused_with_its_field(body, field, words):
    with pytest.raises(ValidationError) as refused:
        PreloadSpec.model_validate(body)
    (error,) = refused.value.errors()
    assert ".".join(map(str, error["loc"])) == field
    assert words in error["msg"]


def test_a_schedule_may_have_an_image_with_a_port_or_a_user_in_its_address():
    image = {"registry": {"url": "docker://someone@registry.example:5000/a:1"}}
    assert spec(image, schedule="@daily").schedule == "@daily"


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ({"http": {**HTTP["http"], "secret_ref": "", "cert_config_map": ""}}, HTTP),
        ({"registry": {**REGISTRY["registry"], "secret_ref": "", "cert_config_map": ""}}, REGISTRY),
        ({"s3": {"url": "s3://b/a", "secret_ref": "", "cert_config_map": ""}}, {"s3": {"url": "s3://b/a"}}),
        ({"gcs": {"url": "gs://b/a", "secret_ref": ""}}, {"gcs": {"url": "gs://b/a"}}),
        ({"pvc": {"name": "a", "namespace": ""}}, {"pvc": {"name": "a", "namespace": "vms"}}),
    ],
)
def test_an_empty_name_is_none(image, source):
    assert spec(image).image.source("vms") == source
    assert spec(CONTAINER, pull_secret="").pull_secret is None


def test_a_clone_of_a_pvc_needs_no_size():
    assert PreloadSpec.model_validate({"image": {"pvc": {"name": "golden"}}}).size is None


@pytest.mark.parametrize(
    ("change", "same"),
    [({"ttl_seconds": 600}, True), ({"size": "20Gi"}, False), ({"policy": "Always"}, False), ({}, True)],
)
def test_only_how_long_it_is_kept_can_change_without_an_import(change, same):
    assert spec().same_import(spec(**change)) is same
