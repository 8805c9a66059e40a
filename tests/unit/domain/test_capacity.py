from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.capacity import emptied, fit, fits_on, has_more_room, take_places, tell
from app.domain.nodes import KVM, SCHEDULABLE, Demand, Node, NodeTerm, Requirement, Taint, Toleration

GI, MI = 2**30, 2**20
OFFERS = {"cpu": 8000, "memory": 16 * GI, "hugepages-1Gi": 8 * GI, KVM: 1000, "pods": 110}
NODE = Node("node-1", uid="a", labels={SCHEDULABLE: "true"}, conditions={"Ready": "True"}, allocatable=OFFERS)
VM = Demand({"cpu": 2000, "memory": 2 * GI, "pods": 1, KVM: 1}, selector={SCHEDULABLE: "true"})


def asking(**amounts):
    return replace(VM, amounts={"pods": 1, **{name.replace("_", "-"): amount for name, amount in amounts.items()}})


def missing(node, demand=VM):
    (found,) = fit([node], demand).nodes
    return list(found.missing)


class TestWords:
    @pytest.mark.parametrize(
        ("used", "demand", "words"),
        [
            (
                {"hugepages-1Gi": 4 * GI},
                Demand({"hugepages-1Gi": 6 * GI}),
                "1Gi hugepages: 4 free of 8, 6 needed",
            ),
            ({"cpu": 7500}, Demand({"cpu": 4000}), "CPUs: 0.5 free of 8, 4 needed"),
            ({"memory": 15 * GI}, Demand({"memory": 2 * GI + 300 * MI}), "memory: 1Gi free of 16Gi, 2.3Gi needed"),
            ({"pods": 110}, Demand({"pods": 1}), "pods: 0 free of 110, 1 needed"),
            ({}, Demand({"hugepages-2Mi": 2 * MI}), "2Mi hugepages: 0 free of 0, 1 needed"),
            ({}, Demand({"hugepages-3Mi": 6 * MI}), "3Mi hugepages: 0 free of 0, 6Mi needed"),
            ({KVM: 1000}, Demand({KVM: 1}), "kvm devices: 0 free of 1000, 1 needed"),
            ({}, Demand({"vendor.example/gpu": 1}), "vendor.example/gpu: 0 free of 0, 1 needed"),
            ({"cpu": 9000}, Demand({"cpu": 100}), "CPUs: 0 free of 8, 0.1 needed"),
        ],
    )
    def test_what_is_short_is_told_in_its_own_units(self, used, demand, words):
        assert missing(replace(NODE, used=used), demand) == [words]

    @pytest.mark.parametrize(
        ("node", "demand", "words"),
        [
            (NODE, replace(VM, selector={"disk": "fast"}), "label disk=fast needed"),
            (
                replace(NODE, labels={"disk": "slow"}),
                replace(VM, selector={"disk": "fast"}),
                "label disk is 'slow', 'fast' needed",
            ),
            (NODE, replace(VM, terms=(NodeTerm(),)), "no term of the node affinity holds"),
            (replace(NODE, taints=(Taint("vms", "only"),)), VM, "taint vms=only:NoSchedule is not tolerated"),
            (replace(NODE, cordoned=True), VM, "cordoned"),
            (
                replace(NODE, taints=(Taint("node.kubernetes.io/not-ready", effect="NoExecute"),)),
                VM,
                "taint node.kubernetes.io/not-ready:NoExecute",
            ),
        ],
    )
    def test_what_the_node_is_or_goes_through_is_told(self, node, demand, words):
        assert missing(node, demand) == [words]

    def test_all_that_is_missing_is_told_and_only_what_is(self):
        node = replace(NODE, labels={}, used={"memory": 16 * GI})
        (words,) = fit([node], asking(cpu=9000, memory=GI)).missing
        assert words.startswith(
            f"node-1: KubeVirt runs no VMs there (label {SCHEDULABLE}=true needed), CPUs: 8 free of 8"
        )
        assert "memory: 0 free of 16Gi" in words
        assert "pods" not in words

    def test_of_a_node_that_takes_some_the_next_is_told(self):
        assert fit([NODE], VM).missing == ("node-1: takes 4, and for one more CPUs: 0 free of 8, 2 needed",)

    def test_a_cluster_without_nodes_is_told_as_such(self):
        assert fit([], VM).missing == ("the cluster has no nodes",)

    def test_many_nodes_are_not_told_one_by_one(self):
        nodes = [replace(NODE, name=f"node-{number:02}") for number in range(25)]
        told = tell(fit(nodes, asking(cpu=9000)).missing)
        assert told.count("needed") == 20
        assert told.endswith("and 5 more nodes likewise")


class TestCounting:
    def test_now_is_with_what_runs_and_ever_is_without(self):
        busy = replace(NODE, used={"cpu": 5000})
        found = fit([busy, replace(NODE, name="node-2", cordoned=True)], VM)
        assert [(each.node, each.now, each.ever) for each in found.nodes] == [("node-1", 1, 4), ("node-2", 0, 4)]
        assert (found.now, found.ever) == (1, 8)

    def test_an_emptied_node_takes_now_what_it_could_ever_take(self):
        passing = Taint("node.kubernetes.io/not-ready")
        node = replace(NODE, used={"cpu": 8000}, cordoned=True, taints=(passing, Taint("vms")), labels={})
        demand = replace(VM, tolerations=(Toleration("vms", "Exists"),))
        assert (fit([node], demand).now, fit([node], demand).ever) == (0, 4)
        assert fit(emptied([node]), demand).now == 4
        assert fit(emptied([node]), VM).now == 0

    def test_a_taint_for_what_the_node_is_counts_for_ever(self):
        tainted = replace(NODE, taints=(Taint("vms"),))
        assert fit([tainted], VM).ever == 0
        assert fit([tainted], replace(VM, tolerations=(Toleration("vms", "Exists"),))).ever == 4

    def test_without_a_sight_of_pods_all_is_free_and_that_is_said(self):
        found = fit([replace(NODE, used=None)], VM)
        assert found.now == 4
        assert found.unseen == ("what runs on the nodes cannot be seen, and counts as nothing",)

    @pytest.mark.parametrize(
        ("toleration", "covers"),
        [
            (Toleration(operator="Exists"), True),
            (Toleration("vms"), False),
            (Toleration("vms", value="only"), True),
            (Toleration("vms", "Exists", effect="NoExecute"), False),
            (Toleration("other", "Exists"), False),
        ],
    )
    def test_tolerations(self, toleration, covers):
        assert toleration.covers(Taint("vms", "only")) is covers

    @pytest.mark.parametrize(
        ("operator", "values", "holds"),
        [
            ("In", ("2",), True),
            ("NotIn", ("2",), False),
            ("Exists", (), True),
            ("DoesNotExist", (), False),
            ("Gt", ("1",), True),
            ("Lt", ("1",), False),
            ("Gt", ("a",), False),
            ("Like", ("2",), False),
        ],
    )
    def test_requirements(self, operator, values, holds):
        assert Requirement("rank", operator, values).holds({"rank": "2"}) is holds


@given(
    st.lists(
        st.builds(lambda cpu: replace(NODE, name=f"n{cpu}", allocatable={**OFFERS, "cpu": cpu}), st.integers(0, 9000)),
        max_size=5,
    ),
    st.integers(0, 12),
)
def test_places_that_are_taken_are_counted_once_each(nodes, count):
    before = fit(nodes, VM).now
    after = fit(take_places(nodes, [(VM, count)]), VM).now
    assert after == max(0, before - count)


def test_places_of_different_demands_are_taken_side_by_side():
    big = asking(cpu=8000)
    (left,) = take_places([NODE], [(VM, 1), (big, 1)])
    assert fits_on(left, VM) == 3


class TestMoreRoom:
    @pytest.mark.parametrize(
        "change",
        [
            {"uid": "b"},
            {"labels": {SCHEDULABLE: "false"}},
            {"taints": (Taint("a"),)},
            {"conditions": {"Ready": "False"}},
            {"used": {"cpu": 900}},
            {"allocatable": {**OFFERS, "cpu": 9000}},
        ],
    )
    def test_is_seen(self, change):
        assert has_more_room(replace(NODE, used={"cpu": 1000}), replace(NODE, **{"used": {"cpu": 1000}, **change}))

    @pytest.mark.parametrize(
        "change", [{}, {"used": {"cpu": 1100}}, {"images": (("a", 1),)}, {"vms": frozenset({"a"})}]
    )
    def test_is_not_seen_where_there_is_none(self, change):
        assert not has_more_room(replace(NODE, used={"cpu": 1000}), replace(NODE, **{"used": {"cpu": 1000}, **change}))

    def test_a_new_node_is_more_room(self):
        assert has_more_room(None, NODE)


def test_pods_that_keep_others_away_are_told_and_not_compared():
    found = fit([replace(NODE, repels=True), replace(NODE, name="node-2")], VM)
    assert found.now == 8
    assert found.unseen == ("required pod anti-affinity of pods on node-1 is not compared, and may keep a VM away",)
