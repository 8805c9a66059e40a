"""What pods tell of a boot is written beside what the VM told, in one read for many."""

from datetime import UTC, datetime, timedelta

import pytest

from app.domain.observation import PodTimes
from app.domain.stages import BootMarks, measure_stages
from app.domain.states import VmState
from app.errors import ClusterError, ClusterForbidden, ClusterUnavailable
from app.reconcilers.runtime.loop import FORBIDDEN_SECONDS, Wake
from app.reconcilers.vms.boot_times import BootTimes
from tests.support.rows import fetch, make_pool, make_vms

START = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


MARKS = BootMarks(at(0), at(1), at(30), vm_made_at=at(1), vmi_made_at=at(2), scheduled_at=at(9), running_at=at(10))
POD = PodTimes(at(3), at(9))


async def stages_of(db, vm_id):
    return (await fetch(db, "SELECT stages FROM vm WHERE id = :id", id=vm_id))[0]["stages"]


@pytest.fixture
def measure(db, gateway):
    return BootTimes(db, gateway, Wake())


async def test_one_read_for_all_that_booted(db, gateway, measure):
    ids = await make_vms(db, await make_pool(db), 3, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids[:2]}
    measure.note(dict.fromkeys(ids, MARKS))
    assert not await measure.step()
    assert len(gateway.called("pods")) == 1
    assert await stages_of(db, ids[0]) == await stages_of(db, ids[1]) == measure_stages(MARKS, POD)
    assert await stages_of(db, ids[2]) is None
    assert not await measure.step()
    assert len(gateway.called("pods")) == 1


async def test_pods_of_many_vms_are_read_in_one_step(db, gateway, measure):
    ids = await make_vms(db, await make_pool(db), 60, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids}
    measure.note(dict.fromkeys(ids, MARKS))
    assert await measure.step()
    assert not await measure.step()
    assert all([await stages_of(db, vm_id) for vm_id in ids])


async def test_a_cluster_that_is_away_is_asked_again(db, gateway, measure):
    ids = await make_vms(db, await make_pool(db), 1, VmState.BOOTING)
    gateway.pods = {str(ids[0]): POD}
    gateway.refuse("pods", ClusterUnavailable("it is away"), times=1)
    measure.note({ids[0]: MARKS})
    with pytest.raises(ClusterUnavailable):
        await measure.step()
    await measure.step()
    assert await stages_of(db, ids[0]) == measure_stages(MARKS, POD)


async def test_without_the_right_nothing_is_asked_for_a_minute_and_then_it_goes_on(db, gateway):
    now = [0.0]
    measure = BootTimes(db, gateway, Wake(), clock=lambda: now[0])
    ids = await make_vms(db, await make_pool(db), 3, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids}
    gateway.refuse("pods", ClusterForbidden("pods is forbidden"), times=1)
    measure.note({ids[0]: MARKS})
    await measure.step()
    measure.note({ids[1]: MARKS})
    await measure.step()
    assert len(gateway.called("pods")) == 1
    now[0] += FORBIDDEN_SECONDS
    measure.note({ids[2]: MARKS})
    await measure.step()
    assert [await stages_of(db, vm_id) for vm_id in ids] == [None, None, measure_stages(MARKS, POD)]


async def test_an_odd_answer_costs_one_batch(db, gateway, measure):
    ids = await make_vms(db, await make_pool(db), 2, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids}
    gateway.refuse("pods", ClusterError("HTTP 418"), times=1)
    measure.note({ids[0]: MARKS})
    await measure.step()
    measure.note({ids[1]: MARKS})
    await measure.step()
    assert await stages_of(db, ids[0]) is None
    assert await stages_of(db, ids[1]) == measure_stages(MARKS, POD)
