"""Objects of one kind that no row knows: which of them may be removed, and what is told of the others."""

from collections.abc import Iterable

import structlog

from app.config import Settings
from app.domain.ownership import Identity, Orphan, sort_orphans
from app.store import installation
from app.store.database import Tx
from app.telemetry import FOREIGN_OBJECTS, ORPHANS_HELD

log = structlog.get_logger(__name__)


class Orphanage:
    """`kind`: what people call the objects."""

    def __init__(self, kind: str, settings: Settings) -> None:
        self._kind = kind
        self._settings = settings
        self._told: object = ""
        self._foreign = 0

    async def sort(self, tx: Tx, identity: Identity, found: Iterable[Orphan], *, listed: int) -> tuple[Orphan, ...]:
        """Those that may be removed. What is held is told: in the log, by a metric, and in the installation's row."""
        settings = self._settings
        sorted_ = sort_orphans(
            identity, found, listed=listed, most=settings.orphans_at_once, share=settings.orphans_share
        )
        told = sorted_.tell_held()
        ORPHANS_HELD.labels(kind=self._kind).set(sorted_.held_count)
        FOREIGN_OBJECTS.labels(kind=self._kind).set(sorted_.foreign)
        if sorted_.foreign != self._foreign:
            log.warning("installation.foreign_objects", kind=self._kind, count=sorted_.foreign)
            self._foreign = sorted_.foreign
        if told != self._told:
            await installation.hold(tx, self._kind, uids=sorted_.held_uids, told=told)
            if told is not None:
                log.error("orphans.held", kind=self._kind, held=told, advice="emberpool adopt --dry-run")
            self._told = told
        return sorted_.removable
