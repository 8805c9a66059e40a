"""Postgres goes away and comes back: every entry says so in one way, and everything goes on."""

import asyncio
import tempfile
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from app.config import Settings
from app.domain.claims import WarmClaim
from app.errors import DatabaseUnavailable, OutcomeUnknown
from app.ids import new_id
from app.reconcilers.pools.planner import plan_due_pools
from app.reconcilers.vms.status_writer import StatusWriter
from app.services.claims.lifecycle import release_claim, renew_claim
from app.services.pools.service import delete_pool, pause_pool, put_pool, replenish_pool, resume_pool
from app.store.claims import rows as claims
from app.store.database import Database
from tests.support import store_invariants as invariants
from tests.support.claim_services import new_claim, run_claim_service, stays_connected
from tests.support.listing import write_list
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, make_pool, make_vms, scalar, spec


class Outage:
    """A way to the database of its own, which can be taken away from all who go it."""

    def __init__(self, url, folder):
        self._real = make_url(url)
        socket = f".s.PGSQL.{self._real.query.get('port', 5432)}"
        self._target = Path(str(self._real.query["host"])) / socket
        self._link = folder / socket
        self._link.symlink_to(self._target)
        self.url = self._real.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)

    async def begin(self):
        self._link.unlink()
        connection = await asyncpg.connect(self._real.render_as_string(hide_password=False))
        try:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        finally:
            await connection.close()

    def end(self):
        self._link.symlink_to(self._target)


@pytest.fixture
def outage(database_url):
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        yield Outage(database_url, Path(folder))


async def test_every_entry_says_that_the_database_is_away_and_all_goes_on_after(outage, gateway):
    db = Database(outage.url)
    pool = await make_pool(db)
    await make_vms(db, pool, 3)
    async with run_claim_service(outage.url) as claim_service:
        assert isinstance(await claim_service.claim(new_claim(), stays_connected), WarmClaim)
        await outage.begin()
        observing = StatusWriter(db, gateway, Settings())
        entries = {
            "claim": lambda: claim_service.claim(new_claim(), stays_connected),
            "claim of a pool not met yet": lambda: claim_service.claim(new_claim("other"), stays_connected),
            "look": lambda: claim_service.queue.look(new_id(), 1, stays_connected),
            "warm up": claim_service.warm_up,
            "put": lambda: put_pool(db, gateway, "web", spec()),
            "delete": lambda: delete_pool(db, "web", force=True),
            "pause": lambda: pause_pool(db, "web"),
            "resume": lambda: resume_pool(db, "web"),
            "replenish": lambda: replenish_pool(db, "web"),
            "renew": lambda: renew_claim(db, new_id(), None),
            "release": lambda: release_claim(db, new_id()),
            "plan": lambda: plan_due_pools(db, every_seconds=1),
            "list": lambda: write_list(observing, gateway.listed()),
        }
        for name, entry in entries.items():
            try:
                # A claim over a connection that has just broken may have been committed, for all that is known.
                with pytest.raises((DatabaseUnavailable, OutcomeUnknown)) as caught:
                    await entry()
            except BaseException as error:
                error.add_note(name)
                raise
            assert caught.value.retry_after, name
        outage.end()

        async def claimed():
            try:
                return await claim_service.claim(new_claim(), stays_connected)
            except DatabaseUnavailable:
                return None

        assert isinstance(await eventually(claimed), WarmClaim)
    await invariants.check(db)
    assert await scalar(db, "SELECT count(*) FROM claim") == 2
    await db.close()


async def test_who_waits_through_an_outage_is_served_after_it(outage):
    db = Database(outage.url)
    pool = await make_pool(db)
    async with run_claim_service(outage.url) as claim_service:
        asked = asyncio.create_task(claim_service.claim(new_claim(wait=50), stays_connected))

        async def waits():
            return await scalar(db, "SELECT count(*) FROM claim_queue")

        await eventually(waits)
        await outage.begin()
        outage.end()
        await make_vms(db, pool, 1)

        async def bound():
            async with db.begin() as tx:
                return await claims.bind_pending(tx, pool.id)

        await eventually(bound)
        answer = await asyncio.wait_for(asked, PATIENCE)
        assert answer.claim.vm_id is not None
    await db.close()
