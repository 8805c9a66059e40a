"""A preload's status, kept and read back; and its rows under a lease."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from app.domain.paths import ImageKind, ImageRef
from app.domain.preload_lifecycle import NodePull, OnNodes, PreloadState, PullState, Serving, Status, Step, Volume
from app.domain.preloads import PreloadSpec
from app.ids import new_id
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import dump_status, read_status
from tests.support.rows import execute

NOW = datetime(2026, 1, 12, 9, 0, tzinfo=UTC)
SPEC = PreloadSpec.model_validate({"image": {"http": {"url": "https://images.example/a"}}, "size": "1Gi"})
IMAGE = ImageRef(ImageKind.HTTP, "https://images.example/a")
VOLUME = Volume("a", "1Gi", None, ("ReadWriteOnce",), None, is_snapshot=True)
ONE, TWO = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize(
    "status",
    [
        Status(),
        Status(
            serving=Serving(VOLUME, 3, adopted=True, since=NOW),
            phase="ImportInProgress",
            bytes_total=2**30,
            restarts=2,
            trouble="Error: x",
            failure="it failed",
            moved_at=NOW,
            samples=((NOW, 0.0), (NOW, 12.5)),
        ),
        Status(on=OnNodes(2, 0, 3), nodes=(NodePull("a", PullState.FAILED, "gone"), NodePull("b", PullState.PULLED))),
    ],
)
def test_a_status_is_read_as_it_was_kept(status):
    assert read_status(json.loads(json.dumps(dump_status(status)))) == status


@pytest.fixture
async def preload(db):
    preload_id = new_id()
    async with db.begin() as tx:
        assert await preload_rows.insert(
            tx, preload_id=preload_id, name="fedora", spec=SPEC, image=IMAGE, automatic=False
        )
    return preload_id


async def take(db, token):
    async with db.begin() as tx:
        return await preload_rows.acquire_due(tx, token=token, limit=8, seconds=30)


async def write(db, preload_id, token, **given):
    found = {"state": PreloadState.IMPORTING, "status": Status(), "reason": None}
    step = Step(**{name: given.pop(name, default) for name, default in found.items()})
    seen = {"generation": 1, "attempts": 0, "usable": False, "fresh": False, "seconds": 60, **given}
    async with db.begin() as tx:
        written = await preload_rows.write(tx, preload_id, step, token=token, **seen)
        return written, await preload_rows.get_by_id(tx, preload_id)


async def test_a_name_is_taken_once(db, preload):
    async with db.begin() as tx:
        given = {"name": "fedora", "spec": SPEC, "image": IMAGE, "automatic": True}
        assert not await preload_rows.insert(tx, preload_id=new_id(), **given)
        found = await preload_rows.get(tx, "fedora")
    assert (found.id, found.spec, found.image, found.automatic) == (preload, SPEC, IMAGE, False)


async def test_only_who_holds_the_lease_writes(db, preload):
    (taken,) = await take(db, ONE)
    assert taken.id == preload
    assert await take(db, TWO) == []
    written, row = await write(db, preload, TWO)
    assert (written, row.state) == (False, PreloadState.PLANNED)
    written, row = await write(db, preload, ONE)
    assert (written, row.state) == (True, PreloadState.IMPORTING)
    assert (await write(db, preload, ONE))[0] is False


async def test_a_lease_that_ran_out_goes_to_the_next(db, preload):
    await take(db, ONE)
    await execute(db, "UPDATE preload SET lease_expires_at = now() - interval '1 s'")
    assert [row.id for row in await take(db, TWO)] == [preload]
    assert (await write(db, preload, ONE))[0] is False


async def test_a_new_wish_takes_the_lease_away(db, preload):
    await take(db, ONE)
    async with db.begin() as tx:
        await preload_rows.begin_anew(tx, preload)
    assert (await write(db, preload, ONE))[0] is False


async def test_what_is_handed_back_is_taken_at_once(db, preload):
    await take(db, ONE)
    async with db.begin() as tx:
        await preload_rows.LEASES.release(tx, token=ONE)
    assert len(await take(db, TWO)) == 1


async def test_since_when_it_is_ready_changes_with_what_it_is(db, preload):
    await take(db, ONE)
    _, first = await write(db, preload, ONE, usable=True, fresh=True, seconds=0)
    await take(db, ONE)
    _, same = await write(db, preload, ONE, usable=True, seconds=0)
    assert same.ready_at == first.ready_at
    await take(db, ONE)
    _, other = await write(db, preload, ONE, usable=True, fresh=True, seconds=0)
    assert other.ready_at > first.ready_at
    await take(db, ONE)
    _, gone = await write(db, preload, ONE)
    assert gone.ready_at is None


async def test_the_name_of_one_that_is_deleted_is_free(db, preload):
    async with db.begin() as tx:
        assert await preload_rows.begin_delete(tx, preload)
        assert not await preload_rows.begin_delete(tx, preload)
        assert await preload_rows.live(tx, [preload, new_id()]) == {preload}
    await take(db, ONE)
    await write(db, preload, ONE, state=PreloadState.DELETED)
    async with db.begin() as tx:
        assert await preload_rows.get(tx, "fedora") is None
        assert await preload_rows.live(tx, [preload]) == set()
        assert await preload_rows.prune(tx, seconds=3600) == 0
        assert await preload_rows.prune(tx, seconds=-1) == 1
