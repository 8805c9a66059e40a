from hypothesis import given
from hypothesis import strategies as st

from app.compute.kubevirt.vms.inventory import Inventory
from app.compute.vms import Changed, Gone
from app.domain.observation import WarmWhen
from tests.support.kubevirt_documents import uid_of, vm, vmi


def test_a_list_puts_vms_and_their_instances_together():
    inventory = Inventory()
    assert inventory.replace([vm("a"), vm("b")], [vmi("a"), vmi("stranger")]) == []
    seen = {observation.name: observation for observation in inventory.observations()}
    assert seen.keys() == {"a", "b"}
    assert seen["a"].is_warm(WarmWhen.AGENT)
    assert seen["b"].phase is None


def test_what_a_list_no_longer_has_is_gone():
    inventory = Inventory()
    inventory.replace([vm("a"), vm("b"), vm("c")], [])
    assert inventory.replace([vm("a"), vm("b", uid=uid_of("other"))], []) == [
        Gone("b", uid_of("b")),
        Gone("c", uid_of("c")),
    ]


def test_an_instance_that_comes_first_waits_for_its_vm():
    inventory = Inventory()
    assert inventory.apply_vmi("ADDED", vmi("a")) == []
    (change,) = inventory.apply_vm("ADDED", vm("a"))
    assert isinstance(change, Changed)
    assert change.observation.is_warm(WarmWhen.AGENT)


def test_an_instance_changes_its_vm_and_leaves_it():
    inventory = Inventory()
    inventory.apply_vm("ADDED", vm("a"))
    (warm,) = inventory.apply_vmi("ADDED", vmi("a"))
    assert warm.observation.phase == "Running"
    assert inventory.apply_vmi("DELETED", vmi("a", uid=uid_of("an earlier instance"))) == []
    (cold,) = inventory.apply_vmi("DELETED", vmi("a"))
    assert cold.observation.phase is None


def test_an_event_that_changes_nothing_we_read_is_not_told():
    inventory = Inventory()
    inventory.replace([vm("a")], [vmi("a")])
    assert inventory.apply_vm("MODIFIED", vm("a", resourceVersion="7")) == []
    assert inventory.apply_vmi("MODIFIED", vmi("a", generation=9)) == []
    assert len(inventory.apply_vm("MODIFIED", vm("a", deletionTimestamp="2026-11-23T04:06:36Z"))) == 1


def test_a_deleted_vm_is_gone_once():
    inventory = Inventory()
    inventory.replace([vm("a")], [vmi("a")])
    assert inventory.apply_vm("DELETED", vm("a")) == [Gone("a", uid_of("a"))]
    assert inventory.apply_vm("DELETED", vm("a")) == []
    assert inventory.apply_vmi("MODIFIED", vmi("a", phase="Failed")) == []
    assert inventory.observations() == ()


def test_a_name_with_another_uid_is_another_vm():
    inventory = Inventory()
    inventory.replace([vm("a")], [])
    gone, changed = inventory.apply_vm("ADDED", vm("a", uid=uid_of("second")))
    assert gone == Gone("a", uid_of("a"))
    assert changed.observation.uid == uid_of("second")


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["vm", "vmi", "list"]),
        st.sampled_from(["ADDED", "MODIFIED", "DELETED"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from([1, 2]),
    ),
    max_size=30,
)


@given(EVENTS)
def test_whoever_follows_the_changes_knows_what_is_known(events):
    """GIVEN any order of events WHEN they are told to a follower THEN it ends with the same VMs, and none vanished without a Gone."""
    inventory, follower = Inventory(), {}
    for what, kind, name, generation in events:
        uid = uid_of(f"{name}{generation}")
        if what == "vm":
            changes = inventory.apply_vm(kind, vm(name, uid=uid))
        elif what == "vmi":
            changes = inventory.apply_vmi(kind, vmi(name, of=uid))
        else:
            changes = inventory.replace([vm(name, uid=uid)], [])
        for change in changes:
            if isinstance(change, Gone):
                assert follower.pop(change.name).uid == change.uid
            else:
                known = follower.get(change.observation.name)
                assert known is None or known.uid == change.observation.uid
                follower[change.observation.name] = change.observation
        if what == "list":
            assert follower.keys() <= {name}
            follower = {observation.name: observation for observation in inventory.observations()}
        assert sorted(follower) == sorted(observation.name for observation in inventory.observations())
