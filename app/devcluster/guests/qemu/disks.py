"""The disks that a machine has open, and who may write their files."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from app.devcluster.guests.qemu.errors import BadPlan
from app.devcluster.guests.qemu.monitor import Monitor
from app.devcluster.guests.qemu.plan import Disk


class OpenDisks:
    """QEMU names the files relative to `folder`, its working directory: it may not be allowed to walk there from the root."""

    def __init__(self, disks: Sequence[Disk], folder: Path, user: int | None) -> None:
        self._folder = folder.resolve()
        self._user = user
        self._tops = {disk.node: (disk.node, disk.path) for disk in disks}
        self._snapshots = 0

    def relative(self, path: Path) -> str:
        """Raises BadPlan."""
        resolved = path.resolve()
        if not resolved.is_relative_to(self._folder):
            raise BadPlan(f"The disk {path} is not below {self._folder}, where all disks of guests are.")
        return str(resolved.relative_to(self._folder))

    def hand_over(self, path: Path) -> None:
        """The guest's user may write the file from now on."""
        if self._user is not None:
            os.chown(path, self._user, self._user)

    async def snapshot(self, monitor: Monitor, node: str, overlay: Path) -> None:
        """See Machine.snapshot_disk."""
        if node not in self._tops:
            raise BadPlan(f"There is no disk {node}; there are: {', '.join(self._tops) or 'none'}.")
        top, frozen = self._tops[node]
        self._snapshots += 1
        new_top = f"snapshot{self._snapshots}"
        self.hand_over(overlay)
        await monitor.execute(
            "blockdev-snapshot-sync",
            {
                "node-name": top,
                "snapshot-file": self.relative(overlay),
                "snapshot-node-name": new_top,
                "format": "qcow2",
                "mode": "existing",
            },
        )
        self._tops[node] = (new_top, overlay)
        self._take_back(frozen)

    def _take_back(self, path: Path) -> None:
        """A frozen layer is read by the disks of other guests: none of them may change it."""
        if self._user is not None:
            with suppress(OSError):
                os.chown(path, os.getuid(), os.getgid())
                path.chmod(0o644)
