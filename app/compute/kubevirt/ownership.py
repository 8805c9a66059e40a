"""The Lease of an installation (coordination.k8s.io), and the id that its VMs carry as a label."""

import json
import uuid
from contextlib import aclosing, suppress
from datetime import UTC, datetime

from app.compute.kubevirt import labels
from app.compute.kubevirt.client import AlreadyExists, KubeVirtClient
from app.compute.kubevirt.kinds import LEASES, VMS, Manifest
from app.compute.kubevirt.vms.observations import find_owner, read_time
from app.config import Settings
from app.domain.ownership import ClaimRecord, FoundVm, LeaseRecord
from app.errors import ClusterConflict, ClusterNotFound

_SEQUENCE = f"{labels.PREFIX}sequence"
_WRITER = f"{labels.PREFIX}writer"
_REPLICA = f"{labels.PREFIX}replica"


class KubeVirtOwnership:
    """Implements `OwnershipGateway`."""

    def __init__(self, settings: Settings, client: KubeVirtClient) -> None:
        self._client = client
        self._where = {"namespace": settings.namespace, "instance": settings.instance}
        self._name = lease_name(settings.instance)
        self._seconds = settings.installation_lease_seconds

    def identify(self, installation: str) -> None:
        self._client.installation = installation

    async def read_lease(self) -> LeaseRecord | None:
        found = await self._client.find(LEASES, self._name)
        return read_lease(found) if found is not None else None

    async def write_lease(self, before: LeaseRecord | None, *, sequence: int, writer: str, replica: str) -> None:
        noted = {_SEQUENCE: str(sequence), _WRITER: writer, _REPLICA: replica}
        spec = {
            "holderIdentity": self._client.installation,
            "leaseDurationSeconds": self._seconds,
            "renewTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        if before is None:
            ours = labels.ours(self._where["instance"])
            metadata = {"name": self._name, "namespace": self._where["namespace"], "labels": ours, "annotations": noted}
            try:
                await self._client.create(LEASES, LEASES.manifest(metadata, spec))
            except AlreadyExists as error:
                raise ClusterConflict(f"Lease {self._name} was made by somebody else at this moment.") from error
            return
        uid, version = before.version.split("/")
        signed = {labels.INSTALLATION: self._client.installation}
        change = {"resourceVersion": version, "labels": signed, "annotations": noted}
        await self._client.merge(LEASES, self._name, uid, {"metadata": change, "spec": spec})

    async def survey(self) -> tuple[FoundVm, ...]:
        found: list[FoundVm] = []
        async with aclosing(self._client.pages(VMS)) as pages:
            async for page in pages:
                found += map(read_vm, page.items)
        return tuple(found)

    async def sign(self, *, name: str, uid: str) -> None:
        with suppress(ClusterNotFound, ClusterConflict):
            signed = {labels.INSTALLATION: self._client.installation}
            await self._client.merge(VMS, name, uid, {"metadata": {"labels": signed}})


def lease_name(instance: str) -> str:
    """The name of the Lease that stands for all services of the instance."""
    return instance if instance == labels.MANAGER else f"{labels.MANAGER}-{instance}"


def read_lease(lease: Manifest) -> LeaseRecord:
    """Somebody else's Lease of that name is one whose holder is no installation that we know."""
    metadata, spec = lease["metadata"], lease.get("spec") or {}
    noted = metadata.get("annotations") or {}
    sequence = str(noted.get(_SEQUENCE) or "")
    return LeaseRecord(
        name=str(metadata["name"]),
        holder=str(spec.get("holderIdentity") or ""),
        sequence=int(sequence) if sequence.isdecimal() else 0,
        writer=noted.get(_WRITER),
        renewed_at=read_time(spec.get("renewTime")),
        seconds=int(spec.get("leaseDurationSeconds") or 0),
        version=f"{metadata['uid']}/{metadata['resourceVersion']}",
        replica=str(noted.get(_REPLICA) or "unknown"),
    )


def read_vm(vm: Manifest) -> FoundVm:
    """What a VirtualMachine of the cluster carries of ours."""
    metadata = vm["metadata"]
    found = metadata.get("labels") or {}
    return FoundVm(
        name=str(metadata["name"]),
        uid=str(metadata["uid"]),
        installation=found.get(labels.INSTALLATION),
        vm_id=_read_id(found.get(labels.VM_ID)),
        pool=found.get(labels.POOL),
        pool_id=_read_id(found.get(labels.POOL_ID)),
        claim_id=_read_id(found.get(labels.CLAIM)),
        record=_read_record((metadata.get("annotations") or {}).get(labels.RECORD)),
        owner=find_owner(metadata),
        created_at=read_time(metadata.get("creationTimestamp")),
        deleting=bool(metadata.get("deletionTimestamp")),
    )


def _read_record(text: object) -> ClaimRecord | None:
    try:
        return ClaimRecord.read(json.loads(text)) if isinstance(text, str) else None
    except ValueError:
        return None


def _read_id(value: object) -> uuid.UUID | None:
    try:
        return uuid.UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
