"""The base of every reconciler that works on rows under a lease.

A step acquires the rows that are due and processes them side by side, with no transaction open while the cluster is called.
Processing one row ends in one of these ways:

- done: `process` returns. It has written the outcome, and that write released the row.
- retry_later: the row is due again after a pause, because the cluster did not answer or refused, or because `process` raised
  RetryLater.
- lost: the lease expired meanwhile and another worker has the row. Nothing is written.

At a stop, `release` gives back untouched whatever is still held. A worker that dies releases nothing: its leases expire, and
the next worker processes the same rows again. So everything that `process` does must be safe to do twice.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Generic, Protocol, TypeVar
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.failures import retry_delay
from app.errors import ClusterError, ClusterUnavailable
from app.ids import new_id
from app.reconcilers.runtime.loop import at_once
from app.store.database import Database, Tx
from app.store.leases import RowLeases
from app.telemetry import CLUSTER_CALLS

log = structlog.get_logger(__name__)


class Work(Protocol):
    """One acquired row. `attempts`: how many times in a row it was tried, this time included."""

    @property
    def name(self) -> str: ...

    @property
    def attempts(self) -> int: ...


Item = TypeVar("Item", bound=Work)


class LeaseLost(Exception):
    """Another worker has the row by now."""


class RetryLater(Exception):
    """The row cannot be finished now. `after`: the least seconds to wait, where the cluster named them."""

    def __init__(self, reason: str, *, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class LeasedWorker(ABC, Generic[Item]):
    """`subject`: what its rows are, in logs. `call`: what it asks the cluster for, in logs and in the metric of cluster calls."""

    subject: ClassVar[str]
    call: ClassVar[str]
    leases: ClassVar[RowLeases]
    retry_cap_seconds: ClassVar[float] = 60.0

    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self.token = new_id()
        self._db = db
        self._gateway = gateway
        self._settings = settings

    async def step(self) -> bool:
        """Acquires and processes one batch. True if more rows may be due."""
        limit = self.batch_size
        async with self._db.once() as tx:
            items = await self.acquire(tx, limit)
        await at_once(self._visit, items)
        return len(items) == limit

    async def release(self) -> None:
        """Gives back everything that this worker still holds: another can acquire it at once."""
        async with self._db.begin() as tx:
            await self.leases.release(tx, token=self.token)

    @property
    def batch_size(self) -> int:
        return self._settings.provision_concurrency

    @abstractmethod
    async def acquire(self, tx: Tx, limit: int) -> Sequence[Item]:
        """Up to `limit` rows that are due, leased to this worker's token, by one statement."""

    @abstractmethod
    async def process(self, item: Item) -> None:
        """Does the work of one row. The module says how it may end."""

    @abstractmethod
    async def retry_later(self, tx: Tx, item: Item, retry: RetryLater, *, seconds: float) -> None:
        """Writes that the row is due again after `seconds`, and why. Changes nothing if the lease was lost."""

    async def refused(self, item: Item, error: ClusterError) -> None:  # noqa: ARG002 - for those that write it to the row
        """The cluster refused. By default the row is retried later."""
        raise RetryLater(error.detail) from error

    def pause(self, item: Item, retry: RetryLater) -> float:  # noqa: ARG002 - for those that ask the error
        """Seconds until the row is tried again."""
        return self.backoff(item.attempts)

    def backoff(self, attempts: int) -> float:
        settings = self._settings
        return retry_delay(
            attempts,
            base_seconds=settings.backoff_base_seconds,
            cap_seconds=min(self.retry_cap_seconds, settings.backoff_cap_seconds),
            roll=random.random(),  # noqa: S311 - jitter, not a secret
        )

    @asynccontextmanager
    async def guarded(self, row_id: UUID) -> AsyncIterator[Tx]:
        """A transaction in which this worker holds the row. Raises LeaseLost otherwise."""
        async with self._db.begin() as tx:
            if not await self.leases.holds(tx, row_id, token=self.token):
                raise LeaseLost
            yield tx

    async def _visit(self, item: Item) -> None:
        with structlog.contextvars.bound_contextvars(**{self.subject: item.name}):
            try:
                await self._process(item)
            except LeaseLost:
                log.info("work.lease_lost", call=self.call)
            except RetryLater as retry:
                seconds = self.pause(item, retry)
                log.info("work.retry_later", call=self.call, reason=retry.reason, seconds=round(seconds, 1))
                async with self._db.begin() as tx:
                    await self.retry_later(tx, item, retry, seconds=seconds)

    async def _process(self, item: Item) -> None:
        try:
            await self.process(item)
        except ClusterUnavailable as error:
            CLUSTER_CALLS.labels(call=self.call, outcome=error.code).inc()
            raise RetryLater(f"the cluster is unavailable: {error.detail}", after=error.retry_after) from error
        except ClusterError as error:
            CLUSTER_CALLS.labels(call=self.call, outcome=error.code).inc()
            await self.refused(item, error)
        else:
            CLUSTER_CALLS.labels(call=self.call, outcome="ok").inc()
