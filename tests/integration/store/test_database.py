"""The way to Postgres: what counts as its absence, and that it is found again."""

import asyncio
from urllib.parse import unquote

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.domain.claims import WarmClaim
from app.errors import DatabaseLost, DatabaseUnavailable
from app.ids import new_id
from app.store.claims.warm import WarmClaimStore
from app.store.database import Database, driver_dsn
from app.store.postgres_errors import translate
from tests.support.read_only import read_only
from tests.support.rows import make_pool, make_vms, request, scalar

_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def terminate_others(url):
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_OTHERS)
    finally:
        await connection.close()


def test_a_socket_folder_stays_in_the_url():
    url = "postgresql://me:secret@/things?host=/run/pg"
    assert unquote(driver_dsn(url)) == url


async def test_what_libpq_takes_in_a_url_is_taken_everywhere(db):
    """Managed databases hand out URLs with `sslmode`: one way to read them for transactions and for claims."""
    url = f"{db.url}{'&' if '?' in db.url else '?'}sslmode=prefer"
    database, lane = Database(url), WarmClaimStore(url)
    async with database.once() as tx:
        assert (await tx.execute(text("SHOW application_name"))).scalar() == "emberpool"
    await lane.warm_up()
    await database.close()
    await lane.close()


async def test_a_block_that_raises_is_rolled_back(db):
    async def fail():
        async with db.begin() as tx:
            await tx.execute(text("INSERT INTO lease VALUES ('x', 'me', gen_random_uuid(), now())"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await scalar(db, "SELECT count(*) FROM lease") == 0


async def test_a_statement_that_is_wrong_is_no_absence(db):
    for query, params in (("SELEC 1", {}), ("SELECT 1 / :n", {"n": 0}), ("SELECT CAST(:n AS int)", {"n": "ten"})):
        with pytest.raises(DBAPIError) as caught:
            async with db.begin() as tx:
                await tx.execute(text(query), params)
        assert translate(caught.value) is None, query


async def test_nobody_there_is_an_absence(tmp_path):
    for host in (str(tmp_path), "127.0.0.1:1"):
        database = Database(f"postgresql://me@/things?host={host}")
        with pytest.raises(DatabaseUnavailable, match="does not answer") as caught:
            async with database.begin():
                pytest.fail("there is no database")
        assert caught.value.retry_after == 2
        await database.close()


async def test_a_database_that_does_not_exist_yet_is_an_absence(db):
    database = Database(db.url.replace("/test_", "/nothing_"))
    with pytest.raises(DatabaseUnavailable):
        async with database.begin():
            pytest.fail("there is no such database")
    await database.close()


async def test_connections_that_broke_while_idle_are_replaced_unseen(db):
    for _ in range(5):
        await asyncio.gather(*(scalar(db, "SELECT 1") for _ in range(4)))
        await terminate_others(db.url)
        assert await scalar(db, "SELECT 1") == 1


async def test_a_connection_that_breaks_in_a_transaction_is_an_absence(db):
    async def lose():
        async with db.begin() as tx:
            await tx.execute(text("SELECT 1"))
            await terminate_others(db.url)
            await tx.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        await lose()
    assert await scalar(db, "SELECT 1") == 1


async def test_a_transaction_that_postgres_ends_for_another_can_be_tried_again(db):
    """Two that wait for each other: one is ended, and told that nothing was changed."""
    pool = await make_pool(db)
    first, second = await make_vms(db, pool, 2)
    lock = text("SELECT 1 FROM vm WHERE id = :id FOR UPDATE")

    async def cross(mine, other, met: asyncio.Barrier):
        async with db.begin() as tx:
            await tx.execute(lock, {"id": mine})
            await met.wait()
            await tx.execute(lock, {"id": other})

    met = asyncio.Barrier(2)
    results = await asyncio.gather(cross(first, second, met), cross(second, first, met), return_exceptions=True)
    ended = [result for result in results if result is not None]
    assert [type(result) for result in ended] == [DatabaseUnavailable]
    assert "other requests were in the way" in ended[0].detail
    assert ended[0].retry_after


async def write(database):
    async with database.begin() as tx:
        await tx.execute(text("INSERT INTO lease VALUES ('x', 'me', gen_random_uuid(), now()) ON CONFLICT DO NOTHING"))


async def test_connections_that_were_opened_while_nothing_could_be_written_are_thrown_away(db):
    """All of them, at the first that is found out: each would fail one request otherwise."""
    database = Database(db.url, pool_size=4)
    async with read_only(db.url):
        await asyncio.gather(*(scalar(database, "SELECT pg_sleep(0.05)") for _ in range(4)))
    with pytest.raises(DatabaseUnavailable, match="takes no writes now, as during a failover; nothing was changed"):
        await write(database)
    await asyncio.gather(*(write(database) for _ in range(8)))
    await database.close()


async def test_the_connections_of_claims_are_thrown_away_likewise(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 2)
    lane = WarmClaimStore(db.url)
    async with read_only(db.url):
        await asyncio.gather(*(lane.read([new_id()]) for _ in range(3)))
    with pytest.raises(DatabaseUnavailable, match="takes no writes now"):
        await lane.claim(pool.id, [request()])
    outcomes = await asyncio.gather(*(lane.claim(pool.id, [request()], from_start=True) for _ in range(2)))
    assert all(isinstance(outcome, WarmClaim) for (outcome,) in outcomes)
    await lane.close()


async def test_a_connection_that_breaks_at_the_commit_leaves_it_open_what_became_of_it(db):
    async def lose():
        async with db.begin() as tx:
            await tx.execute(text("SELECT 1"))
            await terminate_others(db.url)

    with pytest.raises(DatabaseLost, match="the change may have been made or not"):
        await lose()


async def test_a_statement_that_is_cancelled_changed_nothing(db):
    async def look():
        async with db.begin() as tx:
            await tx.execute(text("SET LOCAL lock_timeout = '50ms'"))
            await tx.execute(text("SELECT count(*) FROM pool"))

    async with db.begin() as holding:
        await holding.execute(text("LOCK TABLE pool"))
        with pytest.raises(DatabaseUnavailable, match="nothing was changed"):
            await look()
