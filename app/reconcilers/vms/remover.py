"""Removes from the cluster the VMs that rows want gone. A row is `deleted` only once the cluster has no such object."""

import random

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.failures import retry_delay
from app.domain.states import VmState
from app.errors import ClusterError, ClusterUnavailable
from app.ids import new_id
from app.reconcilers.runtime.loop import at_once
from app.store.database import Database
from app.store.pools import rows as pool_rows
from app.store.vms import rows as vms
from app.store.vms import work
from app.store.vms.work import RemoveWork
from app.telemetry import CLUSTER_CALLS

_RECHECK_SECONDS = 5.0
_RETRY_CAP_SECONDS = 60.0
log = structlog.get_logger(__name__)


class Removal:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._settings = settings
        self.token = new_id()

    async def step(self) -> bool:
        """Asks for the end of one batch of VMs; True where there may be more."""
        limit = self._settings.provision_concurrency
        async with self._db.begin() as tx:
            taken = await work.take_removals(
                tx, token=self.token, limit=limit, seconds=self._settings.work_lease_seconds
            )
        await at_once(self._remove, taken)
        return len(taken) == limit

    async def hand_back(self) -> None:
        """What this worker still holds is free for another at once."""
        async with self._db.begin() as tx:
            await work.hand_back(tx, token=self.token)

    async def _remove(self, item: RemoveWork) -> None:
        try:
            going = await self._gateway.delete_vm(name=item.name, uid=item.uid)
        except ClusterUnavailable as error:
            CLUSTER_CALLS.labels(call="delete", outcome="unavailable").inc()
            await self._defer(item, why=f"the cluster is away: {error.detail}")
        except ClusterError as error:
            CLUSTER_CALLS.labels(call="delete", outcome=error.code).inc()
            await self._defer(item, why=f"it cannot be removed: {error.detail}")
        else:
            CLUSTER_CALLS.labels(call="delete", outcome="ok").inc()
            await self._write(item, going=going)

    async def _write(self, item: RemoveWork, *, going: bool) -> None:
        async with self._db.begin() as tx:
            if not await work.holds(tx, item.id, token=self.token, states=[VmState.FAILED, VmState.RELEASING]):
                return
            await vms.release(tx, [item.id], sources=[VmState.FAILED], reason=None)
            if going:
                # The watch tells when it has gone; asking again is for the case that it does not.
                await work.look_again(tx, item.id, seconds=_RECHECK_SECONDS * min(item.attempts, 12))
                return
            await vms.move(tx, [item.id], VmState.DELETED, sources=[VmState.RELEASING])
            await pool_rows.plan_soon(tx, item.pool_id)

    async def _defer(self, item: RemoveWork, *, why: str) -> None:
        seconds = retry_delay(
            item.attempts,
            base_seconds=self._settings.backoff_base_seconds,
            cap_seconds=min(_RETRY_CAP_SECONDS, self._settings.backoff_cap_seconds),
            roll=random.random(),  # noqa: S311 - jitter, not a secret
        )
        log.info("vm.remove_put_off", vm=item.name, why=why, seconds=round(seconds, 1))
        async with self._db.begin() as tx:
            await work.defer(tx, item.id, token=self.token, seconds=seconds, why=why)
