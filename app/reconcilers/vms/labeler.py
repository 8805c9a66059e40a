"""Writes each claim's id, and what people call it, onto its VM in the cluster, after the claim was answered, and until it is done."""

import random

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.failures import retry_delay
from app.errors import ClusterError, ClusterUnavailable
from app.reconcilers.runtime.loop import at_once
from app.store.database import Database
from app.store.vms import work
from app.store.vms.work import LabelWork
from app.telemetry import CLUSTER_CALLS

_RETRY_CAP_SECONDS = 60.0
log = structlog.get_logger(__name__)


class Labelling:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._settings = settings

    async def step(self) -> bool:
        """Labels one batch of claimed VMs; True where there may be more."""
        limit = self._settings.provision_concurrency
        async with self._db.begin() as tx:
            taken = await work.take_unlabelled(tx, limit=limit, seconds=self._settings.work_lease_seconds)
        await at_once(self._label, taken)
        return len(taken) == limit

    async def _label(self, item: LabelWork) -> None:
        try:
            await self._gateway.label_claim(
                name=item.name, uid=item.uid, claim_id=str(item.claim_id), called=item.called
            )
        except (ClusterUnavailable, ClusterError) as error:
            # A VM that has gone is the watch's to report; until it has, asking again is cheap.
            CLUSTER_CALLS.labels(call="label", outcome=error.code).inc()
            seconds = retry_delay(
                item.attempts,
                base_seconds=self._settings.backoff_base_seconds,
                cap_seconds=_RETRY_CAP_SECONDS,
                roll=random.random(),  # noqa: S311 - jitter, not a secret
            )
            log.info("vm.label_put_off", vm=item.name, error=error.detail, seconds=round(seconds, 1))
            async with self._db.begin() as tx:
                await work.label_later(tx, item, seconds=seconds)
        else:
            CLUSTER_CALLS.labels(call="label", outcome="ok").inc()
            async with self._db.begin() as tx:
                await work.mark_labelled(tx, item)
