from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from app.compute.kubevirt.kinds import VMIS, VMS
from app.compute.kubevirt.vms.inventory import Inventory
from app.compute.vms import Changed, Gone
from app.domain.observation import WarmWhen
from tests.support.kubevirt_documents import uid_of, vm, vmi

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_vms_and_their_instances_are_put_together():
    inventory = Inventory()
    for kind, item in ((VMS, vm("a")), (VMS, vm("b")), (VMIS, vmi("a")), (VMIS, vmi("stranger"))):
        inventory.put(kind, item)
    listed = inventory.report(NOW)
    seen = {observation.name: observation for observation in listed.observations}
    assert (listed.began_at, seen.keys()) == (NOW, {"a", "b"})
    assert seen["a"].is_warm(WarmWhen.AGENT)
    assert seen["b"].phase is None


def test_a_report_stays_as_it_was_and_can_be_taken_in_parts():
    inventory = Inventory()
    for name in "abc":
        inventory.put(VMS, vm(name))
    shown = inventory.report(NOW).observations
    inventory.put(VMIS, vmi("a"))
    inventory.drop(VMS, "b")
    assert [observation.name for observation in shown[1:]] == ["b", "c"]
    assert (len(shown), shown[0].phase, shown[-1].name) == (3, None, "c")


def test_an_instance_that_comes_first_waits_for_its_vm():
    inventory = Inventory()
    assert inventory.put(VMIS, vmi("a")) == []
    (change,) = inventory.put(VMS, vm("a"))
    assert isinstance(change, Changed)
    assert change.observation.is_warm(WarmWhen.AGENT)


def test_an_instance_changes_its_vm_and_leaves_it():
    inventory = Inventory()
    inventory.put(VMS, vm("a"))
    (warm,) = inventory.put(VMIS, vmi("a"))
    assert warm.observation.phase == "Running"
    (cold,) = inventory.drop(VMIS, "a")
    assert cold.observation.phase is None
    assert inventory.drop(VMIS, "a") == []


def test_an_event_that_changes_nothing_we_read_is_not_told():
    inventory = Inventory()
    inventory.put(VMS, vm("a"))
    inventory.put(VMIS, vmi("a"))
    assert inventory.put(VMS, vm("a", resourceVersion="7")) == []
    assert inventory.put(VMIS, vmi("a", generation=9)) == []
    assert len(inventory.put(VMS, vm("a", deletionTimestamp="2026-11-23T04:06:36Z"))) == 1


def test_a_deleted_vm_is_gone_once():
    inventory = Inventory()
    inventory.put(VMS, vm("a"))
    inventory.put(VMIS, vmi("a"))
    assert inventory.drop(VMS, "a") == [Gone("a", uid_of("a"))]
    assert inventory.drop(VMS, "a") == []
    assert inventory.put(VMIS, vmi("a", phase="Failed")) == []
    assert list(inventory.observations()) == []


def test_a_name_with_another_uid_is_another_vm():
    inventory = Inventory()
    inventory.put(VMS, vm("a"))
    gone, changed = inventory.put(VMS, vm("a", uid=uid_of("second")))
    assert gone == Gone("a", uid_of("a"))
    assert changed.observation.uid == uid_of("second")


EVENTS = st.lists(
    st.tuples(st.sampled_from([VMS, VMIS]), st.booleans(), st.sampled_from(["a", "b"]), st.sampled_from([1, 2])),
    max_size=30,
)


@given(EVENTS)
def test_whoever_follows_the_changes_knows_what_is_known(events):
    """GIVEN any order of events WHEN they are told to a follower THEN it ends with the same VMs, and none vanished without a Gone."""
    inventory, follower = Inventory(), {}
    for kind, is_deleted, name, generation in events:
        uid = uid_of(f"{name}{generation}")
        if is_deleted:
            changes = inventory.drop(kind, name)
        else:
            changes = inventory.put(kind, vm(name, uid=uid) if kind == VMS else vmi(name, of=uid))
        for change in changes:
            if isinstance(change, Gone):
                assert follower.pop(change.name).uid == change.uid
            else:
                known = follower.get(change.observation.name)
                assert known is None or known.uid == change.observation.uid
                follower[change.observation.name] = change.observation
        assert follower == {observation.name: observation for observation in inventory.observations()}
