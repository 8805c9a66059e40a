"""What clients see while the database or the cluster is away, and that the service recovers by itself."""

import asyncio
import dataclasses
import re
import shutil
import tempfile
from pathlib import Path

import asyncpg
import pytest

from app.api.app import create_app
from app.store.database import Database
from app.store.migrations import head
from tests.support.event_stream import follow, take
from tests.support.read_only import read_only, reset
from tests.support.service import Gate, Refused, check, client_of, listen, serve, until

AWAY = Refused(503, "database-unavailable", says="Try again in a moment")


@pytest.fixture
def short_path():
    """A socket's path may have 103 bytes, and pytest's own folders are long."""
    path = Path(tempfile.mkdtemp(prefix="gate-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def gate(postgres, short_path):
    gate = Gate(short_path, postgres.socket_dir)
    await gate.open()
    yield gate
    await gate.close()


async def test_without_the_database_requests_are_told_to_come_back_and_it_recovers_by_itself(
    database_url, dev_cluster, gate, tmp_path
):
    async with serve(gate.url(database_url), dev_cluster, tmp_path) as server, listen(server.app) as client:
        await server.fill("kept", size=2)
        claim = await server.claim_one("kept")
        async with follow(client, after="0-0", kind="claim") as events:
            ((_, kind, seen),) = await take(events, 1)
            assert (kind, seen["claim_id"]) == ("claim.bound", claim["id"])
            following = asyncio.create_task(take(events, 1))
            await gate.close()

            # The first claims go over connections that break under them: for all that is known they were committed.
            for answer in (
                await server.claim("kept"),
                await server.claim("kept", wait_seconds=5, headers={"Idempotency-Key": "one"}),
            ):
                assert answer.status_code == 503
                assert answer.json()["code"] in {"database-unavailable", "outcome-unknown"}
                assert int(answer.headers["retry-after"]) >= 1
            for answer in (
                await server.put("kept", size=3),
                await server.client.get("/v1/pools"),
                await server.client.get("/v1/pools/kept"),
                await server.client.get(f"/v1/claims/{claim['id']}"),
                await server.client.post(f"/v1/claims/{claim['id']}/renew"),
                await server.client.delete(f"/v1/claims/{claim['id']}"),
                await server.client.get("/v1/vms"),
                await server.client.get("/v1/events"),
            ):
                check(answer, AWAY)
                assert int(answer.headers["retry-after"]) >= 1
            away = await server.client.get("/readyz")
            assert (away.status_code, away.json()["status"]) == (503, "unready")
            assert away.json()["database"]["ok"] is False
            assert (await server.client.get("/healthz")).json() == {"status": "ok"}

            await gate.open()

            async def back():
                return (await server.client.get("/readyz")).status_code == 200

            await until(back)
            assert not server.services.stopping.is_set()
            assert (await server.client.get(f"/v1/claims/{claim['id']}")).json() == claim
            again = await server.claim("kept", wait_seconds=30, headers={"Idempotency-Key": "one"})
            assert again.status_code == 201
            await server.client.delete(f"/v1/claims/{again.json()['id']}")
            ((_, kind, seen),) = await following
            assert (kind, seen["claim_id"]) == ("claim.bound", again.json()["id"])

        async def full():
            return (await server.pool("kept"))["status"]["phase"] == "ready"

        await until(full)


async def test_without_the_cluster_warm_vms_are_claimed_and_pools_are_not_written(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as server:
        await server.fill("warm", size=2)
        await dev_cluster.interrupt()

        first = await server.claim_one("warm")
        assert (await server.client.delete(f"/v1/claims/{first['id']}")).json()["state"] == "released"
        assert (await server.claim_one("warm"))["vm"]["id"] != first["vm"]["id"]
        refused = await server.put("cold", size=1)
        check(refused, Refused(503, "cluster-unavailable", says="try virtualmachines"))
        assert int(refused.headers["retry-after"]) >= 1
        assert (await server.client.get("/v1/pools/cold")).status_code == 404
        # An edit that needs no word of the cluster is written all the same.
        assert (await server.put("warm", size=3)).status_code == 200

        async def seen():
            found = await server.client.get("/readyz")
            return found.status_code == 200 and found.json()["status"] == "degraded" and found.json()

        assert "broken since" in (await until(seen))["cluster_watch"]["detail"]

        await dev_cluster.recover()

        async def full():
            status = (await server.pool("warm"))["status"]
            return status["phase"] == "ready" and status["counts"]["ready"] == 3

        await until(full)

        async def ready():
            return (await server.client.get("/readyz")).json()["status"] == "ready"

        await until(ready)


NEVER_LISTED = {
    "no KubeVirt": ({"kind": "unserved", "resource": "virtualmachine*"}, {}, "KubeVirt is not installed"),
    "no namespace": (None, {"namespace": "missing"}, "kubectl create namespace missing"),
    "no right": (
        {"kind": "forbidden", "resource": "virtualmachine*"},
        {"forbidden_seconds": 0},
        'resource "virtualmachines" in API group "kubevirt.io"',
    ),
}


@pytest.mark.parametrize(("fault", "settings", "reason"), NEVER_LISTED.values(), ids=NEVER_LISTED)
async def test_readiness_and_a_write_name_why_the_cluster_was_never_listed(
    database_url, dev_cluster, tmp_path, fault, settings, reason
):
    if fault is not None:
        dev_cluster.faults.order(**fault)
    async with serve(database_url, dev_cluster, tmp_path, **settings) as server:

        async def told():
            watched = (await server.client.get("/readyz")).json()["cluster_watch"]
            return not watched["ok"] and reason in watched["detail"] and watched["detail"]

        assert (await until(told)).startswith("the cluster has never been listed: ")
        refused = await server.put("web", size=1)
        assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True)
        assert reason in refused.json()["detail"]
        assert "page not found" not in refused.json()["detail"]


async def test_a_database_that_was_not_migrated_is_told(database_url, empty_database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as server:
        for url, revision, ready in ((empty_database_url, "nothing", False), (database_url, head(), True)):
            app = create_app()
            app.state.services = await _on(server.services, url)
            async with client_of(app) as client:
                answer = await client.get("/readyz")
            await app.state.services.probe.close()
            migrations = answer.json()["migrations"]
            assert (answer.status_code == 200, migrations["ok"]) == (ready, ready)
            assert re.search(
                rf"(at {revision}|no schema yet),( and)? this program needs {head()}", migrations["detail"]
            )
            assert ("run `emberpool migrate`" in migrations["detail"]) != ready


async def test_a_database_ahead_of_the_program_is_served_as_far_back_as_it_says(database_url, dev_cluster, tmp_path):
    """As the old replicas of a rolling update see it, once the first of the new ones has migrated."""
    async with serve(database_url, dev_cluster, tmp_path) as server:
        await _execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
        for serves_from, ready in ((head(), True), ("9998", False)):
            await _execute(database_url, f"UPDATE schema_compat SET revision = '9999', serves_from = '{serves_from}'")
            answer = await server.client.get("/readyz")
            migrations = answer.json()["migrations"]
            assert (answer.status_code == 200, migrations["ok"]) == (ready, ready)
            assert re.search(r"at (migration )?9999", migrations["detail"])
            assert ("serves programs that have 9998" in migrations["detail"]) != ready


async def test_a_database_that_can_only_be_read_is_told_until_it_can_be_written(database_url, dev_cluster, tmp_path):
    """All connections were opened while it was read-only, and all are opened anew: nothing has to be restarted."""
    async with read_only(database_url) as connection, serve(database_url, dev_cluster, tmp_path) as server:

        async def unready():
            found = await server.client.get("/readyz")
            return found.status_code == 503 and found.json()

        found = await until(unready)
        assert "takes no writes" in found["database"]["detail"]

        async def waits():
            return "takes no writes" in (await server.client.get("/readyz")).json()["background"]["detail"]

        await until(waits)
        await reset(connection, database_url)

        async def ready():
            return (await server.client.get("/readyz")).json()["status"] == "ready"

        await until(ready)

        async def written():
            return (await server.put("works", size=1)).status_code in {200, 201}

        await until(written)  # each set of connections is thrown away by the first write that it refuses
        await server.fill("works", size=1)
        await server.claim_one("works")


async def test_no_part_dies_of_statements_that_are_cancelled(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as server:
        await server.fill("locked", size=1)
        cancelled = 0
        async with server.services.db.begin() as tx:
            await tx.exec_driver_sql("LOCK TABLE pool, claim, event")
            while cancelled < 20:
                cancelled += len((await tx.exec_driver_sql(_CANCEL_OTHERS)).all())
                await asyncio.sleep(0.05)
        await server.claim_one("locked")
        assert not server.services.stopping.is_set()


_CANCEL_OTHERS = """
    SELECT pg_cancel_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
"""


async def _on(services, url):
    return dataclasses.replace(services, probe=Database(url, pool_size=1))


async def _execute(url, sql):
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
