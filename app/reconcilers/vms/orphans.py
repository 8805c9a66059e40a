"""VMs in the cluster that carry our labels and have no row that lives: removed, held, or another installation's. And VMs that get our
id, because an earlier version made them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.observation import Observation
from app.domain.ownership import Identity, Orphan
from app.domain.states import VM_ENDED
from app.errors import ClusterError, ClusterUnavailable
from app.reconcilers.installation.orphans import Orphanage
from app.reconcilers.runtime.loop import at_once
from app.store import vm_pools
from app.store.database import Tx
from app.store.vms import observed, work
from app.store.vms.observed import ObservedVm
from app.telemetry import ORPHANS

_ORPHANS_AT_ONCE = 50
_SIGNED_AT_ONCE = 500
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
KIND = "VirtualMachine"
log = structlog.get_logger(__name__)

Begin = Callable[[], AbstractAsyncContextManager[Tx]]


class VmOrphans:
    """`begin` opens a transaction in which this process may write."""

    def __init__(self, gateway: Gateway, settings: Settings, begin: Begin) -> None:
        self._gateway = gateway
        self._begin = begin
        self._grace = timedelta(seconds=settings.orphan_grace_seconds)
        self._side_by_side = settings.provision_concurrency
        self._orphanage = Orphanage(KIND, settings)

    async def remove(
        self, identity: Identity, shown: Sequence[Observation], *, began_at: datetime, listed: int
    ) -> None:
        """Removes VMs with our labels that no row knows, once they are older than any create whose answer may be on its way.

        `shown`: all of a list but those that are as their rows say. Those that a VirtualMachinePool owns are left alone: the cluster
        would only replace them.
        """
        before = began_at - self._grace
        old = [obs for obs in shown if not obs.deleting and (obs.created_at or _LONG_AGO) <= before]
        async with self._begin() as tx:
            known = await observed.by_ids(tx, [vm_id for obs in old if (vm_id := vm_id_of(obs)) is not None])
            strange = [obs for obs in old if obs.owner is None and _is_strange(obs, known)]
            of_others = await vm_pools.ids_of_uids(tx, [obs.uid for obs in strange])
            found = [_orphan(obs, known) for obs in strange if obs.uid not in of_others]
            removable = await self._orphanage.sort(tx, identity, found, listed=listed)
        for each in removable[:_ORPHANS_AT_ONCE]:
            log.warning("orphan.removed", vm=each.name, uid=each.uid)
            try:
                await self._gateway.delete_vm(name=each.name, uid=each.uid)
                await self._gateway.identities.remove(name=each.name, uid=None)
            except (ClusterUnavailable, ClusterError) as error:
                log.info("orphan.retry_later", vm=each.name, error=error.detail)
                return
            ORPHANS.inc()

    async def sign(self, shown: Sequence[Observation]) -> None:
        """Writes our id onto those of the VMs that rows know, so that no other database takes them for its own; and has the claims of
        these VMs written onto them again, with all that they can be rebuilt from.
        """
        unsigned = [obs for obs in shown if not obs.deleting]
        if not unsigned:
            return
        async with self._begin() as tx:
            known = await observed.by_ids(tx, [vm_id for obs in unsigned if (vm_id := vm_id_of(obs)) is not None])
            by_uid = await vm_pools.ids_of_uids(tx, [obs.uid for obs in unsigned])
        ours = [obs for obs in unsigned if obs.uid in by_uid or not _is_strange(obs, known)][:_SIGNED_AT_ONCE]
        try:
            for start in range(0, len(ours), self._side_by_side):
                await at_once(self._sign_one, ours[start : start + self._side_by_side])
        except (ClusterUnavailable, ClusterError) as error:
            log.info("installation.sign_later", error=error.detail)
            return
        async with self._begin() as tx:
            await work.label_again(tx, [vm_id for obs in ours if (vm_id := by_uid.get(obs.uid)) is not None])

    async def _sign_one(self, obs: Observation) -> None:
        await self._gateway.ownership.sign(name=obs.name, uid=obs.uid)


def vm_id_of(obs: Observation) -> UUID | None:
    try:
        return UUID(obs.vm_id) if obs.vm_id else None
    except ValueError:
        return None


def _is_strange(obs: Observation, known: dict[UUID, ObservedVm]) -> bool:
    """Whether the row with the VM's id, if there is one, is not of this object."""
    vm_id = vm_id_of(obs)
    vm = known.get(vm_id) if vm_id is not None else None
    if vm is None or vm.name != obs.name or vm.state in VM_ENDED:
        return True
    return vm.facts.uid is not None and vm.facts.uid != obs.uid


def _orphan(obs: Observation, known: Sequence[UUID] | dict[UUID, ObservedVm]) -> Orphan:
    return Orphan(obs.name, obs.uid, obs.installation, has_row=vm_id_of(obs) in known, claim_id=obs.claim_id)
