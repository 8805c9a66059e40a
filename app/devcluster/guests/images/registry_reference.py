"""Names of container images: HOST/REPOSITORY:TAG@DIGEST, with Docker Hub as the host of a name that has none."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from typing_extensions import override

from app.devcluster.guests.images.errors import FetchFailed

DOCKER_HUB: Final = "registry-1.docker.io"
_DOCKER_HUB_ALIASES: Final = ("docker.io", "index.docker.io")
_NAME: Final = re.compile(
    r"(?:(?P<host>[a-zA-Z0-9.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?)/)?"
    r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """`version` is the digest, where the name has one, else the tag."""

    host: str
    repository: str
    version: str

    @property
    def base_url(self) -> str:
        """A registry on this machine speaks plain HTTP, as container tools have it."""
        return f"{'http' if _is_here(self.host) else 'https'}://{self.host}/v2/{self.repository}"

    @override
    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if self.version.startswith('sha256:') else ':'}{self.version}"


def parse_reference(text: str) -> ImageReference:
    """Read NAME or docker://NAME. Raises FetchFailed if it is no name of an image."""
    name = text.removeprefix("docker://")
    match = _NAME.fullmatch(name)
    if match is None or not (_is_host(match["host"]) or match["host"].islower()):
        raise FetchFailed(
            f"Could not parse image: '{text}' is not the name of a container image (HOST/REPOSITORY:TAG).", pull=True
        )
    host, repository = match["host"], match["repository"]
    if host is not None and not _is_host(host):
        host, repository = None, f"{host}/{repository}"
    if host is None or host in _DOCKER_HUB_ALIASES:
        host, repository = DOCKER_HUB, repository if "/" in repository else f"library/{repository}"
    return ImageReference(host, repository, match["digest"] or match["tag"] or "latest")


def _is_host(name: str | None) -> bool:
    """A first part without a dot or a port is a user of Docker Hub. No first part is Docker Hub itself."""
    return name is None or bool(set(name) & set(".:")) or name == "localhost"


def _is_here(host: str) -> bool:
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
