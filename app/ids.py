"""Ids are made before the insert, so that a row, its cluster name and its answer agree whatever crashes between."""

import base64
import uuid
from datetime import datetime

import uuid_utils

_NAME_LIMIT = 63  # a label value's limit, and a host name's: VM names are used as both
_ID_CHARS = 26  # 128 bits in base32
_VM_POOL_LIMIT = 57  # an index of up to five digits comes behind it
_PRELOAD_LIMIT = 50  # CDI puts a digest behind the name of what a schedule imports, and 63 are the limit again


def new_id() -> uuid.UUID:
    """A UUIDv7: rising with time, so that inserts stay at the right edge of an index."""
    return uuid.UUID(bytes=uuid_utils.uuid7().bytes)


def lowest_id_at(moment: datetime) -> uuid.UUID:
    """The lowest UUIDv7 of a moment: 48 bits of milliseconds since 1970 (RFC 9562), the rest zero."""
    return uuid.UUID(int=int(moment.timestamp() * 1000) << 80)


def vm_name(pool: str, vm_id: uuid.UUID) -> str:
    """The cluster name of a VM, at most 63 characters: the pool's name for people, the whole id so that it is never used twice.

    Without a dot: it is the guest's host name too.

    A name that came back could boot the disk of the VM that had it before (KubeVirt v1.9.0 looks a DataVolume up by name alone).
    """
    suffix = base64.b32encode(vm_id.bytes).decode().rstrip("=").lower()
    return f"{pool[: _NAME_LIMIT - _ID_CHARS - 1].replace('.', '-').rstrip('-')}-{suffix}"


def vm_pool_name(pool: str, pool_id: uuid.UUID, made: int) -> str:
    """The cluster name of the VirtualMachinePool that was made for the pool as its `made`th, at most 57 characters.

    Its VMs are called after it with an index behind, so that the names of two pools' VMs are never the same; nor are those of
    one that was deleted and the one that took its place, whose VMs could else boot the disks of those before them.
    """
    suffix = base64.b32encode(pool_id.bytes[-5:]).decode().lower()  # the end of a UUIDv7 is chance
    rest = f"-{suffix}" + (f"-{made}" if made > 1 else "")
    return f"{pool[: _VM_POOL_LIMIT - len(rest)].replace('.', '-').rstrip('-')}{rest}"


def preload_object_name(preload: str, preload_id: uuid.UUID, generation: int) -> str:
    """The cluster name of what one generation of a preload is, at most 50 characters. Like a VM's it never comes back."""
    suffix = base64.b32encode(preload_id.bytes).decode().rstrip("=").lower()
    rest = f"-{suffix}-{generation}"
    return f"{preload[: _PRELOAD_LIMIT - len(rest)].replace('.', '-').rstrip('-')}{rest}"
