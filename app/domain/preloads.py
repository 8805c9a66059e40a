"""The spec of a preload: the body of `PUT /v1/preloads/{name}`, and what the store keeps."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypeAliasType

from app.config import MAX_AGE_SECONDS
from app.domain.paths import FromVolume, ImageKind, ImageRef, SnapshotDisk
from app.domain.placement import NodeSelector, Tolerations
from app.domain.pools import Count
from app.domain.schedules import check_schedule

_QUANTITY = r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
_OBJECT = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_WEB = r"^https?://[^\s/]\S*$"
_REGISTRY = r"^(docker|oci-archive)://\S+$"
_S3 = r"^(s3|https?)://[^\s/]\S*$"
_GCS = r"^(gs|https?)://[^\s/]\S*$"
_REFERENCE = r"^\S+$"
PATTERNS_IN_WORDS = {
    _QUANTITY: 'must be a quantity such as "10Gi"',
    _OBJECT: "must be the name of an object in the cluster: lower-case letters, digits, '-' and '.'",
    _WEB: "must be an address that begins with http:// or https://",
    _REGISTRY: "must be an image that begins with docker:// or oci-archive://",
    _S3: "must be an address that begins with s3://, http:// or https://",
    _GCS: "must be an address that begins with gs://, http:// or https://",
    _REFERENCE: "must be the reference of an image, without spaces",
}
"""The message for each pattern that does not match."""
PreloadPolicy = TypeAliasType("PreloadPolicy", Literal["Always", "IfNotPresent", "Never"])
PullMethod = TypeAliasType("PullMethod", Literal["pod", "node"])
AccessMode = TypeAliasType("AccessMode", Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"])
VolumeMode = TypeAliasType("VolumeMode", Literal["Block", "Filesystem"])
ObjectName = Annotated[str, Field(pattern=_OBJECT, max_length=253)]
OptionalName = Annotated[ObjectName | None, BeforeValidator(lambda value: None if value == "" else value)]
"""As for CDI, an empty name is none."""


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_source(self) -> dict[str, Any]:
        """As CDI writes it in a DataVolume's `spec.source`."""
        return {
            to_camel(key): value for key, value in self.model_dump(mode="json").items() if value not in (None, [], "")
        }


class HttpSource(_Source):
    url: Annotated[str, Field(pattern=_WEB, max_length=2048, examples=["https://example.com/vm-images/ubuntu.qcow2"])]
    secret_ref: OptionalName = Field(default=None, description="Secret with `accessKeyId` and `secretKey`.")
    cert_config_map: OptionalName = Field(default=None, description="ConfigMap with the CA certificate of the server.")
    extra_headers: list[Annotated[str, Field(max_length=4096)]] = Field(default_factory=list, max_length=32)
    secret_extra_headers: list[ObjectName] = Field(default_factory=list, max_length=32)
    checksum: str | None = Field(default=None, max_length=256, description="Such as `sha256:...`; CDI checks it.")


class RegistrySource(_Source):
    url: Annotated[
        str,
        Field(pattern=_REGISTRY, max_length=2048, examples=["docker://quay.io/containerdisks/fedora:42"]),
    ]
    secret_ref: OptionalName = None
    cert_config_map: OptionalName = None
    pull_method: PullMethod | None = Field(default=None, description="`node` uses the image cache of the node.")


class S3Source(_Source):
    url: Annotated[str, Field(pattern=_S3, max_length=2048)]
    secret_ref: OptionalName = None
    cert_config_map: OptionalName = None


class GcsSource(_Source):
    url: Annotated[str, Field(pattern=_GCS, max_length=2048)]
    secret_ref: OptionalName = None


class PvcSource(_Source):
    name: ObjectName
    namespace: OptionalName = Field(default=None, description="Default: the namespace of the VMs.")


class PreloadImage(BaseModel):
    """Where an image comes from. Set exactly one field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    http: HttpSource | None = None
    registry: RegistrySource | None = None
    s3: S3Source | None = None
    gcs: GcsSource | None = None
    pvc: PvcSource | None = None
    container: Annotated[str, Field(pattern=_REFERENCE, max_length=1024)] | None = Field(
        default=None, description="A container disk, which is pulled onto the nodes."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if len(self.model_fields_set) != 1 or self._given is None:
            raise ValueError(f"name exactly one of {', '.join(PreloadImage.model_fields)}")
        return self

    @property
    def _given(self) -> _Source | str | None:
        return self.http or self.registry or self.s3 or self.gcs or self.pvc or self.container

    @property
    def kind(self) -> ImageKind:
        return ImageKind(next(iter(self.model_fields_set)))

    def reference(self, namespace: str) -> ImageRef:
        """`namespace` is that of a PVC that names none."""
        if self.pvc is not None:
            return ImageRef(ImageKind.PVC, f"{self.pvc.namespace or namespace}/{self.pvc.name}")
        given = self._given
        return ImageRef(self.kind, given if isinstance(given, str) else getattr(given, "url", ""))

    def source(self, namespace: str) -> dict[str, Any]:
        """A DataVolume's `spec.source`; empty for a container image."""
        given = self._given
        if given is None or isinstance(given, str):
            return {}
        source = given.to_source()
        if self.pvc is not None:
            source.setdefault("namespace", namespace)
        return {str(self.kind): source}


class PreloadSpec(BaseModel):
    """An image to import into a volume, or to pull onto the nodes, before a VM needs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: PreloadImage = Field(
        description="Where the image comes from.",
        examples=[{"http": {"url": "https://example.com/vm-images/ubuntu.qcow2"}}],
    )
    size: Annotated[str, Field(pattern=_QUANTITY, max_length=20)] | None = Field(
        default=None,
        validate_default=True,
        description="Size of the volume; it must hold the unpacked image. Required for disk images, except those from a PVC.",
        examples=["10Gi"],
    )
    storage_class: ObjectName | None = Field(default=None, description="Default: the default of the cluster.")
    access_modes: list[AccessMode] = Field(
        default_factory=list, max_length=4, description="Default: from the StorageProfile of CDI."
    )
    volume_mode: VolumeMode | None = Field(default=None, description="Default: from the StorageProfile of CDI.")
    data_source: ObjectName | None = Field(
        default=None,
        description=(
            "The DataSource whose place the preload takes: a VM in a manifest that clones it by `sourceRef` starts from the preload. "
            "Of several preloads with the same one, the preload created last serves. Default: the name of the preload."
        ),
        examples=["fedora"],
    )
    policy: PreloadPolicy = Field(
        default="IfNotPresent",
        description=(
            "`Always`: import when the preload is created, changed or refreshed, or when its schedule fires. `IfNotPresent`: use a "
            "complete volume with the name of the preload if the namespace has one, otherwise import. `Never`: use only such a "
            "volume. For a container image this is the pull policy of the kubelet."
        ),
    )
    schedule: Annotated[str, Field(max_length=128), AfterValidator(check_schedule)] | None = Field(
        default=None,
        description=(
            "When to look for a newer image: the five fields of cron, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly` or "
            "`@every 6h`; in UTC, unless `CRON_TZ=Europe/Berlin` stands before it, for which Kubernetes 1.29 and newer require "
            "`image.registry.pull_method: node`. For registry images only, and not for one that is pinned by its digest."
        ),
        examples=["30 2 * * *"],
    )
    keep: Count | None = Field(
        default=None, ge=1, le=20, description="Number of imports of a schedule to keep. Default: 3, from CDI."
    )
    node_selector: NodeSelector | None = Field(
        default=None,
        description="Container images: labels of the nodes to pull onto. Default: all nodes that KubeVirt can use.",
    )
    tolerations: Tolerations = Field(default_factory=list, description="Container images: node taints to tolerate.")
    pull_secret: OptionalName = Field(
        default=None, description="Container images: Secret with the credentials of the registry."
    )
    ttl_seconds: Count | None = Field(
        default=None,
        ge=60,
        le=MAX_AGE_SECONDS,
        description="Delete after this many unused seconds. Default: never, except preloads created by `remember`.",
    )

    @property
    def is_container(self) -> bool:
        return self.image.container is not None

    def data_volume(self, namespace: str) -> dict[str, Any]:
        """The spec of a DataVolume that imports the image. `namespace` is that of a PVC that names none."""
        return {"source": self.image.source(namespace), "storage": storage_request(self)}

    def same_import(self, other: "PreloadSpec") -> bool:
        """Whether both import the same content in the same way, so that nothing has to be imported again."""
        apart = {"ttl_seconds": None, "data_source": None}
        return self.model_copy(update=apart) == other.model_copy(update=apart)

    # Each validator compares with fields above its own; a field that is invalid itself is missing from `info.data`.

    @field_validator("size")
    @classmethod
    def _size_of_disk_images(cls, value: str | None, info: ValidationInfo) -> str | None:
        image = info.data.get("image")
        if image is None:
            return value
        if value is not None and image.container is not None:
            raise ValueError("does not go with a container image: it takes no volume")
        if value is None and image.container is None and image.pvc is None:
            raise ValueError('is missing: say how large the volume is to be for the image unpacked, such as "10Gi"')
        return value

    @field_validator("storage_class", "access_modes", "volume_mode", "data_source")
    @classmethod
    def _only_with_a_volume(cls, value: object, info: ValidationInfo) -> object:
        image = info.data.get("image")
        if value and image is not None and image.container is not None:
            raise ValueError("does not go with a container image: it takes no volume")
        return value

    @field_validator("schedule")
    @classmethod
    def _only_where_there_is_a_newer_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        image, policy = info.data.get("image"), info.data.get("policy")
        if value is None or image is None:
            return value
        if image.registry is None or not image.registry.url.startswith("docker://"):
            raise ValueError(
                "goes only with image.registry and a docker:// URL: CDI sees by the digest that one is newer"
            )
        if "@" in image.registry.url.rpartition("/")[2]:  # CDI v1.66.0 would append a second digest
            raise ValueError(
                "an image pinned by its digest never changes: leave schedule out (in a manifest, write a DataVolume instead of a "
                "DataImportCron), or name a tag"
            )
        if policy == "Never":
            raise ValueError("contradicts the policy Never, by which nothing is imported")
        return value

    @field_validator("keep")
    @classmethod
    def _only_with_a_schedule(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "schedule" in info.data and info.data["schedule"] is None:
            raise ValueError("goes only with a schedule: without one there is a single import")
        return value

    @field_validator("node_selector", "tolerations", "pull_secret")
    @classmethod
    def _only_on_nodes(cls, value: object, info: ValidationInfo) -> object:
        image = info.data.get("image")
        if value and image is not None and image.container is None:
            raise ValueError("goes only with image.container: a disk image is a volume and on no node")
        return value


def storage_request(asked: "PreloadSpec | FromVolume | SnapshotDisk") -> dict[str, Any]:
    """What a DataVolume's `storage`, or a PVC's spec, asks for; without what is not given."""
    request = {
        "resources": {"requests": {"storage": asked.size}} if asked.size is not None else None,
        "storageClassName": asked.storage_class,
        "accessModes": list(asked.access_modes),
        "volumeMode": asked.volume_mode,
    }
    return {key: value for key, value in request.items() if value}
