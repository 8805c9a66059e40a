"""Ids are made before the insert, so that a row, its name in the cluster and the answer agree whatever crashes in between."""

import base64
import uuid
from datetime import datetime

import uuid_utils

_NAME_LIMIT = 63  # a label value's limit, and a host name's: VM names are used as both
_ID_CHARS = 26  # 128 bits in base32
_VM_POOL_LIMIT = 57  # an index of up to five digits comes behind it
_PRELOAD_LIMIT = 50  # CDI puts a digest behind the name of what a schedule imports, and 63 are the limit again


def new_id() -> uuid.UUID:
    """A UUIDv7. It rises with time, so that inserts go to the end of an index."""
    return uuid.UUID(bytes=uuid_utils.uuid7().bytes)


def lowest_id_at(moment: datetime) -> uuid.UUID:
    """The lowest UUIDv7 of a time: 48 bits of milliseconds since 1970 (RFC 9562), the rest zero."""
    return uuid.UUID(int=int(moment.timestamp() * 1000) << 80)


def vm_name(pool: str, vm_id: uuid.UUID) -> str:
    """The name of a VM in the cluster, at most 63 characters: the pool's name for people, and the whole id to make it unique.

    It has no dot, because it is the guest's host name too. A name is never used twice: a VM of the same name could boot the disk
    of an earlier one (KubeVirt v1.9.0 looks a DataVolume up by name alone).
    """
    suffix = base64.b32encode(vm_id.bytes).decode().rstrip("=").lower()
    return f"{pool[: _NAME_LIMIT - _ID_CHARS - 1].replace('.', '-').rstrip('-')}-{suffix}"


def vm_pool_name(pool: str, pool_id: uuid.UUID, made: int) -> str:
    """The name of a pool's VirtualMachinePool in the cluster, at most 57 characters. `made` counts those of the pool, from 1.

    Its VMs are named after it, with an index added. So the names of two pools' VMs are never the same, and neither are those of
    a deleted VirtualMachinePool and its successor, whose VMs could otherwise boot the earlier disks.
    """
    suffix = base64.b32encode(pool_id.bytes[-5:]).decode().lower()  # the end of a UUIDv7 is random
    rest = f"-{suffix}" + (f"-{made}" if made > 1 else "")
    return f"{pool[: _VM_POOL_LIMIT - len(rest)].replace('.', '-').rstrip('-')}{rest}"


def preload_object_name(preload: str, preload_id: uuid.UUID, generation: int) -> str:
    """The name of one generation of a preload in the cluster, at most 50 characters. Like a VM's, it is never used twice."""
    suffix = base64.b32encode(preload_id.bytes).decode().rstrip("=").lower()
    rest = f"-{suffix}-{generation}"
    return f"{preload[: _PRELOAD_LIMIT - len(rest)].replace('.', '-').rstrip('-')}{rest}"
