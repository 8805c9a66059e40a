"""containerDisk images from a registry, by the OCI distribution and image specifications: the layers are fetched, and the disk taken out.

A containerDisk has one file in its folder /disk. Docker's own kinds of manifests have the same form and are read too.
"""

import asyncio
import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from app.devcluster.guests.images.downloads import Download, Limits, Progress
from app.devcluster.guests.images.errors import FetchFailed
from app.devcluster.guests.images.layers import look_for_disk
from app.devcluster.guests.images.registry_auth import RegistryAuth, credentials_for
from app.devcluster.guests.images.registry_reference import ImageReference

_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LARGEST_MANIFEST: Final = 4 * 1024 * 1024
_MOST_LAYERS: Final = 200
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Blob:
    """A part of an image: its digest, and its size in bytes as the manifest has it."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`digest` is that of this architecture's manifest: another content has another one. `layers` begin with the lowest."""

    digest: str
    layers: tuple[Blob, ...]


class Registry:
    """One image of a registry, over a client of its own that is closed by whoever made it."""

    def __init__(self, client: httpx.AsyncClient, reference: ImageReference, pull_secret: bytes | None) -> None:
        self._client = client
        self._client.auth = RegistryAuth(credentials_for(reference.host, pull_secret) if pull_secret else None)
        self._reference = reference

    async def manifest(self) -> Manifest:
        """The image's manifest for this machine's architecture. Raises FetchFailed."""
        digest, body = await self._manifest_body(self._reference.version, (*_INDEXES, *_MANIFESTS))
        if "manifests" in body:
            digest, body = await self._manifest_body(self._digest_for_this_machine(body), _MANIFESTS)
        try:
            layers = tuple(Blob(_digest(layer["digest"]), int(layer["size"])) for layer in body["layers"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._failed("its manifest lists no layers") from error
        if len(layers) > _MOST_LAYERS:
            raise self._failed(f"it has {len(layers)} layers")
        return Manifest(digest, layers)

    async def take_disk(self, manifest: Manifest, folder: Path, limits: Limits, on_progress: Progress) -> Path:
        """Fetch layers into `folder` from the topmost down until the disk is found; the path of the disk. Raises FetchFailed."""
        total = sum(layer.size for layer in manifest.layers)
        done = 0
        hidden: frozenset[str] = frozenset()
        for number, layer in enumerate(reversed(manifest.layers)):
            path = folder / f"layer-{number}"
            await self._download(layer, path, limits, _from(on_progress, done, total))
            found = await asyncio.to_thread(look_for_disk, path, folder / f"disk-{number}", hidden, limits.bytes)
            await asyncio.to_thread(path.unlink)
            done += layer.size
            if found.path is not None:
                return found.path
            if found.hides_all:
                break
            hidden |= found.hidden
        raise FetchFailed(
            f"Failed to find VM disk image file in the container image {self._reference}: it must have one in its folder /disk."
        )

    async def _manifest_body(self, version: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
        url = f"{self._reference.base_url}/manifests/{version}"
        try:
            async with self._client.stream("GET", url, headers={"Accept": ", ".join(kinds)}) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._failed(_reason(response.status_code))
                raw = await self._bounded(response)
            body = json.loads(raw)
        except httpx.HTTPError as error:
            raise self._failed(f"the registry cannot be reached: {str(error) or type(error).__name__}") from error
        except ValueError as error:
            raise self._failed("its manifest is no JSON") from error
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if version.startswith("sha256:") and version != digest:
            raise self._failed(f"the registry gave other content than {version}")
        if not isinstance(body, dict):
            raise self._failed("its manifest is no JSON object")
        return digest, body

    async def _bounded(self, response: httpx.Response) -> bytes:
        raw = b""
        async for chunk in response.aiter_bytes():
            raw += chunk
            if len(raw) > _LARGEST_MANIFEST:
                raise self._failed(f"its manifest is larger than {_LARGEST_MANIFEST} bytes")
        return raw

    def _digest_for_this_machine(self, index: dict[str, Any]) -> str:
        wanted = _ARCHITECTURES.get(platform.machine(), platform.machine())
        there = []
        try:
            for entry in index["manifests"]:
                kind = entry.get("platform") or {}
                if kind.get("os") == "linux" and kind.get("architecture") == wanted:
                    return _digest(entry["digest"])
                there.append(str(kind.get("architecture")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._failed("its index cannot be read") from error
        raise self._failed(f"it has no image for linux/{wanted}, only for {', '.join(sorted(set(there))) or 'nothing'}")

    async def _download(self, layer: Blob, path: Path, limits: Limits, on_progress: Progress) -> None:
        if layer.size > limits.bytes:
            raise FetchFailed(f"{self._reference} has a layer that is larger than {limits.bytes} bytes.", no_space=True)
        exact = Limits(bytes=layer.size, pause_seconds=limits.pause_seconds)
        url = f"{self._reference.base_url}/blobs/{layer.digest}"
        await Download(self._client, url, path, limits=exact, source="registry").run(on_progress)
        if await asyncio.to_thread(_sha256, path) != layer.digest:
            raise self._failed(f"the registry gave other content than {layer.digest}")

    def _failed(self, reason: str) -> FetchFailed:
        return FetchFailed(f"failed to pull image: {self._reference}: {reason}.", pull=True)


def _from(on_progress: Progress, before: int, total: int) -> Callable[[int, int | None], None]:
    return lambda done, _: on_progress(before + done, total)


def _digest(text: str) -> str:
    algorithm, _, value = text.partition(":")
    if algorithm != "sha256" or len(value) != hashlib.sha256().digest_size * 2:
        raise ValueError(text)
    return text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _reason(status: int) -> str:
    reasons = {
        401: "the registry wants a pull secret",
        403: "the registry denies access: check the pull secret",
        404: "manifest unknown: there is no such image or tag",
        429: "the registry answers no more requests for now (429)",
    }
    return reasons.get(status, f"the registry answered {status}")
