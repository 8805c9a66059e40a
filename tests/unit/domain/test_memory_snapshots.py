"""Snapshots that keep memory: what is asked of them, when their memory is lost, and the order of paths."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from app.domain.path_selection import PathOption, choose
from app.domain.paths import StartPath
from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import (
    KeptMemory,
    Origin,
    SnapshotState,
    SnapshotStatus,
    TakeFacts,
    TakeState,
    VolumeVerdict,
    after_status,
    assess,
    left_out,
    plan_takes,
    unkept_disks,
    why_memory_is_lost,
)
from app.domain.statistics import BootTimes

NOW = datetime(2026, 1, 12, 9, 0, tzinfo=UTC)
READY = SnapshotStatus("s", "uid", "take", ready=True, failed=False, deleting=False, included=("root",))
KEPT = KeptMemory(1024, "qemu 10")
MISMATCH = "it was kept with QEMU 9, and the cluster has QEMU 10"


def take(number=1, state=TakeState.READY, **given):
    return TakeFacts(uuid.UUID(int=number), number, state, NOW, **{"revision": "r1", "based_at": NOW, **given})


class TestSpec:
    def test_a_vm_of_a_pool_is_not_stopped_for_its_memory(self):
        assert not SnapshotSpec(name="s", source={"pool": "web"}, memory=True).stops
        assert SnapshotSpec(name="s", source={"pool": "web"}).stops

    def test_a_stopped_vm_has_no_memory(self):
        with pytest.raises(ValidationError, match="a VM that is stopped has no memory to keep"):
            SnapshotSpec(name="s", source={"pool": "web"}, quiesce="stop", memory=True)


class TestTakes:
    def test_one_that_was_to_keep_memory_and_did_not_has_failed(self):
        step = after_status(READY, timedelta(0), timeout_seconds=60, memory=True)
        assert step.to is TakeState.FAILING
        assert "kept no memory, as KubeVirt does" in step.reason
        assert after_status(READY, timedelta(0), timeout_seconds=60).to is TakeState.READY

    def test_one_that_kept_it_is_ready(self):
        kept = replace(READY, memory=KEPT)
        assert after_status(kept, timedelta(0), timeout_seconds=60, memory=True).to is TakeState.READY

    def test_memory_is_lost_when_the_cluster_says_so_or_has_it_no_longer(self):
        assert why_memory_is_lost(replace(READY, memory=KEPT)) is None
        assert why_memory_is_lost(replace(READY, memory=replace(KEPT, stale_reason=MISMATCH))) == MISMATCH
        assert why_memory_is_lost(READY) == "the cluster no longer keeps its memory"
        assert why_memory_is_lost(None) is None  # the whole take is lost, which is told otherwise

    def test_a_stale_one_is_told_with_what_to_do(self):
        state, reason = assess([take(stale_reason=MISMATCH)], deleting=False)
        assert state is SnapshotState.STALE
        assert reason == f"its memory cannot be restored any more: {MISMATCH}; POST .../refresh takes it again"
        state, reason = assess([take(stale_reason=MISMATCH), take(2, TakeState.TAKING)], deleting=False)
        assert (state, reason.endswith("it is being taken again")) == (SnapshotState.STALE, True)
        state, reason = assess([take(stale_reason=MISMATCH), take(2, TakeState.FAILED, reason="full")], deleting=False)
        assert (state, reason.endswith("the last refresh failed: full")) == (SnapshotState.STALE, True)

    def test_an_older_stale_one_does_not_matter(self):
        assert assess([take(stale_reason=MISMATCH), take(2)], deleting=False) == (SnapshotState.READY, None)

    @pytest.mark.parametrize(("refresh", "begins"), [(True, True), (False, False)])
    def test_a_stale_one_that_refreshes_itself_is_taken_again(self, refresh, begins):
        spec = SnapshotSpec(name="s", source={"pool": "web"}, memory=True, refresh=refresh)
        plan = plan_takes(spec, [take(stale_reason=MISMATCH)], Origin("r1"), NOW, deleting=False)
        assert plan.begin is begins

    def test_only_disks_that_the_guest_writes_to_have_to_be_kept(self):
        image = VolumeVerdict("image", enabled=False, reason="a container disk")
        seed = VolumeVerdict("seed", enabled=False, reason="no disk", written=False)
        assert unkept_disks([VolumeVerdict("root", enabled=True), seed]) == ()
        assert unkept_disks([image, seed]) == ("image: a container disk",)
        excluded = left_out(replace(READY, excluded=("image", "seed")), [image, seed])
        assert unkept_disks(excluded) == ("image: a container disk",)


def option(path, p50=None, **given):
    own = BootTimes(10, p50, p50) if p50 is not None else BootTimes()
    return PathOption(path, None if path is StartPath.COLD else f"a-{path}", own=own, **given)


class TestOrder:
    @pytest.mark.parametrize("open_from", range(1, len(StartPath)))
    def test_the_first_path_that_is_open_is_taken(self, open_from):
        paths = list(StartPath)
        options = [replace(option(path), available=at >= open_from, why="closed") for at, path in enumerate(paths)]
        assert choose(options, paths).path is paths[open_from]
        assert paths == ["pool", "memory", "snapshot", "preload", "cold"]

    def test_memory_says_what_it_starts_from(self):
        choice = choose([option(StartPath.MEMORY, 0.4), option(StartPath.COLD, 4.0)], list(StartPath))
        assert choice.reason == (
            "from the memory of snapshot 'a-memory': the first path available (about 0.4 s, measured for this shape 10 times)"
        )

    def test_measurements_overrule_it_as_any_path(self):
        choice = choose([option(StartPath.MEMORY, 9.0), option(StartPath.SNAPSHOT, 4.0)], list(StartPath))
        assert choice.path is StartPath.SNAPSHOT
