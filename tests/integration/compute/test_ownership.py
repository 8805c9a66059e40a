"""The Lease and the ids of installations, over HTTP against the dev cluster."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import LEASES, PVCS, VM_POOLS, VM_SNAPSHOTS, VMS
from app.compute.vm_pools import VmPoolOrder
from app.domain.observation import WarmWhen
from app.domain.ownership import ClaimRecord
from app.errors import ClusterConflict
from app.ids import new_id
from tests.support.kubevirt_documents import CLAIM_ID, SHORT, VM_ID

US, THEM = str(UUID(int=1)), str(UUID(int=2))
WRITER = str(UUID(int=9))
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
async def ours(gateway):
    gateway.ownership.identify(US)
    return gateway


@pytest.fixture
async def theirs(connected):
    """A gateway of another installation, with the same instance."""
    other = await connected()
    other.ownership.identify(THEM)
    return other


async def create(gateway, name="a", vm_id=VM_ID):
    spec = gateway.expand(SHORT, WarmWhen.AGENT).spec
    return await gateway.create_vm(name=name, pool="web", vm_id=vm_id, spec=spec)


async def renew(gateway, before, sequence):
    await gateway.ownership.write_lease(before, sequence=sequence, writer=WRITER, replica="worker-1:7")
    return await gateway.ownership.read_lease()


async def test_the_lease_is_made_and_renewed(ours):
    assert await ours.ownership.read_lease() is None
    first = await renew(ours, None, 1)
    assert (first.name, first.holder, first.sequence, first.writer) == ("emberpool", US, 1, WRITER)
    assert first.replica == "worker-1:7"
    assert first.is_alive(datetime.now(UTC))
    assert not first.is_alive(datetime(2100, 1, 1, tzinfo=UTC))
    assert (await renew(ours, first, 2)).sequence == 2


async def test_of_two_who_write_it_at_the_same_moment_one_is_told(ours, theirs):
    first = await renew(ours, None, 1)
    with pytest.raises(ClusterConflict):
        await renew(theirs, None, 1)
    await renew(ours, first, 2)
    with pytest.raises(ClusterConflict):
        await renew(theirs, first, 1)
    assert (await theirs.ownership.read_lease()).holder == US


async def test_it_passes_to_another_installation(ours, theirs):
    passed = await renew(theirs, await renew(ours, None, 7), 1)
    assert (passed.holder, passed.sequence) == (THEM, 1)
    lease = await ours._client.get(LEASES, "emberpool")
    assert lease["metadata"]["labels"][labels.INSTALLATION] == THEM


async def test_each_instance_has_its_own(connected, ours):
    await renew(ours, None, 1)
    other = await connected(instance="blue")
    other.ownership.identify(THEM)
    assert (await renew(other, None, 1)).name == "emberpool-blue"


async def test_a_lease_that_somebody_else_wrote_is_nobodys_that_we_know(ours):
    metadata = {"name": "emberpool", "namespace": "default", "annotations": {"emberpool.io/sequence": "many"}}
    await ours._client.create(LEASES, LEASES.manifest(metadata, {"holderIdentity": "leader-1"}))
    found = await ours.ownership.read_lease()
    assert (found.holder, found.sequence, found.writer, found.is_alive(NOW)) == ("leader-1", 0, None, False)


async def test_what_is_created_carries_the_id(ours):
    await create(ours)
    vm = await ours._client.get(VMS, "a")
    assert vm["metadata"]["labels"][labels.INSTALLATION] == US
    template = ours.expand(SHORT, WarmWhen.AGENT)
    order = VmPoolOrder("web-x", "web", new_id(), template.spec, "r1")
    await ours.vm_pools.make(order, replicas=0, paused=True)
    pool = await ours._client.get(VM_POOLS, "web-x")
    marked = {labels.POOL_ID: str(order.pool_id), labels.INSTALLATION: US}
    assert marked.items() <= pool["metadata"]["labels"].items()
    assert marked.items() <= pool["spec"]["virtualMachineTemplate"]["metadata"]["labels"].items()
    assert pool["spec"]["selector"]["matchLabels"] == marked, "a copy of the database has the same pool"
    await ours.snapshots.take(name="s", snapshot="s", take_id=str(new_id()), vm="a", deadline_seconds=60)
    assert (await ours._client.get(VM_SNAPSHOTS, "s"))["metadata"]["labels"][labels.INSTALLATION] == US
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    made = await ours._client.create(PVCS, PVCS.manifest({"name": "d", "namespace": "default"}, claim))
    assert made["metadata"]["labels"] == {labels.INSTALLATION: US}


async def test_what_another_installation_made_under_the_same_name_is_not_taken_for_ours(ours, theirs):
    """A copy of the database asks for the same VMs."""
    await create(theirs)
    with pytest.raises(ClusterConflict, match="not ours"):
        await create(ours)
    assert await ours.delete_vm(name="a", uid=None) is False
    (found,) = (await ours.list_vms()).observations
    assert found.installation == THEM


async def test_a_survey_tells_what_vms_carry(ours, theirs):
    record = ClaimRecord(60, NOW, NOW, "cold", "shape", {"team": "é", "name": "Ada's VM"})
    made = await create(ours)
    await ours.label_claim(name="a", uid=made.uid, claim_id=CLAIM_ID, given=dict(record.labels), record=record)
    await create(theirs, "b", str(new_id()))
    first, second = sorted(await ours.ownership.survey(), key=lambda vm: vm.name)
    assert (first.name, first.uid, first.installation, str(first.vm_id)) == ("a", made.uid, US, VM_ID)
    assert (str(first.claim_id), first.record, first.pool) == (CLAIM_ID, record, "web")
    assert (second.installation, second.claim_id, second.record) == (THEM, None, None)
    vm = await ours._client.get(VMS, "a")
    assert json.loads(vm["metadata"]["annotations"][labels.RECORD])["lease_seconds"] == 60
    template = vm["spec"]["template"]["metadata"]
    assert labels.RECORD not in template.get("annotations", {}), "a restart needs none of it"


async def test_a_vm_is_signed_and_one_that_is_gone_is_no_matter(gateway):
    made = await create(gateway)
    assert (await gateway.list_vms()).observations[0].installation is None
    gateway.ownership.identify(US)
    await gateway.ownership.sign(name="a", uid=made.uid)
    await gateway.ownership.sign(name="a", uid=str(new_id()))
    await gateway.ownership.sign(name="gone", uid=made.uid)
    assert (await gateway.list_vms()).observations[0].installation == US
