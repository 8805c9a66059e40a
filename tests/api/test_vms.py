"""Single VMs over HTTP: discarded, and replaced by their pool."""

import uuid

import pytest

from tests.support.service import Refused, check, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def vms_of(server, pool, **query):
    return (await server.client.get("/v1/vms", params={"pool": pool, **query})).json()["items"]


@pytest.mark.parametrize("backing", ["VirtualMachine", "VirtualMachinePool"])
async def test_a_warm_vm_is_discarded_and_replaced(server, backing):
    name = f"discards-{backing.lower()}"
    await server.fill(name, size=2, min_available=2, backing=backing)
    old, kept = await vms_of(server, name)
    answer = await server.client.delete(f"/v1/vms/{old['id']}")
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["reason"]) == ("releasing", "discarded by DELETE /v1/vms")
    again = await server.client.delete(f"/v1/vms/{old['id']}")
    assert again.status_code == 202

    async def replaced():
        ready = {vm["id"] for vm in await vms_of(server, name, state="ready")}
        gone = (await server.client.get(f"/v1/vms/{old['id']}")).json()["state"] == "deleted"
        return gone and len(ready) == 2 and ready

    assert kept["id"] in await until(replaced)
    history = (await server.client.get(f"/v1/vms/{old['id']}")).json()["history"]
    assert [event["type"] for event in history].count("vm.releasing") == 1


async def test_a_claimed_vm_is_not_discarded(server):
    await server.fill("holds", size=1)
    claim = await server.claim_one("holds")
    path = f"/v1/vms/{claim['vm']['id']}"
    check(await server.client.delete(path), Refused(409, "vm-claimed", says=f"DELETE /v1/claims/{claim['id']}"))
    assert (await server.client.get(f"/v1/claims/{claim['id']}")).json()["state"] == "bound"


async def test_a_vm_that_does_not_exist_or_has_no_id(server):
    check(await server.client.delete(f"/v1/vms/{uuid.uuid4()}"), Refused(404, "vm-not-found"))
    check(await server.client.delete("/v1/vms/web-1"), Refused(422, "invalid-request", "vm_id"))
