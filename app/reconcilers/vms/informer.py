"""Keeps the rows of VMs true to the cluster. A list also finds VMs whose object has gone, and objects that no row knows."""

from collections.abc import AsyncGenerator, Container, Sequence

from typing_extensions import override

from app.compute.gateway import Gateway
from app.compute.vms import Changed, ClusterEvent, Gone, Listed
from app.config import Settings
from app.reconcilers.runtime.informer import Informer, Pending
from app.reconcilers.vms.disk_failures import DiskFailures
from app.reconcilers.vms.status_writer import OnBoot, StatusWriter
from app.store import watch_state
from app.store.database import Database


class VmInformer(Informer[Listed, Changed | Gone]):
    loop = "vms"
    watch = watch_state.VMS
    gather_seconds = 0.01

    def __init__(
        self,
        db: Database,
        gateway: Gateway,
        settings: Settings,
        *,
        holder: str,
        on_boot: OnBoot | None = None,
        disk_failures: DiskFailures | None = None,
    ) -> None:
        super().__init__(db, gateway, settings, holder=holder)
        self._writer = StatusWriter(
            db, gateway, settings, fence=self._leader.require, on_boot=on_boot, disk_failures=disk_failures
        )

    @override
    def observe(self) -> AsyncGenerator[ClusterEvent, None]:
        return self._gateway.observe()

    @override
    def new_pending(self) -> Pending[Listed, Changed | Gone]:
        """A Gone outlives a list: a list does not show a VM that left, and only a VM that it should show counts as missing."""
        return Pending(Listed, _name_of, outlives=lambda event: isinstance(event, Gone))

    @override
    async def write(self, events: Sequence[Changed | Gone]) -> None:
        await self._writer.apply_changes([event.observation for event in events if isinstance(event, Changed)])
        await self._writer.apply_gone(*(event for event in events if isinstance(event, Gone)))

    @override
    def write_list(self, listed: Listed, newer: Container[str]) -> AsyncGenerator[None, None]:
        return self._writer.write_list(listed, newer)


def _name_of(event: Changed | Gone) -> str:
    return event.name if isinstance(event, Gone) else event.observation.name
