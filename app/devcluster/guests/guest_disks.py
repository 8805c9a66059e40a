"""The volumes of a VMI as files that its guest can use."""

import base64
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.registry import CLAIMS, CONFIG_MAPS, SECRETS, Resource
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Store
from app.devcluster.guests.container_images import ContainerImages
from app.devcluster.guests.disks.disks import Disks
from app.devcluster.guests.images.identity import new_host_key
from app.devcluster.guests.images.iso import make_iso
from app.devcluster.guests.images.seed import cloud_init_data, make_seed
from app.devcluster.guests.images.user_data import meta_data
from app.devcluster.guests.qemu.plan import Disk
from app.devcluster.guests.runtime import Guest
from app.devcluster.storage.volumes import claim_of, volume_name

BUILT_IN = "emberpool/guest"
"""The container disk that asks for the built-in guest, with or without a tag."""


class VolumeMissing(Exception):
    """Something that a volume names is not there (yet); the text says what, as a kubelet would."""


@dataclass(slots=True)
class GuestDisks:
    """`folder` is the guest's own. `first` is the volume that the guest boots from; None: the built-in guest, which needs none."""

    folder: Path
    seed: Path
    disks: list[Disk] = field(default_factory=list)
    first: Path | None = None
    notes: list[str] = field(default_factory=list)


class DiskMaker:
    """Makes the disks of guests in `folder`, one folder for each guest, beside the disks of claims."""

    def __init__(self, store: Store, disks: Disks, images: ContainerImages, folder: Path) -> None:
        self._store = store
        self._disks = disks
        self._images = images
        self._folder = folder

    async def make(self, guest: Guest) -> GuestDisks:
        """Raises VolumeMissing, DiskError or ImageError."""
        own = self._folder / guest.uid
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        found = GuestDisks(own, own / "seed.iso")
        self._write_seed(guest, found.seed)
        for number, volume in enumerate(_in_boot_order(guest.vmi["spec"])):
            if _seed_of(volume) is None:
                await self._add(guest, volume, f"disk{number}", own, found)
        return found

    async def remove(self, uid: str) -> None:
        """The guest has ended: let its claims go, and drop what was its own."""
        self._disks.detach(uid)
        for name in self._disks.names():
            if name.startswith(f"guest-{uid}-"):
                await self._disks.remove(name)
        shutil.rmtree(self._folder / uid, ignore_errors=True)

    async def _add(self, guest: Guest, volume: Json, node: str, own: Path, found: GuestDisks) -> None:
        namespace, name = guest.key[0], volume["name"]
        if claim_of(volume):
            path = await self._disks.attach(self._handle(namespace, claim_of(volume)), guest.uid)
            _append(found, Disk(node, path))
        elif "containerDisk" in volume:
            await self._add_container_disk(guest, volume["containerDisk"]["image"], node, found)
        elif "emptyDisk" in volume:
            mine = f"guest-{guest.uid}-{node}"
            await self._disks.blank(mine, whole(volume["emptyDisk"]["capacity"]))
            _append(found, Disk(node, await self._disks.attach(mine, guest.uid)))
        elif "ephemeral" in volume:
            below = self._handle(namespace, volume["ephemeral"]["persistentVolumeClaim"]["claimName"])
            mine = f"guest-{guest.uid}-{node}"
            await self._disks.overlay(mine, below)
            _append(found, Disk(node, await self._disks.attach(mine, guest.uid)))
        elif (files := self._files(namespace, volume)) is not None:
            path = own / f"{node}.iso"
            make_iso(path, files, _label(volume))
            found.disks.append(Disk(node, path, "raw", read_only=True))
        else:
            kind = next((key for key in volume if key != "name"), "unknown")
            found.notes.append(
                f"The volume {name} ({kind}) is left out: guests of this cluster have none of that kind."
            )

    async def _add_container_disk(self, guest: Guest, image: str, node: str, found: GuestDisks) -> None:
        reference = self._images.find(image)
        if reference is not None:
            mine = f"guest-{guest.uid}-{node}"
            await self._images.overlay(mine, reference)
            _append(found, Disk(node, await self._disks.attach(mine, guest.uid)))
            found.notes.append(f"The image {image} is {reference}: see --guest-image.")
        elif image.partition(":")[0] != BUILT_IN:
            found.notes.append(
                f"The image {image} is the built-in guest: map it with --guest-image {image}=PATH_OR_URL."
            )

    def _handle(self, namespace: str, claim_name: str) -> str:
        claim = self._store.get(CLAIMS, namespace, claim_name)
        if claim is None:
            raise VolumeMissing(f'persistentvolumeclaim "{claim_name}" not found')
        return volume_name(claim.obj)

    def _write_seed(self, guest: Guest, path: Path) -> None:
        """Also for a guest without a cloud-init volume: it learns its name, and gets the key of its SSH server."""
        given = next((source for volume in guest.vmi["spec"].get("volumes") or () if (source := _seed_of(volume))), {})
        data = cloud_init_data(given, lambda name: self._data(SECRETS, guest.key[0], name))
        meta = meta_data(f"{guest.key[1]}.{guest.key[0]}", host_name(guest))
        make_seed(
            path,
            user_data=data.user_data,
            network_data=data.network_data,
            meta_data=meta,
            host_key=new_host_key(),
        )

    def _files(self, namespace: str, volume: Json) -> Mapping[str, bytes] | None:
        """The files of a secret or configMap volume; None for other kinds."""
        if (secret := volume.get("secret")) is not None:
            return self._data(SECRETS, namespace, secret["secretName"], optional=bool(secret.get("optional")))
        if (given := volume.get("configMap")) is not None:
            return self._data(CONFIG_MAPS, namespace, given["name"], optional=bool(given.get("optional")))
        return None

    def _data(self, resource: Resource, namespace: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
        stored = self._store.get(resource, namespace, name)
        if stored is None:
            if optional:
                return {}
            raise VolumeMissing(f'{resource.singular} "{name}" not found')
        plain = stored.obj.get("data") or {}
        if resource is SECRETS:
            return {key: base64.b64decode(value) for key, value in plain.items()}
        binary = stored.obj.get("binaryData") or {}
        return {
            **{key: str(value).encode() for key, value in plain.items()},
            **{key: base64.b64decode(value) for key, value in binary.items()},
        }


def _append(found: GuestDisks, disk: Disk) -> None:
    found.disks.append(disk)
    found.first = found.first or disk.path


def _in_boot_order(spec: Json) -> list[Json]:
    """The volumes in the order of their disks; those with a bootOrder come first."""
    disks = (spec["domain"].get("devices") or {}).get("disks") or []
    volumes = {volume["name"]: volume for volume in spec.get("volumes") or ()}
    ordered = sorted(disks, key=lambda disk: disk.get("bootOrder", 2**16))
    return [volumes[disk["name"]] for disk in ordered if disk["name"] in volumes]


def _seed_of(volume: Json) -> Json | None:
    found: Json | None = volume.get("cloudInitNoCloud") or volume.get("cloudInitConfigDrive")
    return found


def host_name(guest: Guest) -> str:
    return str(guest.vmi["spec"].get("hostname") or guest.key[1].split(".")[0])


def _label(volume: Json) -> str:
    """The name that the guest sees of a volume of files; KubeVirt's default."""
    source = volume.get("secret") or volume.get("configMap") or {}
    return str(source.get("volumeLabel") or "cfgdata")
