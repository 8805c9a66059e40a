"""Storage without data: everything succeeds, after a configured time."""

from collections.abc import Callable

from typing_extensions import override

from app.devcluster.apiserver.work import Timers
from app.devcluster.clock import Clock
from app.devcluster.durations import Durations, Jitter
from app.devcluster.storage.backend import (
    Done,
    Failed,
    Origin,
    Progress,
    StorageBackend,
    Transfer,
    TransferFailure,
    Volume,
)

_STEPS = 8
_PERCENT = 100.0


class SimulatedStorage(StorageBackend):
    def __init__(self, clock: Clock, durations: Durations, jitter: Jitter) -> None:
        self._durations = durations
        self._jitter = jitter
        self._timers: Timers[str] = Timers(clock)

    @override
    def refusal(self, kind: str) -> str:
        return ""

    @override
    def make(self, key: str, volume: Volume, origin: Origin, done: Done, failed: Failed) -> None:
        durations = self._durations
        seconds = {"volume": durations.clone_total, "snapshot": durations.snapshot_restore}
        self._after(key, "make", seconds.get(origin.kind, durations.volume_bind), done)

    @override
    def transfer(self, key: str, transfer: Transfer, told: Progress, failed: Callable[[TransferFailure], None]) -> None:
        if transfer.kind == "blank":
            self._timers.ensure(key, "blank", self._durations.volume_bind, lambda: told(_PERCENT))
            return
        done, stop = transfer.done, transfer.stop
        target = round(min(done + _PERCENT / _STEPS, max(stop, done)), 2)
        seconds = self._durations.import_total * (target - done) / _PERCENT
        self._after(key, f"{transfer.attempt}-{target}", seconds, lambda: told(target))

    @override
    def clone(
        self, key: str, volume: Volume, origin: Origin, strategy: str, done: float, told: Progress, failed: Failed
    ) -> None:
        steps = _STEPS if strategy == "copy" else 1
        target = round(done + _PERCENT / steps, 2)
        total = {"copy": self._durations.copy_total, "restore": 2 * self._durations.snapshot_restore}
        seconds = total.get(strategy, self._durations.clone_total) / steps
        self._after(key, f"clone-{target}", seconds, lambda: told(target))

    @override
    def freeze(self, key: str, content: str, volume: str, done: Done, failed: Failed) -> None:
        self._after(key, "freeze", self._durations.snapshot_total, done)

    @override
    def cancel(self, key: str) -> None:
        self._timers.cancel(key)

    @override
    def discard(self, handle: str) -> None:
        return

    @override
    def stop(self) -> None:
        self._timers.cancel_all()

    def _after(self, key: str, stage: str, seconds: float, callback: Done) -> None:
        self._timers.ensure(key, stage, self._jitter.spread(seconds), callback)
