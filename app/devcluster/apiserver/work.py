"""A work queue and timers for controllers."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from app.devcluster.apiserver.status import ApiError
from app.devcluster.clock import Clock, Timer

KeyT = TypeVar("KeyT")
_SLICE = 20
_log = structlog.get_logger(__name__)


class WorkQueue(Generic[KeyT]):
    """Runs `handle(key)` `delay` seconds after `add(key)`; a key that is added twice before that is handled once.

    It handles a few keys per turn of the event loop, so that requests are served in between. `handle` may cause its own key
    to be added again, so it must write nothing where nothing is left to do.
    """

    def __init__(self, name: str, handle: Callable[[KeyT], None], clock: Clock, delay: float = 0.0) -> None:
        self._name = name
        self._handle = handle
        self._clock = clock
        self._delay = delay
        self._keys: dict[KeyT, None] = {}
        self._batch: deque[KeyT] = deque()
        self._scheduled = False
        self._waiting = False
        self._stopped = False

    def add(self, key: KeyT) -> None:
        self._keys[key] = None
        if self._scheduled or self._stopped:
            return
        self._scheduled = True
        if self._delay > 0:
            self._waiting = True
            self._clock.call_later(self._delay, self._run)
        else:
            asyncio.get_running_loop().call_soon(self._run)

    def stop(self) -> None:
        self._stopped = True
        self._keys.clear()
        self._batch.clear()

    @property
    def idle(self) -> bool:
        """Nothing to do before time moves on."""
        return not self._batch and (self._waiting or not self._keys)

    def _run(self) -> None:
        self._scheduled = self._waiting = False
        if self._batch:
            self._keys, added = {}, self._keys
            self._batch.extend(key for key in added if key not in self._batch)
            return
        self._batch.extend(self._keys)
        self._keys.clear()
        self._work()

    def _work(self) -> None:
        for _ in range(min(_SLICE, len(self._batch))):
            key = self._batch.popleft()
            try:
                self._handle(key)
            except ApiError as error:
                _log.warning("controller_write_refused", controller=self._name, key=key, error=error.message)
            except Exception:  # noqa: BLE001  # an error with one object must not stop the controller
                _log.exception("controller_failed", controller=self._name, key=key)
        if self._batch and not self._stopped:
            asyncio.get_running_loop().call_soon(self._work)


class Timers(Generic[KeyT]):
    """At most one timer for each key. Asking again for the same stage changes nothing; another stage replaces the timer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[KeyT, tuple[str, Timer]] = {}

    def ensure(self, key: KeyT, stage: str, delay: float, callback: Callable[[], None]) -> None:
        running = self._running.get(key)
        if running is not None:
            if running[0] == stage:
                return
            running[1].cancel()

        def fire() -> None:
            self._running.pop(key, None)
            callback()

        self._running[key] = (stage, self._clock.call_later(delay, fire))

    def waits_for(self, key: KeyT) -> str | None:
        running = self._running.get(key)
        return running[0] if running else None

    def cancel(self, key: KeyT) -> None:
        running = self._running.pop(key, None)
        if running is not None:
            running[1].cancel()

    def cancel_all(self) -> None:
        for _, timer in self._running.values():
            timer.cancel()
        self._running.clear()
