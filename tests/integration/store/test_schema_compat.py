"""Programs of different ages on one database: who migrates, who leaves it alone, who is refused; and what claims notice of it."""

import asyncio
from contextlib import asynccontextmanager

import asyncpg
import pytest

from app.errors import DatabaseUnavailable
from app.store import migrations
from app.store.database import Database
from app.store.migrations import Schema, head, upgrade
from tests.support.newer_program import NEWER, OWN, upgrade_command, write_newer
from tests.support.patience import PATIENCE
from tests.support.service import until

COLUMNS = """
    SELECT table_name, column_name, udt_name, is_nullable = 'YES' AS nullable,
        coalesce(column_default, generation_expression) IS NOT NULL AS has_value
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT IN ('alembic_version', 'schema_compat')
"""
WAITING = "SELECT count(*) FROM pg_locks WHERE relation = 'vm'::regclass AND NOT granted"


@asynccontextmanager
async def connected(url):
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def read(url) -> Schema:
    database = Database(url)
    try:
        async with database.begin() as tx:
            return await migrations.read_schema(tx)
    finally:
        await database.close()


async def migrate_at_once(url, *folders) -> list[int]:
    processes = [await asyncio.create_subprocess_exec(*upgrade_command(url, folder)) for folder in folders]
    return list(await asyncio.gather(*(process.wait() for process in processes)))


async def test_any_number_that_migrate_at_once_do_it_once(empty_database_url):
    assert await migrate_at_once(empty_database_url, *[OWN] * 4) == [0] * 4
    assert await read(empty_database_url) == Schema(head())


async def test_old_and_new_programs_that_migrate_at_once_end_with_the_newest_schema(empty_database_url, tmp_path):
    newer = write_newer(tmp_path)
    assert await migrate_at_once(empty_database_url, OWN, newer, OWN, newer) == [0] * 4
    assert (await read(empty_database_url)).revision == NEWER


async def test_a_newer_schema_that_serves_an_older_program_is_left_as_it_is(database_url, tmp_path, monkeypatch):
    await migrate_at_once(database_url, write_newer(tmp_path))
    await asyncio.to_thread(upgrade, database_url)
    found = await read(database_url)
    assert found == Schema(NEWER, migrations.serves_from(head()))
    assert found.is_ahead
    assert found.problem() is None


async def test_a_newer_schema_that_serves_no_older_program_names_both(database_url, tmp_path):
    await migrate_at_once(database_url, write_newer(tmp_path, serves_from=NEWER))
    await asyncio.to_thread(upgrade, database_url)
    found = await read(database_url)
    assert found == Schema(NEWER, NEWER)
    assert found.problem() == (
        f"it is at migration {NEWER}, which serves programs that have {NEWER}, and this program has {head()} as its newest; "
        "run a newer program"
    )


async def test_a_newer_schema_that_says_nothing_is_not_taken_for_one_that_serves(database_url):
    async with connected(database_url) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = $1", NEWER)
    assert "does not say which programs it serves" in (await read(database_url)).problem()


async def test_a_migration_waits_for_a_table_and_lets_others_through_meanwhile(database_url, tmp_path):
    command = upgrade_command(database_url, write_newer(tmp_path))
    async with connected(database_url) as holder, connected(database_url) as other:
        async with asyncio.timeout(PATIENCE):
            async with holder.transaction():
                await holder.execute("SELECT 1 FROM vm")  # as a dump does, for hours
                process = await asyncio.create_subprocess_exec(*command)
                await until(lambda: other.fetchval(WAITING))
                await other.execute("SELECT 1 FROM vm")
                assert process.returncode is None
            assert await process.wait() == 0
        assert await other.fetchval("SELECT count(extra) FROM vm") == 0


async def test_a_migration_that_never_gets_its_table_ends_in_a_sentence_and_changes_nothing(
    database_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(migrations, "_SCRIPTS", write_newer(tmp_path))
    async with connected(database_url) as holder, holder.transaction():
        await holder.execute("SELECT 1 FROM vm")
        with pytest.raises(DatabaseUnavailable, match="pg_stat_activity shows it"):
            await asyncio.to_thread(upgrade, database_url, lock_seconds=0.05, wait_seconds=0.1)
    monkeypatch.setattr(migrations, "_SCRIPTS", OWN)
    assert await read(database_url) == Schema(head())


async def test_one_that_waits_for_another_that_never_ends_says_so(database_url):
    async with connected(database_url) as holder:
        await holder.execute("SELECT pg_advisory_lock(x'656D6265'::int)")
        with pytest.raises(DatabaseUnavailable, match="another process migrates it"):
            await asyncio.to_thread(upgrade, database_url, wait_seconds=0.1)


async def test_a_migration_that_takes_something_from_older_programs_says_so(empty_database_url):
    """Expand first, contract later: after an expansion `serves_from` stays, after a contraction it is the migration's own."""

    async def columns():
        async with connected(empty_database_url) as connection:
            return {(row["table_name"], row["column_name"]): row for row in await connection.fetch(COLUMNS)}

    before = {}
    for script in reversed(list(migrations._scripts(OWN).walk_revisions())):
        await asyncio.to_thread(upgrade, empty_database_url, script.revision)
        after = await columns()
        tables = {table for table, _ in before}
        taken = {key for key in before if key not in after or after[key]["udt_name"] != before[key]["udt_name"]}
        taken |= {key for key in before.keys() & after.keys() if before[key]["nullable"] and not after[key]["nullable"]}
        taken |= {
            key
            for key in after.keys() - before.keys()
            if key[0] in tables and not (after[key]["nullable"] or after[key]["has_value"])
        }
        if taken:
            assert migrations.serves_from(script.revision) == script.revision, (script.revision, taken)
        before = after
    assert ("vm", "unwell_since") not in before  # one that 0005 took away


async def test_what_the_rows_need_is_still_said_after_the_next_migration(database_url, tmp_path):
    database = Database(database_url)
    try:
        async with database.begin() as tx:
            await migrations.require(tx, head())
    finally:
        await database.close()
    await migrate_at_once(database_url, write_newer(tmp_path))
    assert await read(database_url) == Schema(NEWER, head())


async def test_going_back_to_an_older_migration_says_whom_that_one_serves(database_url):
    async with connected(database_url) as connection:
        await connection.execute("UPDATE schema_compat SET serves_from = 'wrong'")
        await asyncio.to_thread(migrations.downgrade, database_url, "0008")
        await asyncio.to_thread(upgrade, database_url, "0009")
        row = await connection.fetchrow("SELECT * FROM schema_compat")
    assert tuple(row) == ("0009", "0005")
