"""Leases and surveys of the cluster in memory. A test makes somebody else's Lease by writing `lease`."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from uuid import UUID

from app.domain.ownership import FoundVm, LeaseRecord
from app.errors import ClusterConflict


class FakeOwnership:
    def __init__(self, gateway):
        self._gateway = gateway
        self._versions = count(1)
        self.installation = None
        self.lease: LeaseRecord | None = None

    def identify(self, installation):
        self.installation = installation

    async def read_lease(self):
        await self._gateway._called("read_lease", "")
        return self.lease

    async def write_lease(self, before, *, sequence, writer, replica):
        await self._gateway._called("write_lease", replica)
        if before != self.lease:
            raise ClusterConflict("It was written by somebody else.")
        self.lease = LeaseRecord(
            name="emberpool",
            holder=self.installation,
            sequence=sequence,
            writer=writer,
            renewed_at=datetime.now(UTC),
            seconds=40,
            version=str(next(self._versions)),
            replica=replica,
        )

    async def survey(self):
        await self._gateway._called("survey", "")
        return tuple(self.found(vm) for vm in self._gateway.vms.values())

    async def sign(self, *, name, uid):
        await self._gateway._called("sign", name)
        found = self._gateway.vms.get(name)
        if found is not None and found.uid == uid:
            self._gateway.change(name, installation=self.installation)

    def found(self, vm):
        return FoundVm(
            name=vm.name,
            uid=vm.uid,
            installation=vm.installation,
            vm_id=_id(vm.vm_id),
            pool=vm.pool,
            pool_id=_id(vm.pool_id),
            claim_id=_id(vm.claim_id),
            record=self._gateway.records.get(vm.name) if vm.claim_id else None,
            owner=vm.owner,
            created_at=vm.created_at,
            deleting=vm.deleting,
        )

    def expire(self, **changes):
        """Nobody has renewed the Lease for long."""
        self.lease = replace(self.lease, renewed_at=datetime(2026, 1, 1, tzinfo=UTC), **changes)


def _id(value):
    return UUID(value) if value else None
