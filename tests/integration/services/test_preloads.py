"""Writing preloads, what may be deleted, and preloads that claims leave behind."""

import asyncio
from dataclasses import replace

import pytest

from app.compute.vms import VmTemplate
from app.domain.paths import FromVolume, ImageKind, ImageRef, StartPath
from app.domain.pools import StartFrom
from app.domain.preload_lifecycle import PreloadState, Serving, Status, Step
from app.domain.preloads import PreloadSpec
from app.domain.states import VmState
from app.errors import (
    ClusterUnavailable,
    InvalidRequest,
    PreloadBeingDeleted,
    PreloadInUse,
    PreloadNotFound,
    PreloadRefused,
)
from app.ids import new_id
from app.lifecycle.start_sources import NotYet, require_source, require_use, resolve_start
from app.services.preloads.service import (
    delete_preload,
    ensure_preloads,
    existing,
    prepare_preload,
    put_preload,
    refresh_preload,
)
from app.services.writes import WriteOutcome
from app.store.preloads import rows as preload_rows
from app.store.preloads import sources as preloads
from tests.support.fake_preloads import VOLUME
from tests.support.rows import execute, fetch, make_pool, make_vms, scalar

URL = "https://images.example/a.qcow2"
IMAGE = ImageRef(ImageKind.HTTP, URL)
DISK = PreloadSpec.model_validate({"image": {"http": {"url": URL}}, "size": "10Gi"})
CONTAINER = PreloadSpec.model_validate({"image": {"container": "registry.example/a:1"}})
OF_IMAGE = VmTemplate({"of": "an image"}, "f", "shape", images=(IMAGE,))
OF_ANOTHER = replace(OF_IMAGE, images=(ImageRef(ImageKind.HTTP, "https://images.example/b.qcow2"),))
DISKLESS = VmTemplate({"of": "no disk"}, "f", "shape", has_own_disk=False)


async def put(db, gateway, name="fedora", spec=DISK, **given):
    return await put_preload(db, gateway, name, spec, **given)


async def serve(db, name="fedora", claim="volume-1"):
    """As a worker writes it that has seen the volume."""
    async with db.begin() as tx:
        token = new_id()
        await execute(db, "UPDATE preload SET due_at = now() WHERE name = :name", name=name)
        row = next(
            each for each in await preload_rows.acquire_due(tx, token=token, limit=99, seconds=30) if each.name == name
        )
        serving = Serving(replace(VOLUME, claim=claim), row.generation, adopted=False, since=row.due_at)
        assert await preload_rows.write(
            tx,
            row.id,
            Step(PreloadState.READY, Status(serving=serving)),
            token=token,
            generation=row.generation,
            attempts=0,
            usable=True,
            fresh=True,
            seconds=60,
        )


async def count(db):
    return await scalar(db, "SELECT count(*) FROM preload")


class TestPut:
    async def test_the_cluster_is_asked_before_anything_is_kept(self, db, gateway):
        gateway.preloads.before["check"] = _raise(PreloadRefused("no such class"))
        with pytest.raises(PreloadRefused):
            await put(db, gateway)
        gateway.preloads.before["check"] = _raise(ClusterUnavailable("away"))
        with pytest.raises(ClusterUnavailable):
            await put(db, gateway)
        assert await count(db) == 0

    async def test_the_same_again_changes_nothing_and_asks_nobody(self, db, gateway):
        first = await put(db, gateway)
        again = await put(db, gateway)
        assert (first.outcome, again.outcome) == (WriteOutcome.CREATED, WriteOutcome.UNCHANGED)
        assert again.preload.generation == 1
        assert gateway.preloads.called("check") == ["fedora"]

    @pytest.mark.parametrize(
        ("change", "generation"), [({"ttl_seconds": 600}, 1), ({"size": "20Gi"}, 2), ({"policy": "Always"}, 2)]
    )
    async def test_a_change_imports_anew_where_it_is_of_the_import(self, db, gateway, change, generation):
        await put(db, gateway)
        changed = await put(db, gateway, spec=DISK.model_copy(update=change))
        assert (changed.outcome, changed.preload.generation) == (WriteOutcome.CHANGED, generation)

    async def test_preparing_tells_the_outcome_and_writes_nothing(self, db, gateway):
        prepared = await prepare_preload(db, gateway, "fedora", DISK)
        assert (prepared.outcome, prepared.before, await count(db)) == (WriteOutcome.CREATED, None, 0)
        await put(db, gateway)
        assert (await prepare_preload(db, gateway, "fedora", DISK)).outcome is WriteOutcome.UNCHANGED
        larger = DISK.model_copy(update={"size": "20Gi"})
        prepared = await prepare_preload(db, gateway, "fedora", larger)
        assert (prepared.outcome, prepared.before.spec) == (WriteOutcome.CHANGED, DISK)

    async def test_what_serves_goes_on_but_for_another_image(self, db, gateway):
        await put(db, gateway)
        await serve(db)
        larger = (await put(db, gateway, spec=DISK.model_copy(update={"size": "20Gi"}))).preload
        assert (larger.state, larger.status.serving.volume.claim) == (PreloadState.PLANNED, "volume-1")
        other = PreloadSpec.model_validate({"image": {"http": {"url": "https://images.example/b"}}, "size": "10Gi"})
        other = (await put(db, gateway, spec=other)).preload
        assert (other.status.serving, other.ready_at) == (None, None)

    async def test_one_that_a_user_writes_is_the_users(self, db, gateway):
        await put(db, gateway, automatic=True)
        taken = await put(db, gateway)
        assert (taken.outcome, taken.preload.automatic) == (WriteOutcome.CHANGED, False)
        kept = await put(db, gateway, automatic=True)
        assert (kept.outcome, kept.preload.automatic) == (WriteOutcome.UNCHANGED, False)

    async def test_two_at_the_same_moment_make_one(self, db, gateway):
        made = await asyncio.gather(*(put(db, gateway) for _ in range(5)), return_exceptions=True)
        assert await count(db) == 1
        assert any(not isinstance(each, Exception) for each in made)


class TestItsEnd:
    async def test_what_a_pool_starts_from_is_kept(self, db, gateway):
        await put(db, gateway)
        await make_pool(db, start_from={"preload": "fedora"})
        with pytest.raises(PreloadInUse, match="is what pool web starts from"):
            await delete_preload(db, "fedora", force=False)
        assert (await delete_preload(db, "fedora", force=True)).state is PreloadState.DELETING

    async def test_what_a_vm_is_being_made_from_is_kept(self, db, gateway):
        await put(db, gateway)
        pool = await make_pool(db, start_from={"preload": "fedora"})
        await make_vms(db, pool, 2, VmState.BOOTING)
        await execute(db, "UPDATE pool SET deleting_at = now()")
        with pytest.raises(PreloadInUse, match="is what 2 VMs being made start from"):
            await delete_preload(db, "fedora", force=False)

    async def test_one_that_goes_is_changed_no_more(self, db, gateway):
        await put(db, gateway)
        await delete_preload(db, "fedora", force=False)
        assert (await delete_preload(db, "fedora", force=False)).state is PreloadState.DELETING
        for ask in (put(db, gateway), refresh_preload(db, "fedora")):
            with pytest.raises(PreloadBeingDeleted):
                await ask

    async def test_one_that_is_not_there(self, db):
        for ask in (delete_preload(db, "nope", force=True), refresh_preload(db, "nope")):
            with pytest.raises(PreloadNotFound, match="PUT /v1/preloads/nope"):
                await ask
        async with db.begin() as tx:
            with pytest.raises(PreloadNotFound):
                await existing(tx, "nope")


class TestStartingFromIt:
    async def resolve(self, db, name="fedora"):
        async with db.begin() as tx:
            return await resolve_start(tx, StartPath.PRELOAD, name)

    async def test_vms_wait_until_it_is_ready_and_start_cold_once_it_is_gone(self, db, gateway):
        await put(db, gateway)
        assert await self.resolve(db) == NotYet("preload 'fedora' is not ready (planned)")
        await serve(db)
        found = await self.resolve(db)
        assert isinstance(found, FromVolume)
        assert (found.claim, found.image) == ("volume-1", IMAGE)
        await delete_preload(db, "fedora", force=False)
        assert await self.resolve(db) is None

    async def test_a_pool_must_name_one_that_there_is(self, db):
        async with db.begin() as tx:
            with pytest.raises(InvalidRequest) as refused:
                await require_source(tx, StartFrom(preload="fedora"))
        assert [each.field for each in refused.value.problems] == ["start_from.preload"]

    @pytest.mark.parametrize("template", [OF_IMAGE, DISKLESS])
    async def test_its_image_must_be_the_templates_or_the_template_bring_none(self, db, gateway, template):
        await put(db, gateway)
        async with db.begin() as tx:
            await require_source(tx, StartFrom(preload="fedora"), template)

    async def test_another_image_is_refused_with_both_names(self, db, gateway):
        await put(db, gateway)
        for ask in (require_source, require_use):
            async with db.begin() as tx:
                with pytest.raises(InvalidRequest, match=r"b\.qcow2") as refused:
                    await ask(tx, StartFrom(preload="fedora"), OF_ANOTHER)
            assert URL in refused.value.detail


class TestNearImages:
    async def near(self, db, *images):
        async with db.begin() as tx:
            found = await preloads.ready_for_images(tx, images)
            return [each.name for each in found], await preloads.under_way_for_images(tx, images)

    async def test_only_what_is_there_counts(self, db, gateway):
        await put(db, gateway)
        assert await self.near(db, IMAGE) == ([], ["fedora"])
        await serve(db)
        assert await self.near(db, IMAGE) == (["fedora"], [])
        await refresh_preload(db, "fedora")
        assert await self.near(db, IMAGE) == (["fedora"], ["fedora"])
        await delete_preload(db, "fedora", force=False)
        assert await self.near(db, IMAGE) == ([], [])

    async def test_the_newest_is_named_and_each_image_for_itself(self, db, gateway):
        for name in ("one", "two"):
            await put(db, gateway, name)
            await serve(db, name)
        other = ImageRef(ImageKind.REGISTRY, URL)
        assert await self.near(db, other, IMAGE) == (["two"], [])


async def ensure(db, gateway):
    gateway.preloads.needs[:] = [(OF_IMAGE.spec, (DISK,))]
    (made,) = await ensure_preloads(db, gateway, OF_IMAGE)
    return made


class TestWhatClaimsLeave:
    async def test_an_image_is_brought_near_once(self, db, gateway):
        made = await ensure(db, gateway)
        assert (made.automatic, made.spec) == (True, DISK)
        assert made.name.startswith("a-qcow2-")
        assert (await ensure(db, gateway)).id == made.id
        assert await count(db) == 1

    async def test_one_that_a_user_made_will_do(self, db, gateway):
        await put(db, gateway)
        assert (await ensure(db, gateway)).name == "fedora"

    async def test_many_at_the_same_moment_make_one(self, db, gateway):
        found = await asyncio.gather(*(ensure(db, gateway) for _ in range(5)))
        assert len({each.id for each in found}) == 1

    async def test_all_images_of_a_template(self, db, gateway):
        gateway.preloads.needs.append((OF_IMAGE.spec, (DISK, CONTAINER)))
        made = await ensure_preloads(db, gateway, OF_IMAGE)
        assert [each.image for each in made] == [IMAGE, ImageRef(ImageKind.CONTAINER, "registry.example/a:1")]
        rows = await fetch(db, "SELECT automatic FROM preload")
        assert [row["automatic"] for row in rows] == [True, True]


def _raise(error):
    def act(_name):
        raise error

    return act
