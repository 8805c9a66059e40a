"""A dump that is an hour old is restored under a cluster that has gone on: nobody loses a VM, and nobody gets somebody else's."""

from contextlib import asynccontextmanager

from app.devcluster.apiserver.registry import VIRTUAL_MACHINES
from app.store.database import Database
from tests.support.installations import copy_of
from tests.support.postgres import clone_database
from tests.support.rows import execute
from tests.support.service import TEMPLATE, Refused, check, serve, until

CLAIM = "emberpool.io/claim"
RECORD = "emberpool.io/claim-record"
SHORT = {"installation_renew_seconds": 0.2, "installation_lease_seconds": 2}


def metadata_of_vms(cluster):
    return [stored.obj["metadata"] for stored in cluster.store.rows(VIRTUAL_MACHINES)]


def vms_of(cluster):
    """The VMs of the cluster that nobody is removing: name to (UID, the claim that it carries)."""
    found = [vm for vm in metadata_of_vms(cluster) if "deletionTimestamp" not in vm]
    return {vm["name"]: (vm["uid"], vm["labels"].get(CLAIM)) for vm in found}


async def marked(cluster, *claims):
    """Waits until the VMs of these claims carry them, and what the claims can be rebuilt from."""

    async def carry():
        found = metadata_of_vms(cluster)
        carried = {vm["labels"].get(CLAIM) for vm in found if RECORD in vm.get("annotations", {})}
        return {claim["id"] for claim in claims} <= carried

    await until(carry)


async def age(db):
    """All that the dump says is an hour old."""
    hour = "interval '1 hour'"
    await execute(db, f"UPDATE installation SET confirmed_at = confirmed_at - {hour}")
    await execute(db, f"UPDATE claim SET bound_at = bound_at - {hour}, lease_expires_at = lease_expires_at - {hour}")
    await execute(db, f"UPDATE vm SET claimed_at = claimed_at - {hour}, state_since = state_since - {hour}")


@asynccontextmanager
async def anew(url):
    """Tests share the template of their databases, and with it the id."""
    db = Database(url, pool_size=2)
    await execute(db, "UPDATE installation SET id = gen_random_uuid()")
    await db.close()
    yield


async def works(server):
    """Waits until the service is sure whose the VMs are."""

    async def is_sure():
        return (await server.client.get("/readyz")).json()["installation"]["ok"]

    await until(is_sure)


async def lives(server, *claims):
    """The claims have their VMs, labels and leases, and can be renewed."""
    for claim in claims:
        now = (await server.client.get(f"/v1/claims/{claim['id']}")).json()
        assert (now["state"], now["vm"]["name"], now["labels"]) == ("bound", claim["vm"]["name"], claim["labels"])
        assert now["lease_seconds"] == claim["lease_seconds"]
        assert (await server.client.post(f"/v1/claims/{claim['id']}/renew", json={})).status_code == 200


async def hands_out_nothing(server):
    refused = Refused(503, "installation-waits", says="no VM is handed out")
    check(await server.claim("web"), refused)
    check(await server.client.post("/v1/claim/batch", json={"pool": "web", "count": 2}), refused)
    check(await server.client.post("/v1/claim", json={"vm": TEMPLATE}), refused)


async def waits(server, why):
    """What the service tells once it waits for an operator for that reason."""

    async def says_why():
        found = (await server.client.get("/v1/installation")).json()
        return found if why in (found["reason"] or "") else None

    found = await until(says_why)
    ready = (await server.client.get("/readyz")).json()
    assert (ready["status"], ready["installation"]["ok"]) == ("degraded", False)
    assert why in ready["installation"]["detail"]
    return found


async def test_a_dump_that_is_an_hour_old_is_restored_under_a_running_cluster(
    postgres, database_url, dev_cluster, tmp_path
):
    async with serve(database_url, dev_cluster, tmp_path, **SHORT) as server:
        await server.fill("web", size=2)
        known, released = await server.claim_one("web", lease_seconds=60), await server.claim_one("web")
        await server.fill("web", size=2)
        await marked(dev_cluster, known, released)
    async with copy_of(postgres, Database(database_url, pool_size=2)) as dump:
        async with serve(database_url, dev_cluster, tmp_path, **SHORT) as server:
            await works(server)
            # VMs that the dump believes to be ready, and one of which it knows nothing.
            taken = [await server.claim_one("web", labels={"team": "blue"}) for _ in range(2)]
            await server.fill("web", size=2)
            newest = await server.claim_one("web", lease_seconds=120)
            await server.fill("web", size=2)
            await server.client.delete(f"/v1/claims/{released['id']}")
            await marked(dev_cluster, known, newest, *taken)
            await until(lambda: has_gone(dev_cluster, released))
        await age(dump)
        before = vms_of(dev_cluster)
        async with serve(dump.url, dev_cluster, tmp_path, **SHORT) as server:
            await hands_out_nothing(server)
            found = await waits(server, "older than the cluster")
            await hands_out_nothing(server)
            assert vms_of(dev_cluster) == before, "nothing was made, marked or removed"
            steps = {vm["name"]: vm["adopt"] for vm in found["vms"]}
            assert [steps[claim["vm"]["name"]] for claim in (known, *taken, newest)] == ["keep", *["rebuild"] * 3]

            assert (await server.client.post("/v1/installation/adopt")).status_code == 202
            await works(server)
            await lives(server, known, *taken, newest)
            await server.fill("web", size=2)
            others = [await server.claim_one("web") for _ in range(2)]
            assert not {claim["vm"]["name"] for claim in others} & before.keys(), "those may be somebody's"
            for name, (_, claim) in before.items():
                if claim is None:
                    await until(lambda name=name: has_gone(dev_cluster, {"vm": {"name": name}}))
            assert {name: vm for name, vm in before.items() if vm[1]}.items() <= vms_of(dev_cluster).items()
            await until(lambda: has_failed(server, released))
            again = await server.client.post("/v1/installation/adopt")
            check(again, Refused(409, "conflict", says="nothing to decide"))


async def has_gone(cluster, claim):
    return claim["vm"]["name"] not in vms_of(cluster)


async def has_failed(server, claim):
    return (await server.client.get(f"/v1/claims/{claim['id']}")).json()["state"] == "failed"


async def test_a_second_service_on_an_empty_database_waits_and_touches_nothing(
    postgres, template_database, database_url, dev_cluster, tmp_path
):
    """The same namespace and the same instance, and the first service is alive."""
    async with serve(database_url, dev_cluster, tmp_path, **SHORT) as first:
        await first.fill("web", size=2)
        claim = await first.claim_one("web")
        await first.fill("web", size=2)
        await marked(dev_cluster, claim)
        before = vms_of(dev_cluster)
        quick = {**SHORT, "orphan_grace_seconds": 0.1, "relist_seconds": 0.2}
        async with (
            clone_database(postgres, template_database) as other_url,
            anew(other_url),
            serve(other_url, dev_cluster, tmp_path, **quick) as second,
        ):
            await second.put("web", size=1)
            await waits(second, "is held by installation")
            check(
                await second.client.post("/v1/installation/adopt"), Refused(409, "conflict", says="cannot be adopted")
            )
        assert vms_of(dev_cluster) == before
        assert (await first.client.get("/readyz")).json()["installation"]["ok"]
