"""Settings of a pool, pair by pair: refused, told at the write, or fine together."""

import pytest
from pydantic import ValidationError

from app.domain.pools import PoolSpec, contradictions, why_never_a_vm
from app.domain.statistics import BootTimes

TEMPLATE = {"image": "registry.example/guest:1"}
SETTINGS = frozenset(
    {
        "size",
        "min_available",
        "max_vms",
        "auto_replenish",
        "max_ready_age_seconds",
        "max_concurrent_creates",
        "boot_timeout_seconds",
        "default_lease_seconds",
        "max_lease_seconds",
        "backing",
        "start_from",
    }
)
"""All that are compared. The gateway compares `template`, `placement` and `warm_when` with each other, and the nodes decide about
`placement` and `allow_unschedulable`."""


def spec(**given):
    return PoolSpec(**{"size": 4, "template": TEMPLATE, **given})


REFUSED = {
    ("size", "min_available"): ({"size": 2, "min_available": 3}, "lower it or raise size"),
    ("size", "max_vms"): ({"size": 3, "max_vms": 2}, "raise it or lower size"),
    ("default_lease_seconds", "max_lease_seconds"): (
        {"default_lease_seconds": 90, "max_lease_seconds": 60},
        "lower it or raise this",
    ),
    ("backing", "start_from"): (
        {"backing": "VirtualMachinePool", "start_from": {"snapshot": "s"}},
        "leave backing out, or start from a preload",
    ),
}

TOLD = {
    ("min_available", "max_vms"): (
        {"size": 4, "min_available": 4, "max_vms": 4},
        "raise max_vms by 1 or lower min_available by 1",
    ),
    ("min_available", "auto_replenish"): (
        {"min_available": 2, "auto_replenish": False},
        "turn auto_replenish on or set min_available to 0",
    ),
    ("size", "auto_replenish"): ({"size": 0, "auto_replenish": False}, "raise size or turn auto_replenish on"),
    ("max_vms", "size"): ({"size": 0, "max_vms": 0}, "raise max_vms"),
    ("size", "max_ready_age_seconds"): ({"size": 40, "max_ready_age_seconds": 60}, "raise it to 120 or more"),
    ("max_concurrent_creates", "max_ready_age_seconds"): (
        {"max_concurrent_creates": 1, "max_ready_age_seconds": 60},
        "raise it to 120 or more",
    ),
}

FINE = {
    "a pool without a limit": {},
    "a floor below the cap": {"min_available": 3, "max_vms": 4},
    "a floor at the size, without a cap": {"min_available": 4},
    "a cap at the size, without a floor": {"max_vms": 4},
    "a pool that shrinks, without a floor": {"auto_replenish": False},
    "a pool that shrinks and ages": {"auto_replenish": False, "max_ready_age_seconds": 600},
    "an empty pool that serves claims": {"size": 0},
    "an empty pool with a cap": {"size": 0, "max_vms": 3},
    "an empty pool that would age": {"size": 0, "max_ready_age_seconds": 60},
    "an age that leaves time to replace all": {"max_ready_age_seconds": 120},
    "a boot that may take longer than a VM may wait": {"boot_timeout_seconds": 600, "max_ready_age_seconds": 200},
    "leases at the longest": {"default_lease_seconds": 60, "max_lease_seconds": 60},
    "a VirtualMachinePool from a preload": {"backing": "VirtualMachinePool", "start_from": {"preload": "p"}},
    "more creates than VMs": {"max_concurrent_creates": 500, "max_vms": 4},
}
MEASURED = BootTimes(count=20, p50=30.0, p95=40.0)


@pytest.mark.parametrize(("given", "helps"), REFUSED.values(), ids=map(" and ".join, REFUSED))
def test_a_pair_that_can_never_work_is_refused_with_what_to_change(given, helps):
    with pytest.raises(ValidationError, match=helps):
        spec(**given)


@pytest.mark.parametrize(("given", "helps"), TOLD.values(), ids=map(" and ".join, TOLD))
def test_a_pair_that_cannot_all_hold_is_told_with_what_to_change(given, helps):
    (note,) = contradictions(spec(**given), MEASURED)
    assert note.endswith(helps)
    assert all(name in note for name in given if name in {"min_available", "max_vms", "auto_replenish"})


@pytest.mark.parametrize("given", FINE.values(), ids=FINE)
def test_settings_that_hold_together_have_nothing_to_tell(given):
    assert contradictions(spec(**given), MEASURED) == ()


def test_every_setting_is_in_the_tables():
    """A new setting has to be compared with the others: add its pairs to the tables above, or name who compares it."""
    elsewhere = {"template", "placement", "guest", "warm_when", "allow_unschedulable"}
    assert set(PoolSpec.model_fields) == SETTINGS | elsewhere
    named = {name for pair in (*REFUSED, *TOLD) for name in pair} | {name for given in FINE.values() for name in given}
    assert named == SETTINGS


def test_what_follows_from_measurements_is_told_once_there_are_some():
    aging = spec(size=40, max_ready_age_seconds=60)
    assert contradictions(aging) == ()
    assert contradictions(aging, MEASURED) == (
        (
            "replacing all 40 VMs takes about 120 s (10 at a time, 30 s each), so that VMs become older than "
            "max_ready_age_seconds (60); raise it to 120 or more"
        ),
    )


@pytest.mark.parametrize("size", [0, 1, 4])
def test_settings_that_never_give_a_vm_are_known_as_such(size):
    assert why_never_a_vm(spec(size=size)) is None
    assert (why_never_a_vm(spec(size=size, auto_replenish=False)) is not None) is (size == 0)


def test_several_contradictions_are_all_told():
    told = contradictions(spec(size=2, min_available=2, max_vms=2, auto_replenish=False))
    assert [note.split(":")[0] for note in told] == [
        "size, min_available and max_vms are all 2",
        "auto_replenish is off",
    ]
