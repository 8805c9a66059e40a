"""The gateway's contract, over HTTP against the dev cluster."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest

from app.compute.kubevirt import labels, reading
from app.compute.kubevirt.gateway import connect
from app.compute.kubevirt.kinds import PODS, VMIS, VMS
from app.compute.vms import Broken, Changed, Gone, Listed
from app.domain.observation import Failure, WarmWhen
from app.errors import (
    ClusterConflict,
    ClusterForbidden,
    ClusterNotFound,
    ClusterRefused,
    ClusterUnavailable,
    TemplateRefused,
)
from app.ids import new_id, vm_name
from tests.support.fake_api_server import ApiServer, fails, says, says_text, serving
from tests.support.kubevirt_documents import (
    CLAIM_ID,
    SHORT,
    VM_ID,
    VM_SPEC,
    VMI_TEMPLATE,
    WITH_DATA_VOLUME,
    changed,
    uid_of,
    vm,
)

OTHER_UID = "00000000-0000-0000-0000-000000000001"
PATIENCE = 20


async def create(gateway, name="a", *, vm_id=VM_ID, template=SHORT):
    return await gateway.create_vm(
        name=name, pool="pool-a", vm_id=vm_id, spec=gateway.expand(template, WarmWhen.AGENT).spec
    )


async def create_foreign(gateway, name, own_labels=None):
    """A VM that somebody else made."""
    spec = gateway.expand(VMI_TEMPLATE, WarmWhen.RUNNING).spec
    body = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default", "labels": own_labels or {}},
        "spec": spec,
    }
    return await gateway._client.create(VMS, body)


async def read(gateway, name="a"):
    return await gateway._client.get(VMS, name)


async def until(events, wanted):
    """The first event that is wanted. All that come before it are left behind."""
    async with asyncio.timeout(PATIENCE):
        async for event in events:
            if wanted(event):
                return event
    raise AssertionError("the stream ended")


def is_warm(name):
    return lambda event: (
        isinstance(event, Changed) and event.observation.name == name and event.observation.is_warm(WarmWhen.AGENT)
    )


def is_gone(name):
    return lambda event: isinstance(event, Gone) and event.name == name


def is_listed(event):
    return isinstance(event, Listed)


class TestCheck:
    @pytest.mark.parametrize(
        "template", [SHORT, {**SHORT, "disk": "1Gi"}, VMI_TEMPLATE, VM_SPEC, {"spec": VM_SPEC}, WITH_DATA_VOLUME]
    )
    async def test_a_good_template_is_taken_and_leaves_nothing(self, gateway, template):
        await gateway.check(gateway.expand(template, WarmWhen.AGENT))
        assert list((await gateway.list_vms()).observations) == []

    @pytest.mark.parametrize(
        ("template", "field", "message"),
        [
            (
                changed(VMI_TEMPLATE, "spec.domain.bar", 1),
                "template.spec.domain.bar",
                'unknown field "spec.template.spec.domain.bar"',
            ),
            (changed(VM_SPEC, "template.spec.domain.bar", 1), "template.template.spec.domain.bar", "unknown field"),
            ({"spec": changed(VM_SPEC, "foo", 1)}, "template.spec.foo", 'unknown field "spec.foo"'),
            ({**SHORT, "labels": {"a": "no spaces allowed"}}, "template.labels", "no spaces allowed"),
            (
                changed(VMI_TEMPLATE, "spec.domain.devices", {"disks": [{"name": "data", "disk": {}}]}),
                "template.spec.domain.devices.disks[0].name",
                "disks[0].Name 'data' not found.",
            ),
            (
                changed(VMI_TEMPLATE, "spec.domain.devices", {"disks": [{"name": "bootdisk", "disk": {"bus": "foo"}}]}),
                "template.spec.domain.devices.disks[0].disk.bus",
                "unrecognized bus foo",
            ),
        ],
    )
    async def test_a_bad_one_is_refused_in_the_clusters_words_where_it_was_written(
        self, gateway, template, field, message
    ):
        with pytest.raises(TemplateRefused) as refused:
            await gateway.check(gateway.expand(template, WarmWhen.AGENT))
        assert field in [problem.field for problem in refused.value.problems]
        assert message in refused.value.detail
        assert refused.value.__cause__ is not None

    async def test_a_namespace_that_is_not_there_is_no_fault_of_the_template(self, connected):
        gateway = await connected(namespace="missing")
        with pytest.raises(ClusterUnavailable, match="no namespace 'missing': create it"):
            await gateway.check(gateway.expand(SHORT, WarmWhen.AGENT))


class TestCreate:
    async def test_a_vm_is_made_with_our_labels(self, gateway):
        seen = await create(gateway)
        assert (seen.name, seen.namespace, seen.pool, seen.vm_id) == ("a", "default", "pool-a", VM_ID)
        stored = await read(gateway)
        assert stored["metadata"]["uid"] == seen.uid
        expected = {
            labels.MANAGED_BY: "emberpool",
            labels.INSTANCE: "emberpool",
            labels.POOL: "pool-a",
            labels.VM_ID: VM_ID,
        }
        assert stored["metadata"]["labels"] == expected
        assert stored["spec"]["template"]["metadata"]["labels"] == expected

    async def test_made_twice_it_is_one(self, gateway):
        first, again = await create(gateway), await create(gateway)
        assert first.uid == again.uid
        assert len((await gateway.list_vms()).observations) == 1

    async def test_made_though_the_answer_was_lost(self, cluster, gateway):
        cluster.faults.order(kind="reset-after", verbs=["create"], resource=VMS.plural, count=1)
        with pytest.raises(ClusterUnavailable):
            await create(gateway)
        (made,) = (await gateway.list_vms()).observations
        assert (await create(gateway)).uid == made.uid

    async def test_a_name_that_is_anothers_is_a_conflict(self, connected, gateway):
        await create(gateway)
        await create_foreign(gateway, "b", {labels.VM_ID: VM_ID})
        other = await connected(instance="other")
        for where, name, vm_id in [(gateway, "a", str(new_id())), (gateway, "b", VM_ID), (other, "a", VM_ID)]:
            with pytest.raises(ClusterConflict, match=f"name {name} belongs"):
                await create(where, name, vm_id=vm_id)

    async def test_data_volumes_are_the_vms_own(self, gateway):
        name = vm_name("pool-a", new_id())
        await create(gateway, name, template=WITH_DATA_VOLUME)
        stored = (await read(gateway, name))["spec"]
        own = stored["dataVolumeTemplates"][0]["metadata"]["name"]
        assert own.startswith(name[:20])
        assert len(own) <= 63
        assert stored["template"]["spec"]["volumes"][0]["dataVolume"]["name"] == own


class TestDelete:
    async def test_the_vm_goes(self, gateway):
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            seen = await create(gateway)
            assert await gateway.delete_vm(name="a", uid=seen.uid) is True
            assert (await until(events, is_gone("a"))).uid == seen.uid
        assert await gateway.delete_vm(name="a", uid=seen.uid) is False
        assert await gateway.delete_vm(name="a", uid=None) is False

    async def test_a_running_one_is_seen_going_before_it_is_gone(self, gateway):
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            await create(gateway)
            await until(events, is_warm("a"))
            assert await gateway.delete_vm(name="a", uid=None) is True
            going = await until(events, lambda event: isinstance(event, Changed) and event.observation.deleting)
            assert not going.observation.is_warm(WarmWhen.RUNNING)
            await until(events, is_gone("a"))

    async def test_one_that_is_going_gets_no_second_delete(self, cluster, gateway):
        deletes = cluster.faults.order(kind="delay", verbs=["delete"], resource=VMS.plural, settings={"seconds": 0})
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            seen = await create(gateway)
            await until(events, is_warm("a"))
            assert await gateway.delete_vm(name="a", uid=seen.uid) is True
            assert await gateway.delete_vm(name="a", uid=seen.uid, again=True) is True
            await until(events, is_gone("a"))
        assert await gateway.delete_vm(name="a", uid=seen.uid, again=True) is False
        assert deletes.struck == 1

    async def test_one_that_the_cluster_was_not_asked_for_after_all_is_deleted(self, gateway):
        seen = await create(gateway)
        assert await gateway.delete_vm(name="a", uid=OTHER_UID, again=True) is False
        assert await gateway.delete_vm(name="a", uid=seen.uid, again=True) is True

    async def test_another_uid_is_left_alone_and_counts_as_gone(self, gateway):
        await create(gateway)
        assert await gateway.delete_vm(name="a", uid=OTHER_UID) is False
        assert "deletionTimestamp" not in (await read(gateway))["metadata"]

    async def test_by_name_only_what_is_ours_is_touched(self, connected, gateway):
        await create_foreign(gateway, "b")
        other = await connected(instance="other")
        await create(other, "c")
        for name in "b", "c":
            assert await gateway.delete_vm(name=name, uid=None) is False
            assert "deletionTimestamp" not in (await read(gateway, name))["metadata"]


class TestClaimLabel:
    async def test_the_claim_is_seen_on_the_vm(self, gateway):
        seen = await create(gateway)
        await gateway.label_claim(name="a", uid=seen.uid, claim_id=CLAIM_ID, given={})
        await gateway.label_claim(name="a", uid=seen.uid, claim_id=CLAIM_ID, given={})
        (found,) = (await gateway.list_vms()).observations
        assert (found.claim_id, found.vm_id) == (CLAIM_ID, VM_ID)

    async def test_what_people_call_it_is_a_label_where_it_can_be_one(self, gateway):
        seen = await create(gateway)
        await gateway.label_claim(name="a", uid=seen.uid, claim_id=CLAIM_ID, given={"name": "pinned-vm"})
        assert (await read(gateway))["metadata"]["labels"][labels.NAME] == "pinned-vm"
        await gateway.label_claim(name="a", uid=seen.uid, claim_id=CLAIM_ID, given={"name": "Ada's VM"})
        assert (await read(gateway))["metadata"]["annotations"][labels.NAME] == "Ada's VM"

    async def test_another_uid_gets_none(self, gateway):
        await create(gateway)
        with pytest.raises(ClusterConflict, match=OTHER_UID):
            await gateway.label_claim(name="a", uid=OTHER_UID, claim_id=CLAIM_ID, given={})
        assert labels.CLAIM not in (await read(gateway))["metadata"]["labels"]

    async def test_a_vm_that_is_gone(self, gateway):
        with pytest.raises(ClusterNotFound):
            await gateway.label_claim(name="a", uid=uid_of("a"), claim_id=CLAIM_ID, given={})


class TestMarks:
    POOLED = changed(VM_SPEC, "template.metadata", {"labels": {"pool": "c07", "app": "pool", "example.com/read": "a"}})
    CLAIMED = changed(VM_SPEC, "template.metadata.labels", {"app": "web", "example.com/read": "a"})

    async def running(self, gateway):
        """A VM of the pool's template, with the names of what belongs to it."""
        spec = gateway.expand(self.POOLED, WarmWhen.RUNNING).spec
        async with aclosing(gateway.observe()) as events:
            await gateway.create_vm(name="a", pool="web", vm_id=VM_ID, spec=spec)
            event = await until(
                events, lambda event: isinstance(event, Changed) and event.observation.is_warm(WarmWhen.RUNNING)
            )
        return event.observation

    async def everywhere(self, gateway):
        (pod,), _ = await gateway._client.list_all(PODS, selector="vm.kubevirt.io/name=a")
        vm = await read(gateway)
        return [vm, vm["spec"]["template"], await gateway._client.get(VMIS, "a"), pod]

    async def test_a_warm_vm_gets_the_labels_of_the_template_that_the_claim_describes(self, gateway):
        seen = await self.running(gateway)
        marks = gateway.expand(self.CLAIMED, WarmWhen.RUNNING).marks
        for _ in range(2):  # the answer to the first may have been lost
            await gateway.label_claim(
                name="a", uid=seen.uid, claim_id=CLAIM_ID, given={"team": "blue"}, marks=marks, instance=seen.vmi_uid
            )
        wanted = {"app": "web", "example.com/read": "a", "team": "blue", labels.CLAIM: CLAIM_ID}
        for found in await self.everywhere(gateway):
            assert wanted.items() <= found["metadata"]["labels"].items()
            assert "pool" not in found["metadata"]["labels"]

    async def test_the_labels_of_a_claim_are_on_the_vm_and_its_instance_and_kubevirt_does_the_rest(self, gateway):
        seen = await self.running(gateway)
        await gateway.label_claim(
            name="a", uid=seen.uid, claim_id=CLAIM_ID, given={"team": "blue"}, instance=seen.vmi_uid
        )
        *carried, pod = await self.everywhere(gateway)
        for found in carried:
            assert {"team": "blue", labels.CLAIM: CLAIM_ID, "pool": "c07"}.items() <= found["metadata"][
                "labels"
            ].items()
        assert "team" not in pod["metadata"]["labels"]

    async def test_an_instance_that_has_gone_is_left_alone(self, gateway):
        seen = await self.running(gateway)
        await gateway.label_claim(name="a", uid=seen.uid, claim_id=CLAIM_ID, given={}, instance=OTHER_UID)
        vm, _, vmi, _ = await self.everywhere(gateway)
        assert labels.CLAIM in vm["metadata"]["labels"]
        assert labels.CLAIM not in vmi["metadata"]["labels"]

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("kubevirt.io/nodeName", "a"),
            ("app.kubernetes.io/managed-by", "a"),
            ("emberpool.io/pool", "a"),
            ("debugLogs", "true"),
            ("kueue.x-k8s.io/queue-name", "a"),
            ("no label", "a"),
            ("team", "no label either"),
        ],
    )
    async def test_a_label_that_is_not_for_clients_stays_with_the_claim(self, gateway, key, value):
        seen = await create(gateway)
        before = (await read(gateway))["metadata"]["labels"]
        await gateway.label_claim(name="a", uid=seen.uid, claim_id=CLAIM_ID, given={key: value, "ok": "1"})
        assert (await read(gateway))["metadata"]["labels"] == {**before, labels.CLAIM: CLAIM_ID, "ok": "1"}


class TestTrouble:
    @pytest.mark.parametrize("status", [429, 500, 503])
    async def test_a_cluster_in_trouble_is_unavailable(self, cluster, gateway, status):
        cluster.faults.order(kind="error", resource=VMS.plural, settings={"status": status, "retry_after": 7})
        for call in (create(gateway), gateway.list_vms(), gateway.delete_vm(name="a", uid=OTHER_UID)):
            with pytest.raises(ClusterUnavailable) as found:
                await call
            assert found.value.retry_after is not None

    async def test_a_quota_is_told(self, cluster, gateway):
        cluster.faults.order(kind="quota", resource=VMS.plural)
        with pytest.raises(ClusterForbidden, match="exceeded quota"):
            await create(gateway)

    async def test_a_server_that_has_just_started_refuses_every_right_and_is_not_believed(self, cluster, gateway):
        fault = cluster.faults.order(kind="forbidden")
        for call in (create(gateway), gateway.list_vms(), gateway.delete_vm(name="a", uid=OTHER_UID)):
            with pytest.raises(ClusterUnavailable, match="has just started") as found:
                await call
            assert found.value.retry_after == 1
        cluster.faults.lift(fault.id)
        assert (await create(gateway)).name == "a"

    async def test_a_right_that_is_missing_is_believed_once_that_was_repeated(self, cluster, connected):
        gateway = await connected(forbidden_seconds=0.05)
        cluster.faults.order(kind="forbidden", resource=VMS.plural)
        with pytest.raises(ClusterUnavailable, match=r"it is believed once it has lasted for 0\.05 s"):
            await create(gateway)
        await asyncio.sleep(0.06)
        with pytest.raises(ClusterForbidden, match='cannot create resource "virtualmachines"'):
            await create(gateway)

    async def test_a_right_that_the_cluster_confirms_is_not_missing(self, cluster, connected):
        gateway = await connected(forbidden_seconds=0)
        cluster.faults.order(kind="forbidden", resource=VMS.plural, count=1)
        with pytest.raises(ClusterUnavailable, match="says itself that the service has the right"):
            await create(gateway)

    async def test_a_cluster_without_kubevirt_is_told_as_such(self, cluster, gateway):
        cluster.faults.order(kind="unserved", resource=VMS.plural)
        for call in (create(gateway), gateway.list_vms(), gateway.check(gateway.expand(SHORT, WarmWhen.AGENT))):
            with pytest.raises(ClusterUnavailable, match="KubeVirt is not installed"):
                await call

    async def test_a_namespace_that_does_not_exist_is_no_empty_list(self, connected):
        gateway = await connected(namespace="missing")
        with pytest.raises(ClusterUnavailable, match="kubectl create namespace missing"):
            await gateway.list_vms()

    async def test_a_namespace_that_cannot_be_read_is_taken_to_exist(self, cluster, gateway):
        cluster.faults.order(kind="forbidden", resource="namespaces")
        assert list((await gateway.list_vms()).observations) == []

    async def test_a_cluster_that_hangs(self, cluster, connected):
        gateway = await connected(cluster_timeout_seconds=0.1)
        cluster.faults.order(kind="hang", resource=VMS.plural)
        with pytest.raises(ClusterUnavailable, match="in time"):
            await create(gateway)

    async def test_a_connection_that_breaks_before_anything_happens(self, cluster, gateway):
        cluster.faults.order(kind="reset-before", verbs=["create"], resource=VMS.plural, count=1)
        with pytest.raises(ClusterUnavailable):
            await create(gateway)
        assert list((await gateway.list_vms()).observations) == []


class TestAnswersOfARace:
    """Answers in an order that the dev cluster gives only by chance."""

    async def test_a_vm_that_went_while_it_was_found_gives_its_name_to_no_other(self, tmp_path):
        taken = fails('virtualmachines.kubevirt.io "a" already exists', 409, "AlreadyExists")
        async with talking_to(ApiServer(taken, fails("not found", 404, "NotFound")), tmp_path) as gateway:
            with pytest.raises(ClusterConflict, match="new name"):
                await create(gateway)

    async def test_a_vm_that_was_already_going_is_found_going(self, tmp_path):
        taken = fails('virtualmachines.kubevirt.io "a" already exists', 409, "AlreadyExists")
        found = vm("a", deletionTimestamp="2026-11-23T04:06:36Z")
        found["metadata"]["labels"][labels.INSTANCE] = "blue"
        async with talking_to(ApiServer(taken, says(found)), tmp_path) as gateway:
            assert (await create(gateway)).deleting

    @pytest.mark.parametrize(
        ("answers", "going"),
        [
            ([says(vm("a"))], True),
            ([says_text("", 202)], True),
            ([says({"kind": "Status", "status": "Success"})], False),
            ([fails("not found", 404, "NotFound")], False),
            ([fails("precondition", 409, "Conflict"), fails("not found", 404, "NotFound")], False),
            ([fails("precondition", 409, "Conflict"), says(vm("a", uid=OTHER_UID))], False),
        ],
    )
    async def test_what_a_delete_is_told(self, tmp_path, answers, going):
        async with talking_to(ApiServer(*answers), tmp_path) as gateway:
            assert await gateway.delete_vm(name="a", uid=uid_of("a")) is going

    async def test_a_conflict_over_the_right_uid_is_one(self, tmp_path):
        async with talking_to(ApiServer(fails("busy", 409, "Conflict"), says(vm("a"))), tmp_path) as gateway:
            with pytest.raises(ClusterConflict, match="busy"):
                await gateway.delete_vm(name="a", uid=uid_of("a"))

    async def test_a_claims_label_that_is_refused_for_another_reason(self, tmp_path):
        refused = fails("denied", 422, "Invalid", causes=[{"message": "bad", "field": "metadata.labels"}])
        async with talking_to(ApiServer(refused), tmp_path) as gateway:
            with pytest.raises(ClusterRefused):
                await gateway.label_claim(name="a", uid=uid_of("a"), claim_id=CLAIM_ID, given={})


@asynccontextmanager
async def talking_to(server, folder):
    async with serving(server, folder) as settings:
        gateway = await connect(settings)
        try:
            yield gateway
        finally:
            await gateway.close()


class TestObserve:
    async def test_lists_are_whole_whatever_their_pages(self, gateway, monkeypatch):
        monkeypatch.setattr(reading, "_PAGE_SIZE", 2)
        for name in "abcde":
            await create(gateway, name, vm_id=str(new_id()))
        await create_foreign(gateway, "foreign")
        listed = await gateway.list_vms()
        assert [seen.name for seen in listed.observations] == list("abcde")
        assert listed.began_at.tzinfo is not None

    async def test_a_vm_becomes_warm_and_goes(self, gateway):
        async with aclosing(gateway.observe()) as events:
            assert list((await until(events, is_listed)).observations) == []
            made = await create(gateway)
            warm = (await until(events, is_warm("a"))).observation
            assert warm.uid == made.uid
            assert warm.node
            assert warm.addresses
            assert warm.vmi_uid
            assert warm.scheduled_at <= warm.running_at
            await gateway.delete_vm(name="a", uid=made.uid)
            assert await until(events, is_gone("a")) == Gone("a", made.uid)

    async def test_vms_of_others_are_not_seen(self, connected, gateway):
        other = await connected(instance="other")
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            await create_foreign(gateway, "b")
            await create(other, "c")
            await create(gateway)
            first = await until(events, lambda _: True)
            assert first.observation.name == "a"

    @pytest.mark.parametrize("kind", ["watch-break", "watch-expire"])
    async def test_a_watch_that_ends_is_listed_again_and_misses_nothing(self, cluster, gateway, kind):
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            made = await create(gateway)
            await until(events, is_warm("a"))
            cluster.faults.order(kind=kind, count=1)
            await create(gateway, "b", vm_id=str(new_id()))
            await gateway.delete_vm(name="a", uid=made.uid)
            await until(events, is_gone("a"))
            await until(events, is_warm("b"))

    async def test_whoever_follows_the_stream_knows_the_truth_in_the_end(self, cluster, gateway):
        """GIVEN watches that break and expire WHEN VMs come and go THEN a follower ends with those that stay, all warm."""
        faults = [cluster.faults.order(kind=kind, count=3) for kind in ("watch-break", "watch-expire")]
        known = {}

        def follow(event):
            if isinstance(event, Listed):
                known.clear()
                known.update({seen.name: seen for seen in event.observations})
            elif isinstance(event, Changed):
                known[event.observation.name] = event.observation
            elif isinstance(event, Gone):
                known.pop(event.name, None)
            return known.keys() == {"b", "d", "f"} and all(seen.is_warm(WarmWhen.AGENT) for seen in known.values())

        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            for name in "abcdef":
                await create(gateway, name, vm_id=str(new_id()))
            for name in "ace":
                await gateway.delete_vm(name=name, uid=None)
            await until(events, follow)
            # A list that comes late has everything already, and leaves nothing for the second fault to strike.
            for number in range(20):
                if all(fault.struck for fault in faults):
                    break
                made = await create(gateway, f"more-{number}", vm_id=str(new_id()))
                await gateway.delete_vm(name=f"more-{number}", uid=made.uid)
                await until(events, follow)
        assert all(fault.struck for fault in faults)

    async def test_a_silent_watch_is_opened_again_where_it_was(self, cluster, connected):
        gateway = await connected(watch_silence_seconds=0.1)
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            cluster.faults.order(kind="watch-silent", count=2)
            await create(gateway)
            await until(events, is_warm("a"))

    async def test_lists_again_at_its_interval(self, cluster, connected):
        """GIVEN watches that never say anything THEN the lists alone tell of a VM that becomes warm."""
        gateway = await connected(relist_seconds=0.1)
        cluster.faults.order(kind="watch-silent")
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            await create(gateway)
            await until(
                events,
                lambda event: is_listed(event) and event.observations and event.observations[0].is_warm(WarmWhen.AGENT),
            )

    async def test_a_vm_becomes_warm_while_a_list_hangs(self, cluster, connected):
        gateway = await connected(relist_seconds=0.1)
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            hanging = cluster.faults.order(kind="hang", verbs=["list"])
            warm = asyncio.create_task(
                until(events, is_warm("a"))
            )  # an event that nobody takes would keep the next list back
            async with asyncio.timeout(PATIENCE):
                while not hanging.struck:  # noqa: ASYNC110 - a fault tells nobody
                    await asyncio.sleep(0.01)
            await create(gateway)
            await warm
            cluster.faults.lift(hanging.id)
            await until(events, is_listed)

    async def test_a_deletion_that_the_watch_missed_is_found_by_a_list(self, cluster, connected):
        """GIVEN watches that say nothing any more THEN a list that lacks the VM says that it is gone."""
        gateway = await connected(relist_seconds=0.1)
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            made = await create(gateway)
            await until(events, is_warm("a"))
            cluster.faults.order(kind="watch-silent", settings={"running": True})
            await gateway.delete_vm(name="a", uid=made.uid)
            assert await until(events, is_gone("a")) == Gone("a", made.uid)

    async def test_lists_of_versions_are_whole_whatever_their_pages(self, connected, monkeypatch):
        """GIVEN more VMs than fit on a page WHEN they are listed again THEN none counts as deleted."""
        monkeypatch.setattr(reading, "_METADATA_PAGE_SIZE", 2)
        gateway = await connected(relist_seconds=0.1)
        for name in "abcde":
            await create(gateway, name, vm_id=str(new_id()))
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            again = [await until(events, lambda event: isinstance(event, Listed | Gone)) for _ in range(2)]
        assert [sorted(seen.name for seen in listed.observations) for listed in again] == [list("abcde")] * 2

    async def test_a_cluster_that_is_away_is_told_and_found_again(self, cluster, gateway):
        order = cluster.faults.order(kind="error", verbs=["list"], settings={"status": 503})
        async with aclosing(gateway.observe()) as events:
            assert isinstance(await until(events, lambda _: True), Broken)
            cluster.faults.lift(order.id)
            await until(events, is_listed)

    async def test_closed_it_leaves_no_task(self, gateway):
        before = asyncio.all_tasks()
        events = gateway.observe()
        await until(events, is_listed)
        await create(gateway)
        await until(events, is_warm("a"))
        await events.aclose()
        ours = {task for task in asyncio.all_tasks() - before if (task.get_name() or "").startswith("watch-")}
        assert ours == set()

    @pytest.mark.parametrize(
        ("fault", "reason", "transient"),
        [
            ({"kind": "boot-fails"}, "CrashLoopBackOff", False),
            ({"kind": "image-error"}, "ErrImagePull", True),
        ],
    )
    async def test_a_boot_that_fails_is_told_why(self, cluster, gateway, fault, reason, transient):
        cluster.faults.order(**fault)

        def failed(event):
            return (
                isinstance(event, Changed)
                and event.observation.failure is not None
                and event.observation.failure.reason == reason
            )

        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            await create(gateway)
            failure = (await until(events, failed)).observation.failure
        assert failure.transient is transient
        assert failure.message

    async def test_a_vm_whose_disk_cannot_be_imported_is_told_why(self, cluster, gateway):
        cluster.faults.order(kind="import-fails", settings={"message": "404 Not Found"})
        disk = {"image": "https://images.example/gone.qcow2", "memory": "64Mi", "root_disk": "1Gi"}
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            uid = (await create(gateway, template=disk)).uid
            seen = await until(
                events, lambda event: isinstance(event, Changed) and event.observation.failure is not None
            )
        assert (seen.observation.failure.reason, seen.observation.disks) == ("DataVolumeError", "DataVolumeError")
        failed = Failure("import", "404 Not Found", transient=True)
        assert await gateway.disk_failures([uid, "another"]) == {uid: failed}

    async def test_a_vm_that_no_node_can_take(self, gateway):
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            await create(gateway, template={**SHORT, "memory": "100Ti"})
            seen = await until(
                events, lambda event: isinstance(event, Changed) and event.observation.failure is not None
            )
        assert seen.observation.failure.transient
        assert "nsufficient memory" in seen.observation.failure.message

    async def test_a_guest_that_dies_is_no_longer_warm(self, cluster, gateway):
        async with aclosing(gateway.observe()) as events:
            await until(events, is_listed)
            made = await create(gateway)
            warm = (await until(events, is_warm("a"))).observation
            cluster.faults.order(kind="guest-dies", count=1)
            await until(
                events, lambda event: isinstance(event, Changed) and not event.observation.is_warm(WarmWhen.RUNNING)
            )
            again = (await until(events, is_warm("a"))).observation
        assert again.uid == made.uid
        assert again.vmi_uid != warm.vmi_uid
