"""Nodes that are going: which they are, and for which VMs."""

import pytest

from app.domain.nodes import CORDON, Node, Taint, Toleration

CORDONED = Node("node-1", cordoned=True)


def tainted(key, effect="NoSchedule"):
    return Node("node-1", taints=(Taint(key, effect=effect),))


GOING = {
    "cordoned": CORDONED,
    "cordoned, with its taint": Node("node-1", cordoned=True, taints=(Taint(CORDON),)),
    "drained by KubeVirt": tainted("kubevirt.io/drain"),
    "about to be removed by an autoscaler": tainted("ToBeDeletedByClusterAutoscaler"),
    "about to be replaced by Karpenter": tainted("karpenter.sh/disrupted"),
    "shut down": tainted("node.cloudprovider.kubernetes.io/shutdown"),
    "out of service": tainted("node.kubernetes.io/out-of-service", "NoExecute"),
    "unreachable": tainted("node.kubernetes.io/unreachable"),
    "evicting pods for a reason of its own": tainted("maintenance", "NoExecute"),
}
STAYING = {
    "a node like any other": Node("node-1"),
    "short of memory for a while": tainted("node.kubernetes.io/memory-pressure"),
    "kept for others": tainted("dedicated"),
    "rather not used": tainted("kubevirt.io/drain", "PreferNoSchedule"),
}


@pytest.mark.parametrize("node", GOING.values(), ids=GOING)
def test_a_node_that_is_about_to_lose_its_vms_is_going(node):
    assert node.may_be_going
    assert node.is_going_for([Toleration(key="another", operator="Exists")])


@pytest.mark.parametrize("node", STAYING.values(), ids=STAYING)
def test_a_node_that_only_takes_no_others_is_not(node):
    assert not node.may_be_going


@pytest.mark.parametrize("node", GOING.values(), ids=GOING)
def test_vms_that_tolerate_it_stay(node):
    assert not node.is_going_for([Toleration(operator="Exists")])


def test_each_taint_has_to_be_tolerated():
    node = Node("node-1", cordoned=True, taints=(Taint("maintenance", effect="NoExecute"),))
    cordon = Toleration(key=CORDON, operator="Exists")
    assert node.is_going_for([cordon])
    assert not node.is_going_for([cordon, Toleration(key="maintenance", operator="Exists")])
