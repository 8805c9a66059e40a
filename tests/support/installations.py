"""One service's keeper and gate over a database and a cluster in memory, turned by hand; and copies of its database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy import text

from app.config import Settings
from app.reconcilers.installation.keeper import InstallationKeeper
from app.reconcilers.installation.watch import InstallationWatch
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.labeler import ClaimLabeler
from app.reconcilers.vms.remover import VmRemover
from app.reconcilers.vms.status_writer import StatusWriter
from app.store import installation
from app.store.database import Database
from tests.support.listing import write_list
from tests.support.postgres import clone_database


class Installation:
    """What one process does, one turn at a time. `works`: whether its gate is open."""

    def __init__(self, db: Database, gateway, **settings) -> None:
        self.db = db
        self.gateway = gateway
        self.settings = Settings(
            watch_lease_seconds=60, installation_renew_seconds=1e-6, creates_per_second=1000, **settings
        )
        self.keeper = InstallationKeeper(db, gateway, self.settings, replica="one")
        self.watch = InstallationWatch(db, gateway)

    @property
    def works(self) -> bool:
        return self.watch.gate.work is None and self.watch.gate.claims is None

    async def turn(self) -> bool:
        """The keeper's step, then the watch's; whether it works after that."""
        await self.watch.step()
        await self.keeper.step()
        await self.watch.step()
        return self.works

    async def successor(self) -> "Installation":
        """The process that follows this one, which stops."""
        await self.keeper.release()
        return Installation(self.db, self.gateway)

    async def row(self):
        async with self.db.begin() as tx:
            return await installation.read(tx)

    async def decide(self, word) -> str:
        """An operator's word, carried out; what it did."""
        async with self.db.begin() as tx:
            await installation.decide(tx, word)
        await self.turn()
        return (await self.row()).outcome or ""

    async def work(self) -> None:
        """What the reconcilers do for VMs, once: creates, boots, lists, labels, removals. Only while the gate is open."""
        assert self.works
        await VmCreator(self.db, self.gateway, self.settings).step()
        for name, vm in list(self.gateway.vms.items()):
            if vm.phase is None and not vm.deleting and vm.installation == self.gateway.ownership.installation:
                self.gateway.boot(name)
        await write_list(StatusWriter(self.db, self.gateway, self.settings), self.gateway.listed())
        await ClaimLabeler(self.db, self.gateway, self.settings).step()
        await VmRemover(self.db, self.gateway, self.settings).step()


@asynccontextmanager
async def copy_of(postgres, db: Database) -> AsyncIterator[Database]:
    """A copy of the database as it is now: a dump that is restored later, or a clone for staging. Nobody else may be connected."""
    connection = await asyncpg.connect(db.url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.close()
    await db.close()
    async with clone_database(postgres, name) as url:
        copied = Database(url, pool_size=5)
        async with copied.begin() as tx:
            await tx.execute(text("DELETE FROM lease"))  # they have expired since, and no worker waits for them
        try:
            yield copied
        finally:
            await copied.close()
