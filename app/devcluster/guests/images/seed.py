"""Seeds for cloud-init: CD images that tell a guest who it is and what its user wants of it (cloud-init, "NoCloud" and "Config Drive")."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.devcluster.guests.images.errors import SeedRefused
from app.devcluster.guests.images.identity import HostKey
from app.devcluster.guests.images.iso import make_iso
from app.devcluster.guests.images.user_data import guest_script

GUEST_SCRIPT: Final = "emberpool.sh"
Secret = Callable[[str], Mapping[str, bytes]]
"""The data of the secret of that name, in the VM's namespace; raises SeedRefused if there is none."""


@dataclass(frozen=True, slots=True)
class CloudInitData:
    """What a VM's cloud-init volume holds, its secrets read."""

    user_data: bytes = b""
    network_data: bytes = b""


def cloud_init_data(source: Mapping[str, Any], secret: Secret) -> CloudInitData:
    """Read KubeVirt's cloudInitNoCloud or cloudInitConfigDrive. Raises SeedRefused for data that is no base64, or a secret that is missing."""
    return CloudInitData(
        _one(source, secret, "userData", ("secretRef", "userDataSecretRef"), ("userdata", "userData")),
        _one(source, secret, "networkData", ("networkDataSecretRef",), ("networkdata", "networkData")),
    )


def make_seed(
    path: Path, *, user_data: bytes, network_data: bytes = b"", meta_data: bytes, host_key: HostKey | None = None
) -> None:
    """Write a NoCloud seed to `path`: a CD image with the label cidata. Raises SeedRefused.

    A `host_key` is what the guest's SSH server shall show, unless the user data has one: whoever knows it beforehand can check it, and the
    guest need not spend a second on making one. Beside cloud-init's files there is a script for the built-in guest; cloud-init does not look at it.
    """
    files = {"user-data": user_data, "meta-data": meta_data}
    if network_data:
        files["network-config"] = network_data
    if host_key:
        keys = {"ed25519_private": host_key.private, "ed25519_public": f"{host_key.public}\n"}
        files["vendor-data"] = f"#cloud-config\n{json.dumps({'ssh_keys': keys})}\n".encode()
    files[GUEST_SCRIPT] = guest_script(user_data, network_data, meta_data, host_key).encode()
    make_iso(path, files, "cidata")


def _one(
    source: Mapping[str, Any], secret: Secret, key: str, references: tuple[str, ...], members: tuple[str, ...]
) -> bytes:
    for reference in references:
        if named := source.get(reference):
            data = secret(str(named["name"]))
            found = next((data[member] for member in members if member in data), None)
            if found is None:
                raise SeedRefused(f"The secret {named['name']} has no {members[0]}.")
            return found
    if packed := source.get(f"{key}Base64"):
        try:
            return base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SeedRefused(f"{key}Base64 is no base64.") from error
    return str(source.get(key) or "").encode()
