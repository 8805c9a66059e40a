"""Storage whose data exist: a bound claim is a qcow2 file, a clone or restore an overlay, a snapshot a frozen layer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

import structlog
from typing_extensions import override

from app.devcluster.guests.disks.disks import Disks, Pivot
from app.devcluster.guests.disks.errors import DiskError, DiskTooSmall
from app.devcluster.guests.images.errors import FetchFailed, ImageError
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
from app.devcluster.storage.volumes import IMAGE_PULL_FAILED

_IMPORTED: Final = frozenset({"http", "registry", "blank"})
_CLONED: Final = frozenset({"pvc", "snapshot"})
_UNREAD: Final = ("secretRef", "certConfigMap", "extraHeaders", "secretExtraHeaders", "imageStream")
_CONVERTING: Final = "Unable to process data: Unable to convert source data to target format: "
_PERCENT: Final = 100.0
_log = structlog.get_logger(__name__)


class Image(Protocol):
    """A disk image in a file that nobody changes. `format` as qemu-img calls it."""

    @property
    def path(self) -> Path: ...

    @property
    def format(self) -> str: ...


class Fetch(Protocol):
    """Brings the image at a URL here. Raises ImageError in CDI's words."""

    def __call__(
        self, reference: str, /, *, on_progress: Callable[[float | None], None], checksum: str | None
    ) -> Awaitable[Image]: ...


class FileStorage(StorageBackend):
    """Call `open` first and `close` last. `pivot` has a running guest change over to another file."""

    def __init__(self, folder: Path, fetch: Fetch, pivot: Pivot) -> None:
        self._folder = folder
        self._fetch = fetch
        self._pivot = pivot
        self._disks: Disks | None = None
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self, wanted: Iterable[str]) -> None:
        """Take up the disks in the folder; only those with a `wanted` handle are kept. Raises DiskError."""
        self._disks = await Disks.open(self._folder, pivot=self._pivot, wanted=wanted)

    async def close(self) -> None:
        self.stop()
        while self._ending:
            await asyncio.wait(tuple(self._ending))
        if self._disks is not None:
            self._disks.close()

    @property
    def disks(self) -> Disks:
        if self._disks is None:
            raise RuntimeError("open() comes first")
        return self._disks

    # For guests

    async def attach(self, handle: str, holder: str) -> Path:
        """The file of a volume, for the guest `holder`, until `detach`. Raises DiskError."""
        return await self.disks.attach(handle, holder)

    def detach(self, holder: str) -> None:
        self.disks.detach(holder)

    def path_of(self, handle: str) -> Path | None:
        """The file of a volume or snapshot as it is now, to look at."""
        return self.disks.path(handle) if handle in self.disks.names() else None

    async def freeze_all(self, contents: Mapping[str, str]) -> None:
        """Keep volumes as the data of snapshots: the handles of volumes, each with that of the content. All or none; raises DiskError."""
        try:
            for volume, content in contents.items():
                await self.disks.freeze(volume, content)
        except BaseException:
            for content in contents.values():
                self.discard(content)
            raise

    # For the controllers

    @override
    def refusal(self, kind: str) -> str:
        if kind in _IMPORTED | _CLONED:
            return ""
        taken = ", ".join(sorted(_IMPORTED | _CLONED))
        return f"Unable to process data: this dev cluster keeps real disks and cannot fill one from {kind}: use one of {taken}"

    @override
    def make(self, key: str, volume: Volume, origin: Origin, done: Done, failed: Failed) -> None:
        self._begin(key, lambda: self._make(volume, origin), done, lambda error: failed(str(error)))

    @override
    def transfer(self, key: str, transfer: Transfer, told: Progress, failed: Callable[[TransferFailure], None]) -> None:
        def fail(error: Exception) -> None:
            failed(_failure(error))

        progress = _TransferProgress(lambda percent: told(percent) if key in self._jobs else None)
        self._begin(key, lambda: self._transfer(transfer, progress), lambda: told(_PERCENT), fail)

    @override
    def clone(
        self, key: str, volume: Volume, origin: Origin, strategy: str, done: float, told: Progress, failed: Failed
    ) -> None:
        work = lambda: self.disks.overlay(volume.handle, origin.handle, volume.size)  # noqa: E731  # begun by _begin
        self._begin(key, work, lambda: told(_PERCENT), lambda error: failed(str(error)))

    @override
    def freeze(self, key: str, content: str, volume: str, done: Done, failed: Failed) -> None:
        self._begin(key, lambda: self.disks.freeze(volume, content), done, lambda error: failed(str(error)))

    @override
    def cancel(self, key: str) -> None:
        task = self._jobs.pop(key, None)
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    @override
    def discard(self, handle: str) -> None:
        task = asyncio.get_running_loop().create_task(self._discard(handle))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    @override
    def stop(self) -> None:
        for key in tuple(self._jobs):
            self.cancel(key)

    # How

    def _begin(
        self, key: str, work: Callable[[], Awaitable[None]], done: Done, failed: Callable[[Exception], None]
    ) -> None:
        if key not in self._jobs:
            self._jobs[key] = asyncio.get_running_loop().create_task(self._run(key, work, done, failed))

    async def _run(
        self, key: str, work: Callable[[], Awaitable[None]], done: Done, failed: Callable[[Exception], None]
    ) -> None:
        problem: Exception | None = None
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # whatever it is, somebody waits for the outcome
            problem = error
            if not isinstance(error, DiskError | ImageError):
                _log.exception("storage_failed", key=key)
        if self._jobs.get(key) is not asyncio.current_task():
            return
        del self._jobs[key]
        if problem is None:
            done()
        else:
            failed(problem)

    async def _make(self, volume: Volume, origin: Origin) -> None:
        if origin.kind == "blank":
            await self.disks.blank(volume.handle, volume.size)
        else:
            await self.disks.overlay(volume.handle, origin.handle, volume.size)

    async def _transfer(self, transfer: Transfer, progress: "_TransferProgress") -> None:
        if transfer.kind == "blank":
            return
        unread = [name for name in _UNREAD if transfer.source.get(name)]
        if unread:
            raise _UnreadError(f"this dev cluster imports without {unread[0]}: leave it out of the source")
        progress.fetched(None)
        image = await self._fetch(
            str(transfer.source.get("url", "")),
            on_progress=progress.fetched,
            checksum=transfer.source.get("checksum") or None,
        )
        volume = transfer.volume
        await self.disks.import_image(
            volume.handle, image.path, volume.size, progress.converted, format_name=image.format
        )

    async def _discard(self, handle: str) -> None:
        try:
            await self.disks.remove(handle)
        except DiskError as error:
            _log.warning("disk_not_removed", disk=handle, problem=str(error))


class _UnreadError(DiskError):
    pass


class _TransferProgress:
    """Tells whole percents, each once and never fewer than before.

    Where something is fetched, that is the first half of the work and its conversion the second; where it is here already, the
    conversion is all of it.
    """

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self._told: float | None = -1.0
        self._fetches = False

    def fetched(self, percent: float | None) -> None:
        if percent is None:
            if self._told == -1.0:
                self._told = None
                self._tell(None)
        elif percent < _PERCENT or self._fetches:
            self._fetches = True
            self._advance(percent / 2)

    def converted(self, percent: float) -> None:
        self._advance(_PERCENT / 2 + percent / 2 if self._fetches else percent)

    def _advance(self, percent: float) -> None:
        whole = float(int(min(percent, _PERCENT - 1)))
        if self._told is None or whole > self._told:
            self._told = whole
            self._tell(whole)


def _failure(error: Exception) -> TransferFailure:
    if isinstance(error, ImageError):
        pulls = isinstance(error, FetchFailed) and error.pull
        return TransferFailure(str(error), IMAGE_PULL_FAILED if pulls else "Error")
    if isinstance(error, _UnreadError):
        return TransferFailure(f"Unable to process data: {error}", fatal=True)
    if isinstance(error, DiskTooSmall):
        sizes = f"virtual image size {error.image} is larger than the reported available storage {error.disk}"
        return TransferFailure(f"{_CONVERTING}{sizes}. A larger PVC is required")
    if isinstance(error, DiskError):
        return TransferFailure(f"{_CONVERTING}{error}")
    return TransferFailure(f"Unable to process data: {error}")
