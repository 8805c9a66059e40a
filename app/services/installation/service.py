"""Takes an operator's word about the VMs in the cluster. The leading worker carries it out."""

import structlog

from app.domain.ownership import Word
from app.errors import Conflict
from app.store import installation
from app.store.database import Database
from app.store.installation import InstallationRow

log = structlog.get_logger(__name__)


async def read_installation(db: Database) -> InstallationRow:
    async with db.begin() as tx:
        return await installation.read(tx)


async def decide(db: Database, word: Word) -> InstallationRow:
    """Raises Conflict if there is nothing to decide, if another decision is being carried out, or if the VMs cannot be adopted."""
    async with db.begin() as tx:
        row = await installation.read(tx)
        if row.decision is not None and row.decision is not word:
            raise Conflict(f"an operator has decided to {row.decision} at this moment; wait until that is done")
        if row.waits is None and not row.held:
            raise Conflict(
                "there is nothing to decide: all VMs in the cluster that carry this service's labels are its own"
            )
        refused = (row.findings.get(str(word)) or {}).get("refused")
        if refused is not None:
            raise Conflict(f"the VMs cannot be adopted: {refused}")
        await installation.decide(tx, word)
        log.warning("installation.decision", word=word)
        return await installation.read(tx)
