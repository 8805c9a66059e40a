"""The migrations make what the models say, on the way up, down and up again."""

import asyncio
import json
import warnings

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect
from sqlalchemy.exc import SAWarning

from app.compute.kubevirt.templates.shapes import shape_of
from app.ids import new_id
from app.store.database import Database, make_engine
from app.store.migrations import current, downgrade, upgrade
from app.store.schema import metadata


async def compared(url):
    """The differences between the database and the models, and the names of its sequences that belong to no column."""

    def look(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # it does not know the type xid8; the columns test does
            warnings.filterwarnings("ignore", "Computed default", UserWarning)  # it says that it cannot change one
            return compare_metadata(context, metadata), set(inspect(connection).get_sequence_names())

    engine = make_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(look)
    finally:
        await engine.dispose()


async def columns(url):
    query = """
        SELECT table_name || '.' || column_name AS name, udt_name, is_nullable FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1"""
    connection = await asyncpg.connect(url)
    try:
        return {row["name"]: (row["udt_name"], row["is_nullable"] == "YES") for row in await connection.fetch(query)}
    finally:
        await connection.close()


async def relations(url):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        )
    finally:
        await connection.close()


async def test_the_database_is_what_the_models_say(database_url):
    differences, sequences = await compared(database_url)
    assert [one for one in differences if "xid" not in str(one)] == []
    assert sequences >= {"ready_seq"}
    assert "event.xid" in await columns(database_url)
    assert (await columns(database_url))["event.xid"] == ("xid8", False)


async def test_every_column_and_storage_setting_of_the_models_is_there(database_url):
    found = await columns(database_url)
    wanted = {f"{table.name}.{column.name}": column.nullable for table in metadata.sorted_tables for column in table.c}
    assert {name: nullable for name, (_, nullable) in found.items()} == wanted
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("SELECT relname, reloptions FROM pg_class WHERE relkind = 'r'")
    finally:
        await connection.close()
    options = {row["relname"]: dict(option.split("=") for option in row["reloptions"] or ()) for row in rows}
    for table in metadata.sorted_tables:
        assert options[table.name] == dict(table.dialect_options["postgresql"].get("with") or {}), table.name


async def test_down_and_up_again_is_the_same(empty_database_url):
    await asyncio.to_thread(upgrade, empty_database_url)
    first = (await compared(empty_database_url), await columns(empty_database_url), await relations(empty_database_url))
    await asyncio.to_thread(downgrade, empty_database_url, "base")
    assert [row["relname"] for row in await relations(empty_database_url)] == [
        "alembic_version",
        "alembic_version_pkc",
    ]
    await asyncio.to_thread(upgrade, empty_database_url)
    assert first == (
        await compared(empty_database_url),
        await columns(empty_database_url),
        await relations(empty_database_url),
    )


async def test_a_pool_from_before_shapes_gets_the_shape_of_its_template(empty_database_url):
    await asyncio.to_thread(upgrade, empty_database_url, "0004")
    spec = {"template": {"spec": {"domain": {"memory": {"guest": "64Mi"}}}}}
    old, on_demand, of_template, of_older_template = (new_id() for _ in range(4))
    connection = await asyncpg.connect(empty_database_url)
    try:
        insert = (
            "INSERT INTO pool (id, name, spec, vm_spec, revision, kind, shape) VALUES ($1, $2, '{}', $3, 'r2', $4, $5)"
        )
        await connection.execute(insert, old, "old", json.dumps(spec), "pool", None)
        await connection.execute(insert, on_demand, "shape.s", json.dumps(spec), "shape", "s")
        insert = (
            "INSERT INTO vm (id, pool_id, name, state, revision, asked_at) VALUES ($1, $2, $3, 'booting', $4, now())"
        )
        await connection.execute(insert, of_template, old, "a", "r2")
        await connection.execute(insert, of_older_template, old, "b", "r1")
        await asyncio.to_thread(upgrade, empty_database_url, "0005")
        pools = {row["id"]: (row["kind"], row["shape"]) for row in await connection.fetch("SELECT * FROM pool")}
        vms = {row["id"]: (row["path"], row["shape"]) for row in await connection.fetch("SELECT * FROM vm")}
        await asyncio.to_thread(downgrade, empty_database_url, "0004")
        kinds = {row["id"]: row["kind"] for row in await connection.fetch("SELECT id, kind FROM pool")}
    finally:
        await connection.close()
    assert pools == {old: ("pool", shape_of(spec)), on_demand: ("on_demand", "s")}
    assert vms == {of_template: ("cold", shape_of(spec)), of_older_template: (None, None)}
    assert kinds == {old: "pool", on_demand: "shape"}


async def test_the_shapes_of_an_older_program_are_computed_again(empty_database_url):
    await asyncio.to_thread(upgrade, empty_database_url, "0007")
    volumes = [{"name": "root", "persistentVolumeClaim": {"claimName": "data"}}]
    vmi = {"hostname": "a", "domain": {"memory": {"guest": "64Mi"}}, "volumes": volumes}
    spec = {"runStrategy": "Always", "template": {"spec": vmi}}
    ids = {name: new_id() for name in ("web", "demand", "vm", "older", "held", "claim", "ended", "snapshot", "take")}
    connection = await asyncpg.connect(empty_database_url)

    async def shapes(table):
        return {row["id"]: row["shape"] for row in await connection.fetch(f"SELECT id, shape FROM {table}")}

    try:
        for name, kind in (("web", "pool"), ("demand", "on_demand")):
            await connection.execute(
                "INSERT INTO pool (id, name, spec, vm_spec, revision, kind, shape) VALUES ($1, $2, '{}', $3, 'r2', $4, 's')",
                *(ids[name], name, json.dumps(spec), kind),
            )
        for name, pool, revision in (("vm", "web", "r2"), ("older", "web", "r1"), ("held", "demand", "r2")):
            await connection.execute(
                "INSERT INTO vm (id, pool_id, name, state, revision, asked_at, shape) VALUES ($1, $2, $3, 'booting', $4, now(), 's')",
                *(ids[name], ids[pool], name, revision),
            )
        for name, state in (("claim", "pending"), ("ended", "failed")):
            await connection.execute(
                "INSERT INTO claim (id, pool_id, state, lease_seconds, shape) VALUES ($1, $2, $3, 60, 's')",
                *(ids[name], ids["web"], state),
            )
        await connection.execute(
            "INSERT INTO snapshot (id, name, spec) VALUES ($1, 'snap', $2)",
            *(ids["snapshot"], json.dumps({"source": {"pool": "web"}})),
        )
        await connection.execute(
            "INSERT INTO snapshot_take (id, snapshot_id, number, shape) VALUES ($1, $2, 1, 's')",
            *(ids["take"], ids["snapshot"]),
        )
        await asyncio.to_thread(upgrade, empty_database_url)
        now = shape_of(spec)
        assert await shapes("pool") == {ids["web"]: now, ids["demand"]: now}
        assert await shapes("vm") == {ids["vm"]: now, ids["older"]: None, ids["held"]: now}
        assert await shapes("claim") == {ids["claim"]: now, ids["ended"]: "s"}
        assert await shapes("snapshot_take") == {ids["take"]: now}
        held = await connection.fetch("SELECT key, vm_id FROM exclusive_use")
        assert [tuple(row) for row in held] == [("PersistentVolumeClaim data", ids["held"])]
        await asyncio.to_thread(downgrade, empty_database_url, "0007")
    finally:
        await connection.close()


async def test_a_database_that_was_never_migrated_has_no_revision(empty_database_url):
    database = Database(empty_database_url)
    async with database.begin() as tx:
        assert await current(tx) is None
    await database.close()
