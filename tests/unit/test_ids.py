"""Ids and the cluster names made of them."""

import re
import uuid

import hypothesis.strategies as st
from hypothesis import given

from app.domain.pools import POOL_NAME_PATTERN
from app.ids import new_id, vm_name

# A host name's label (RFC 1123), as a VM's name, its guest's and a label's value must all be.
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
POOLS = st.from_regex(POOL_NAME_PATTERN, fullmatch=True).filter(lambda name: len(name) <= 63 and "\n" not in name)


@given(pool=POOLS, vm_id=st.uuids())
def test_a_vm_name_is_a_host_name_and_tells_its_pool(pool, vm_id):
    name = vm_name(pool, vm_id)
    assert LABEL.fullmatch(name)
    assert len(name) <= 63
    assert name.startswith(pool[:20].rstrip("-"))


@given(pools=st.tuples(POOLS, POOLS), ids=st.tuples(st.uuids(), st.uuids()))
def test_two_vms_never_share_a_name(pools, ids):
    same = ids[0] == ids[1]
    assert (vm_name(pools[0], ids[0])[-26:] == vm_name(pools[1], ids[1])[-26:]) is same


def test_a_long_pool_name_is_cut_and_ends_in_no_hyphen():
    name = vm_name("a" * 35 + "-" * 10 + "b", uuid.UUID(int=1))
    assert name.startswith("a" * 35 + "-a")
    assert len(name) == 35 + 1 + 26


def test_ids_rise_with_time():
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert {one.version for one in ids} == {7}
