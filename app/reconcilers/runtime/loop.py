"""The loop of every reconciler: a step is run again at once while it finds work, otherwise at a wake-up or after an interval.

The database is authoritative, and every step is safe to run twice or in two places. A loop that fails is only late.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from app.background import PartHealth
from app.concurrency import first_of
from app.domain.failures import retry_delay
from app.errors import ClusterUnavailable, DatabaseUnavailable
from app.telemetry import LOOP_ERRORS

_BACKOFF_BASE_SECONDS = 0.5
_BACKOFF_CAP_SECONDS = 15.0
FORBIDDEN_SECONDS = 60.0
"""How long a loop does without what it has no right to before it asks again: rights are granted by people."""
log = structlog.get_logger(__name__)
_Item = TypeVar("_Item")


@dataclass(slots=True)
class Wake:
    """A hint that there is work. Several hints that come while a step runs count as one for the next."""

    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, _payload: str = "") -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


async def run_loop(
    health: PartHealth, step: Callable[[], Awaitable[bool]], *, every: float, wake: Wake, stop: asyncio.Event
) -> None:
    """Runs `step` until `stop`: at once while it returns True, otherwise on a wake-up or after `every` seconds.

    If the database or the cluster does not answer, the loop waits with jittered backoff. Any other error is logged with its
    traceback and counted, and the loop waits likewise: one bad row must not end the service for the others.
    """
    name = health.part
    failures = 0
    while not stop.is_set():
        try:
            with structlog.contextvars.bound_contextvars(loop=name):
                busy = await step()
        except (DatabaseUnavailable, ClusterUnavailable) as error:
            failures += 1
            health.failed(error)
        except Exception:
            failures += 1
            LOOP_ERRORS.labels(loop=name).inc()
            log.exception("loop.failed", loop=name, failures=failures)
        else:
            failures = 0
            health.worked()
            if busy:
                await asyncio.sleep(0)
                continue
        pause = every
        if failures:
            roll = random.random()  # noqa: S311 - jitter, not a secret
            pause = retry_delay(
                failures, base_seconds=_BACKOFF_BASE_SECONDS, cap_seconds=_BACKOFF_CAP_SECONDS, roll=roll
            )
        await rest(pause, None if failures else wake, stop)


async def at_once(handle: Callable[[_Item], Awaitable[None]], items: Sequence[_Item]) -> None:
    """Handles all items side by side. Once all of them ended, raises the first failure if there was one."""
    for result in await asyncio.gather(*(handle(item) for item in items), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def rest(seconds: float, wake: Wake | None, stop: asyncio.Event) -> None:
    """Returns after `seconds`, at a wake-up, or at the stop, whichever comes first."""
    hint = [wake.wait()] if wake is not None else []
    await first_of(stop.wait(), *hint, timeout=seconds)
