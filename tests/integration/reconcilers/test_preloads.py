"""Preloads brought about against a cluster in memory, with every step of it failing or being the last one of a process."""

from uuid import UUID

import pytest

from app.domain.paths import FromImage, FromVolume, ImageKind, ImageRef
from app.domain.preload_lifecycle import ObjectKind, PreloadObject, PreloadState
from app.domain.preloads import PreloadSpec
from app.domain.states import VmState
from app.errors import ClusterForbidden, ClusterUnavailable
from app.reconcilers.preloads.reconciler import PreloadReconciler
from app.reconcilers.vms.creator import VmCreator
from app.services.preloads.service import delete_preload, put_preload, refresh_preload
from app.store.preloads import rows as preload_rows
from app.store.preloads import sources as preloads
from tests.support.fake_preloads import VOLUME
from tests.support.rows import execute, fetch, make_pool, make_vms, own_id, scalar, state_of

URL = "https://images.example/a.qcow2"
DISK = {"image": {"http": {"url": URL}}, "size": "10Gi", "policy": "Always"}
IMAGE = {"image": {"container": "registry.example/a:1"}}
S = PreloadState


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"preload_stall_seconds": 600, "preload_idle_seconds": 3600})


@pytest.fixture
def worker(db, gateway, settings):
    return PreloadReconciler(db, gateway, settings)


@pytest.fixture
def cluster(gateway):
    return gateway.preloads


async def put(db, gateway, name="fedora", **given):
    body = PreloadSpec.model_validate(given or DISK)
    return (await put_preload(db, gateway, name, body)).preload


async def read(db, name="fedora"):
    async with db.begin() as tx:
        return await preload_rows.get(tx, name)


async def due(db):
    await execute(db, "UPDATE preload SET due_at = now(), lease_expires_at = now() - interval '1 s'")


async def look(db, worker, times=1):
    for _ in range(times):
        await due(db)
        await worker.step()
    return await read(db)


async def start(db, name="fedora"):
    async with db.begin() as tx:
        return await preloads.start_of(tx, name)


async def ready(db, gateway, worker, **given):
    """A preload whose volume is there."""
    await put(db, gateway, **given)
    await worker.step()
    gateway.preloads.finish(gateway.preloads.only())
    assert (await look(db, worker)).state is S.READY
    return gateway.preloads.only()


async def test_an_image_is_imported_and_then_started_from(db, gateway, cluster, worker):
    await put(db, gateway)
    assert await start(db) == "preload 'fedora' is not ready (planned)"
    await worker.step()
    name = cluster.only()
    cluster.change(name, phase="ImportInProgress", progress=43.2, bytes_total=10 * 2**30)
    found = await look(db, worker)
    assert (found.state, found.status.progress, found.status.bytes_total) == (S.IMPORTING, 43.2, 10 * 2**30)
    assert await start(db) == "preload 'fedora' is not ready (importing, 43 %)"
    cluster.finish(name)
    found = await look(db, worker)
    assert (found.state, found.attempts) == (S.READY, 0)
    assert found.ready_at is not None
    image = ImageRef(ImageKind.HTTP, URL)
    assert await start(db) == FromVolume("fedora", image, name, "12Gi", "fast", ("ReadWriteOnce",), "Block")
    events = await fetch(db, "SELECT type FROM event WHERE type LIKE 'preload.%' ORDER BY id")
    assert [each["type"] for each in events] == ["preload.created", "preload.importing", "preload.ready"]


async def test_it_is_looked_at_often_while_it_is_imported_and_rarely_afterwards(db, gateway, worker):
    pause = "SELECT extract(epoch FROM due_at - now())::float FROM preload"
    await put(db, gateway)
    await worker.step()
    assert await scalar(db, pause) < 2
    gateway.preloads.finish(gateway.preloads.only())
    await look(db, worker)
    assert await scalar(db, pause) > 3000
    assert not await worker.step()
    assert len(gateway.preloads.called("look")) == 2


async def test_a_failed_import_leaves_nothing_and_is_begun_anew_after_a_pause(db, gateway, cluster, worker):
    await put(db, gateway)
    await worker.step()
    first = cluster.only()
    cluster.change(first, phase="ImportInProgress", progress=60.0, restarts=3, trouble="Error: unexpected EOF")
    found = await look(db, worker)
    assert (found.state, found.attempts, cluster.objects) == (S.FAILED, 1, {})
    why = "the import failed at 60 %, and 3 restarts did not help: Error: unexpected EOF"
    assert found.reason == found.status.failure == why
    assert await start(db) == f"preload 'fedora' is not ready (failed, 60 %): {why}"
    found = await look(db, worker, 2)
    assert (found.state, found.generation, found.status.failure) == (S.IMPORTING, 2, why)
    assert cluster.only() != first
    cluster.finish(cluster.only())
    found = await look(db, worker)
    assert (found.state, found.status.failure, found.attempts) == (S.READY, None, 0)


async def test_an_import_that_stalls_is_given_up(db, gateway, cluster, worker):
    await put(db, gateway)
    await worker.step()
    cluster.change(cluster.only(), phase="ImportInProgress", progress=60.0)
    await look(db, worker)
    assert (await look(db, worker)).state is S.IMPORTING
    await execute(
        db, """UPDATE preload SET status = status || jsonb_build_object('moved_at', now() - interval '700 s')"""
    )
    found = await look(db, worker)
    assert (found.state, cluster.objects) == (S.FAILED, {})
    assert "made no progress at 60 % in phase ImportInProgress for 700 s" in found.reason


async def test_what_the_cluster_refuses_is_a_failure_in_its_words(db, gateway, cluster, worker):
    await put(db, gateway)
    cluster.before["make"] = _raise(ClusterForbidden("exceeded quota: volumes"))
    await worker.step()
    found = await read(db)
    assert (found.state, found.reason, found.attempts) == (S.FAILED, "exceeded quota: volumes", 1)
    del cluster.before["make"]
    found = await look(db, worker, 2)
    assert found.state is S.IMPORTING


@pytest.mark.parametrize("call", ["look", "make"])
async def test_a_cluster_that_is_away_is_waited_for_and_nobodys_failure(db, gateway, cluster, worker, call):
    await put(db, gateway)
    cluster.before[call] = _raise(ClusterUnavailable("no route", retry_after=5))
    await worker.step()
    found = await read(db)
    assert (found.state, found.attempts) == (S.PLANNED, 0)
    assert found.reason == "the cluster is unavailable: no route"
    del cluster.before[call]
    found = await look(db, worker)
    assert (found.state, found.reason) == (S.IMPORTING, None)


class Died(BaseException):
    """The process is killed."""


def _raise(error):
    def act(_name):
        raise error

    return act


@pytest.mark.parametrize("call", ["look", "make", "made", "remove"])
@pytest.mark.parametrize("ends", ["ready", "failed", "refreshed", "deleted"])
async def test_a_worker_killed_between_any_two_steps_leaves_no_half_object(db, gateway, cluster, settings, call, ends):
    """Each call of each life is the last one of a process; the next one goes on, and the end is the same."""
    await put(db, gateway)

    async def live(times=1):
        for _ in range(times):
            struck = [False]

            def die(_name, struck=struck):
                if not struck[0]:
                    struck[0] = True
                    raise Died

            cluster.before[call] = die
            await due(db)
            try:
                await PreloadReconciler(db, gateway, settings).step()
            except Died:
                cluster.before.clear()
                await due(db)
                await PreloadReconciler(db, gateway, settings).step()
            cluster.before.clear()

    await live(2)
    first = cluster.only()
    if ends == "failed":
        cluster.change(first, phase="Failed", failed=True)
        await live(4)
        assert cluster.only() != first
    cluster.finish(cluster.only())
    await live(2)
    assert (await read(db)).state is S.READY
    if ends == "refreshed":
        await refresh_preload(db, "fedora")
        await live(2)
        cluster.finish(next(name for name in cluster.objects if name != first))
        await live(3)
        assert (await read(db)).state is S.READY
        assert cluster.only() != first
    if ends == "deleted":
        await delete_preload(db, "fedora", force=False)
        await live(3)
        assert await read(db) is None
        assert cluster.objects == {}
    else:
        assert list(cluster.objects) == [(await start(db)).claim]


async def test_two_workers_do_not_look_at_the_same_one(db, gateway, worker, settings):
    await put(db, gateway)
    async with db.begin() as tx:
        (taken,) = await preload_rows.acquire_due(tx, token=UUID(int=1), limit=8, seconds=30)
        assert await preload_rows.acquire_due(tx, token=UUID(int=2), limit=8, seconds=30) == []
    await worker.step()
    assert gateway.preloads.objects == {}
    assert taken.name == "fedora"


async def test_what_was_seen_of_an_older_wish_is_not_written(db, gateway, cluster, worker):
    await put(db, gateway)

    async def put_anew():
        await put(db, gateway, **{**DISK, "size": "20Gi"})

    look_at = cluster.look

    async def interrupted(preload_id):
        cluster.look = look_at
        await put_anew()
        return await look_at(preload_id)

    cluster.look = interrupted
    await worker.step()
    found = await read(db)
    assert (found.state, found.generation) == (S.PLANNED, 2)
    found = await look(db, worker, 2)
    (only,) = cluster.objects.values()
    assert (found.state, only.generation) == (S.IMPORTING, 2)


class TestRefresh:
    async def test_the_old_volume_serves_until_the_new_one_is_ready(self, db, gateway, cluster, worker):
        old = await ready(db, gateway, worker)
        await refresh_preload(db, "fedora")
        found = await look(db, worker)
        assert (found.state, len(cluster.objects)) == (S.IMPORTING, 2)
        assert (await start(db)).claim == old
        (new,) = cluster.objects.keys() - {old}
        cluster.finish(new)
        await look(db, worker)
        assert (await start(db)).claim == new
        assert set(cluster.objects) == {old, new}  # a VM may have been told of the old one a moment ago
        await look(db, worker)
        assert list(cluster.objects) == [new]

    async def test_a_volume_that_is_being_cloned_stays(self, db, gateway, cluster, worker):
        old = await ready(db, gateway, worker)
        cluster.cloned[old] = ("somebodys",)
        await refresh_preload(db, "fedora")
        await look(db, worker)
        (new,) = cluster.objects.keys() - {old}
        cluster.finish(new)
        await look(db, worker, 2)
        assert set(cluster.objects) == {old, new}
        cluster.cloned.clear()
        await look(db, worker)
        assert list(cluster.objects) == [new]

    async def test_a_vm_that_may_be_about_to_clone_it_keeps_it(self, db, gateway, cluster, worker):
        old = await ready(db, gateway, worker)
        pool = await make_pool(db, start_from={"preload": "fedora"})
        await make_vms(db, pool, 1, VmState.CREATING)
        await refresh_preload(db, "fedora")
        await look(db, worker)
        (new,) = cluster.objects.keys() - {old}
        cluster.finish(new)
        await look(db, worker, 2)
        assert set(cluster.objects) == {old, new}
        await execute(db, "UPDATE vm SET state = 'failed'")
        await look(db, worker)
        assert list(cluster.objects) == [new]

    async def test_another_image_serves_only_once_it_is_there(self, db, gateway, cluster, worker):
        await ready(db, gateway, worker)
        await put(db, gateway, **{**DISK, "image": {"http": {"url": "https://images.example/b.qcow2"}}})
        assert await start(db) == "preload 'fedora' is not ready (planned)"
        found = await look(db, worker)
        assert (found.ready_at, len(cluster.objects)) == (None, 1)

    async def test_one_that_was_asked_for_as_the_new_one_came_keeps_the_old_one_too(self, db, gateway, cluster, worker):
        old = await ready(db, gateway, worker)
        pool = await make_pool(db, start_from={"preload": "fedora"})
        await refresh_preload(db, "fedora")
        await look(db, worker)
        (new,) = cluster.objects.keys() - {old}
        cluster.finish(new)
        await look(db, worker)
        await make_vms(db, pool, 1, VmState.CREATING)
        await look(db, worker)
        assert set(cluster.objects) == {old, new}
        await execute(db, "UPDATE vm SET asked_at = now() + interval '1 hour'")
        await look(db, worker)
        assert list(cluster.objects) == [new]

    async def test_vms_that_were_to_clone_a_volume_which_has_gone_are_given_up(self, db, gateway, cluster, worker):
        old = await ready(db, gateway, worker)
        pool = await make_pool(db, start_from={"preload": "fedora"})
        waiting, whole = await make_vms(db, pool, 2, VmState.BOOTING)
        await execute(
            db,
            """UPDATE vm SET asked_at = now(), path = 'preload', source = 'fedora',
               node = CASE WHEN id = :id THEN 'node1' END""",
            id=whole,
        )
        del cluster.objects[old]
        assert (await look(db, worker)).state is S.PLANNED
        assert await state_of(db, waiting) is VmState.FAILED
        assert await state_of(db, whole) is VmState.BOOTING
        assert await scalar(db, "SELECT reason FROM vm WHERE id = :id", id=waiting) == (
            "the volume of preload 'fedora' was deleted in the cluster before this VM had its disks"
        )


class TestWhatStandsThere:
    async def test_a_volume_of_the_preloads_name_is_used_and_never_removed(self, db, gateway, cluster, worker):
        cluster.present["fedora"] = VOLUME
        await put(db, gateway, **{**DISK, "policy": "IfNotPresent"})
        await worker.step()
        found = await read(db)
        assert (found.state, found.status.serving.adopted, cluster.objects) == (S.READY, True, {})
        await delete_preload(db, "fedora", force=False)
        await look(db, worker)
        assert cluster.called("remove") == []
        assert await read(db) is None

    async def test_without_one_it_is_imported(self, db, gateway, cluster, worker):
        await put(db, gateway, **{**DISK, "policy": "IfNotPresent"})
        await worker.step()
        assert len(cluster.objects) == 1

    async def test_always_does_not_look(self, db, gateway, cluster, worker):
        cluster.present["fedora"] = VOLUME
        await put(db, gateway)
        await worker.step()
        assert (len(cluster.objects), cluster.called("find")) == (1, [])

    async def test_never_waits_for_it(self, db, gateway, cluster, worker):
        await put(db, gateway, **{**DISK, "policy": "Never"})
        await worker.step()
        found = await read(db)
        assert (found.state, found.reason) == (S.ABSENT, "there is no volume fedora")
        assert await start(db) == "preload 'fedora' is not ready (absent): there is no volume fedora"
        cluster.present["fedora"] = VOLUME
        assert (await look(db, worker)).state is S.READY
        assert cluster.called("make") == []


class TestNodes:
    async def test_an_image_is_near_once_it_is_on_one_node(self, db, gateway, cluster, worker):
        await put(db, gateway, **IMAGE)
        await worker.step()
        name = cluster.only()
        assert cluster.objects[name].kind is ObjectKind.NODES
        cluster.pull(name, a="pulled", b="pulling")
        found = await look(db, worker)
        assert (found.state, found.status.on.pulled, found.status.on.wanted) == (S.PULLING, 1, 2)
        assert await start(db) == FromImage("fedora", "registry.example/a:1")
        async with db.begin() as tx:
            image = ImageRef(ImageKind.CONTAINER, "registry.example/a:1")
            (option,) = await preloads.ready_for_images(tx, [image])
        assert (option.name, option.image, option.on_nodes, option.of_nodes) == ("fedora", image, 1, 2)

    async def test_nodes_that_cannot_pull_are_told_with_their_reason(self, db, gateway, cluster, worker):
        await put(db, gateway, **IMAGE)
        await worker.step()
        cluster.pull(cluster.only(), a="ErrImagePull: no such image")
        found = await look(db, worker)
        assert found.state is S.FAILED
        assert found.reason == "pulled on 0 of 1 nodes; a: ErrImagePull: no such image"
        assert (await look(db, worker)).generation == 1
        cluster.pull(cluster.only(), a="pulled")
        assert (await look(db, worker)).state is S.READY


async def test_vms_that_waited_for_it_are_due_at_once(db, gateway, cluster, worker, settings):
    await put(db, gateway)
    await worker.step()
    pool = await make_pool(db, start_from={"preload": "fedora"})
    (vm_id,) = await make_vms(db, pool, 1, VmState.PLANNED)
    provision = VmCreator(db, gateway, settings)
    await provision.step()
    assert await state_of(db, vm_id) is VmState.PLANNED
    await execute(db, "UPDATE vm SET due_at = now() + interval '1 hour'")
    cluster.finish(cluster.only())
    await look(db, worker)
    await provision.step()
    assert await state_of(db, vm_id) is VmState.BOOTING
    found = await read(db)
    assert found.uses == 1
    assert found.used_at is not None


async def test_the_end_waits_for_clones_but_not_for_ever(db, gateway, cluster, worker):
    name = await ready(db, gateway, worker)
    cluster.cloned[name] = ("somebodys",)
    await delete_preload(db, "fedora", force=True)
    found = await look(db, worker)
    assert (found.state, list(cluster.objects)) == (S.DELETING, [name])
    assert found.reason == f"waits for DataVolume {name} to go"
    await execute(db, "UPDATE preload SET deleting_at = now() - interval '601 s'")
    assert await look(db, worker, 2) is None
    assert cluster.objects == {}


async def test_the_end_waits_for_vms_that_are_being_made_from_it(db, gateway, cluster, worker):
    await ready(db, gateway, worker)
    pool = await make_pool(db, start_from={"preload": "fedora"})
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await delete_preload(db, "fedora", force=True)
    assert (await look(db, worker)).state is S.DELETING
    assert len(cluster.objects) == 1
    await execute(db, "UPDATE vm SET state = 'failed' WHERE id = :id", id=vm_id)
    assert await look(db, worker, 2) is None


async def test_a_volume_that_cannot_be_removed_now_is_removed_later(db, gateway, cluster, worker):
    await ready(db, gateway, worker)
    await delete_preload(db, "fedora", force=False)
    cluster.before["remove"] = _raise(ClusterUnavailable("no route"))
    found = await look(db, worker)
    assert (found.state, len(cluster.objects)) == (S.DELETING, 1)
    del cluster.before["remove"]
    assert await look(db, worker, 2) is None
    assert cluster.objects == {}


class TestCollection:
    async def unused(self, db, gateway, worker, name, *, automatic=True, hours=0, **given):
        body = PreloadSpec.model_validate({**DISK, "image": {"http": {"url": f"https://i.example/{name}"}}, **given})
        await put_preload(db, gateway, name, body, automatic=automatic)
        await execute(
            db, "UPDATE preload SET updated_at = now() - make_interval(hours => :h) WHERE name = :n", h=hours, n=name
        )

    async def collected(self, db, gateway, settings, **given):
        await PreloadReconciler(db, gateway, settings.model_copy(update=given)).sweep()
        rows = await fetch(db, "SELECT name FROM preload WHERE deleting_at IS NOT NULL ORDER BY name")
        return [row["name"] for row in rows]

    async def test_by_age(self, db, gateway, worker, settings):
        await self.unused(db, gateway, worker, "old", hours=3)
        await self.unused(db, gateway, worker, "young", hours=1)
        await self.unused(db, gateway, worker, "kept", hours=3, automatic=False)
        await self.unused(db, gateway, worker, "asked", hours=3, automatic=False, ttl_seconds=3600)
        await self.unused(db, gateway, worker, "longer", hours=3, ttl_seconds=36000)
        assert await self.collected(db, gateway, settings, preload_keep_seconds=7200) == ["asked", "old"]

    async def test_by_count_those_used_longest_ago_first(self, db, gateway, worker, settings):
        for hours in range(1, 5):
            await self.unused(db, gateway, worker, f"p{hours}", hours=hours)
        assert await self.collected(db, gateway, settings, preload_max_unused=2) == ["p3", "p4"]

    async def test_never_what_a_pool_starts_from(self, db, gateway, worker, settings):
        await self.unused(db, gateway, worker, "fedora", hours=3)
        await make_pool(db, start_from={"preload": "fedora"})
        assert await self.collected(db, gateway, settings, preload_keep_seconds=1, preload_max_unused=0) == []

    async def test_never_what_a_vm_is_being_made_from(self, db, gateway, worker, settings):
        await self.unused(db, gateway, worker, "fedora", hours=3)
        pool = await make_pool(db, start_from={"preload": "fedora"})
        await make_vms(db, pool, 1, VmState.BOOTING)
        await execute(db, "UPDATE pool SET deleted_at = now()")
        assert await self.collected(db, gateway, settings, preload_keep_seconds=1) == []
        await execute(db, "UPDATE vm SET state = 'failed'")
        assert await self.collected(db, gateway, settings, preload_keep_seconds=1) == ["fedora"]

    async def test_never_the_image_of_a_vm_that_lives(self, db, gateway, worker, settings):
        await put_preload(db, gateway, "fedora", PreloadSpec.model_validate(IMAGE), automatic=True)
        pool = await make_pool(db, start_from={"preload": "fedora"})
        await make_vms(db, pool, 1, VmState.READY)
        await execute(db, "UPDATE pool SET deleted_at = now()")
        await execute(db, "UPDATE preload SET updated_at = now() - interval '1 day'")
        assert await self.collected(db, gateway, settings, preload_keep_seconds=1) == []


async def test_objects_of_no_row_are_removed(db, gateway, cluster, worker, settings):
    name = await ready(db, gateway, worker)
    signed = {"installation": await own_id(db)}
    orphan = PreloadObject(ObjectKind.VOLUME, "left-over", "uid-x", UUID(int=9), 1, **signed)
    nameless = PreloadObject(ObjectKind.NODES, "strange", "uid-y", None, 1, **signed)
    cluster.objects |= {each.name: each for each in (orphan, nameless)}
    await execute(db, "DELETE FROM lease")
    await PreloadReconciler(db, gateway, settings).sweep()
    assert list(cluster.objects) == [name]


async def test_one_replica_sweeps_at_a_time(db, gateway, cluster, worker, settings):
    await worker.sweep()
    cluster.objects["left-over"] = PreloadObject(ObjectKind.VOLUME, "left-over", "uid-x", UUID(int=9), 1)
    await PreloadReconciler(db, gateway, settings).sweep()
    assert list(cluster.objects) == ["left-over"]
