"""A snapshot's worker that dies, and two that want the same snapshot."""

import pytest

from app.reconcilers.snapshots.reconciler import SnapshotReconciler
from tests.support.rows import execute, scalar
from tests.support.snapshot_world import Died, World


@pytest.fixture
def world(db, gateway, settings):
    return World(db, gateway, settings)


async def test_two_workers_never_have_one_snapshot(world, db, gateway, settings):
    await world.make_pool()
    await world.ask()
    other = SnapshotReconciler(db, gateway, settings)
    inner = gateway.snapshots.source

    async def source(name):
        await other.step()  # it is leased, and not due for anybody else
        return await inner(name)

    gateway.snapshots.source = source
    await world.until("ready")
    assert len(gateway.called("take")) == 1
    await world.nothing_is_left()


class Crashing:
    """Counts what a worker does to the rows and to the cluster, and kills it before the `at`th."""

    def __init__(self, at):
        self.at = at
        self.count = 0

    def hit(self, *_):
        self.count += 1
        if self.count == self.at:
            raise Died

    def wrap(self, world):
        db = world.db
        crash = self

        class Database:
            url = db.url

            def begin(self):
                crash.hit()
                return db.begin()

            def once(self):
                crash.hit()
                return db.once()

        for call in ("source", "stop", "take", "look", "disks", "remove"):
            world.gateway.before[call] = self.hit
        return SnapshotReconciler(Database(), world.gateway, world.settings)


@pytest.mark.parametrize("outcome", [{"ready": True}, {"failed": True, "error": "no space"}])
async def test_killed_between_any_two_steps_it_ends_the_same(world, db, outcome):
    await world.make_pool()
    world.gateway.snapshots.outcome = outcome
    at = 0
    while True:
        at += 1
        name = f"s{at}"
        await world.ask(name)
        crash = Crashing(at)
        world.worker = crash.wrap(world)
        died = False
        for _ in range(20):
            try:
                await world.look()
            except Died:
                died = True
                break
            await world.surround()
            if (await world.take(name=name))["state"] in {"ready", "failed"}:
                break
        world.gateway.before.clear()
        world.worker = SnapshotReconciler(db, world.gateway, world.settings)
        take = await world.until("ready" if "ready" in outcome else "failed", name=name)
        await world.nothing_is_left()
        made = await scalar(
            db,
            "SELECT count(DISTINCT v.id) FROM vm v JOIN claim c ON c.id = v.claim_id WHERE c.id = :id",
            id=take["claim_id"],
        )
        assert made == 1, at
        await execute(db, "DELETE FROM snapshot")
        world.gateway.snapshots.objects.clear()
        if not died:
            break
    assert at > 15
