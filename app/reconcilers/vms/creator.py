"""Creates in the cluster what the rows plan.

Rows are taken under a lease, the cluster is called with no transaction open, and the answer is written while the lease
still holds. A worker that dies between leaves a row that the next one takes after the lease: the same name, so the cluster
answers "already exists", which is success.
"""

import random

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.failures import retry_delay
from app.domain.observation import Observation
from app.domain.paths import StartPath
from app.domain.states import VmState
from app.errors import ClusterError, ClusterUnavailable
from app.ids import new_id
from app.lifecycle.start_sources import NotYet, resolve_start
from app.reconcilers.runtime.loop import at_once
from app.reconcilers.vms.outcomes import FateRules, give_up
from app.store.database import Database
from app.store.preloads import rows as preload_rows
from app.store.vms import observed, work
from app.store.vms import rows as vms
from app.store.vms.work import CreateWork
from app.telemetry import CLUSTER_CALLS

log = structlog.get_logger(__name__)


class Provision:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._settings = settings
        self._rules = FateRules.of(settings)
        self.token = new_id()

    async def step(self) -> bool:
        """Creates one batch of VMs, `provision_concurrency` at once; True where there may be more."""
        limit = self._settings.provision_concurrency
        async with self._db.begin() as tx:
            taken = await work.take_creates(
                tx,
                token=self.token,
                limit=limit,
                seconds=self._settings.work_lease_seconds,
                rate=self._settings.creates_per_second,
            )
        await at_once(self._create, taken)
        return len(taken) == limit

    async def hand_back(self) -> None:
        """What this worker still holds is free for another at once."""
        async with self._db.begin() as tx:
            await work.hand_back(tx, token=self.token)

    async def _create(self, item: CreateWork) -> None:
        async with self._db.begin() as tx:
            start = await resolve_start(tx, item.path, item.source, asked_at=item.asked_at)
            if start is None and item.source is not None:
                await work.start_cold(tx, item.id, token=self.token)
        if isinstance(start, NotYet):
            await self._put_off(item, start.reason, unasked=item.first)
            return
        try:
            made = await self._gateway.create_vm(
                name=item.name, pool=item.pool, vm_id=str(item.id), spec=item.vm_spec, start=start
            )
        except ClusterUnavailable as error:
            CLUSTER_CALLS.labels(call="create", outcome="unavailable").inc()
            await self._put_off(item, f"the cluster is away: {error.detail}")
        except ClusterError as error:
            CLUSTER_CALLS.labels(call="create", outcome=error.code).inc()
            await self._fail(item, error)
        else:
            CLUSTER_CALLS.labels(call="create", outcome="ok").inc()
            await self._begin_boot(item, made)

    async def _begin_boot(self, item: CreateWork, made: Observation) -> None:
        async with self._db.begin() as tx:
            if item.path is StartPath.PRELOAD and item.source is not None:
                await preload_rows.note_use(tx, item.source)
            # Where the watch was faster the row is booting already, and this changes nothing.
            if await work.holds(tx, item.id, token=self.token, states=[VmState.CREATING]):
                await work.write_uid(tx, item.id, made.uid)
                await vms.move(
                    tx,
                    [item.id],
                    VmState.BOOTING,
                    sources=[VmState.CREATING],
                    deadline_seconds=item.boot_timeout_seconds,
                )

    async def _put_off(self, item: CreateWork, why: str, *, unasked: bool = False) -> None:
        """The cluster is away, or what the VM starts from is not ready: nobody's fault, so the row goes back to the plan and is
        tried again later, under the same name.
        """
        seconds = retry_delay(
            item.attempts,
            base_seconds=self._settings.backoff_base_seconds,
            cap_seconds=self._settings.backoff_cap_seconds,
            roll=random.random(),  # noqa: S311 - jitter, not a secret
        )
        log.info("vm.create_put_off", vm=item.name, why=why, seconds=round(seconds, 1), attempts=item.attempts)
        async with self._db.begin() as tx:
            await work.put_off_create(tx, item.id, token=self.token, seconds=seconds, why=why, unasked=unasked)

    async def _fail(self, item: CreateWork, error: ClusterError) -> None:
        async with self._db.begin() as tx:
            if not await work.holds(tx, item.id, token=self.token, states=[VmState.CREATING]):
                return
            vm = (await observed.by_ids(tx, [item.id])).get(item.id)
            if vm is not None:
                now = await observed.database_now(tx)
                await give_up(tx, vm, VmState.FAILED, reason=error.detail, rules=self._rules, now=now)
