"""What a claim leaves for the next one of its shape."""

import pytest

from app.domain.claims import WarmClaim
from app.domain.paths import StartPath
from app.domain.preloads import PreloadSpec
from app.errors import ClusterUnavailable
from tests.support.described_claims import TEMPLATE, claim_state, make_preload, make_snapshot
from tests.support.rows import fetch, scalar

OTHER = {"image": "registry.example/other:1"}


async def remembered(db, claim_id):
    return await scalar(db, "SELECT choice->'remembered' FROM claim WHERE id = :id", id=claim_id)


async def test_a_pool_of_one_is_kept_and_serves_the_next(db, process):
    first = await process.claim(remember=True)
    name = f"remembered-{process.shape()[:10]}"
    (pool,) = await fetch(db, "SELECT name, spec FROM pool WHERE kind = 'pool'")
    assert pool["name"] == name
    assert (pool["spec"]["size"], pool["spec"]["min_available"], pool["spec"]["template"]) == (1, 0, TEMPLATE)
    assert (await remembered(db, first.claim.id))["pool"] == name
    assert first.claim.choice["remembered"]["pool"] == name
    await process.serve()
    assert await claim_state(db, first.claim.id) == "bound"
    second = await process.claim(remember=True)
    assert isinstance(second, WarmClaim)
    assert second.claim.request.pool == name
    assert second.choice["remembered"] == await remembered(db, second.claim.id)
    assert second.choice["remembered"]["pool"] == name


@pytest.mark.parametrize(
    ("paths", "start_from"),
    [
        (tuple(StartPath), {"snapshot": "snap", "preload": None}),
        ((StartPath.POOL, StartPath.PRELOAD, StartPath.COLD), {"snapshot": None, "preload": "near"}),
        ((StartPath.COLD,), None),
    ],
    ids=["whatever is fastest", "no snapshot", "cold alone"],
)
async def test_its_pool_is_fed_by_the_fastest_start_that_the_claim_allows(db, process, paths, start_from):
    await make_snapshot(db, "snap", process.shape())
    await make_preload(db, "near")
    await process.claim(remember=True, paths=paths)
    assert await scalar(db, "SELECT spec->'start_from' FROM pool WHERE kind = 'pool'") == start_from


async def test_its_images_are_brought_near_once(db, process, gateway):
    for template in (TEMPLATE, OTHER):
        spec = PreloadSpec.model_validate({"image": {"container": template["image"]}})
        gateway.preloads.needs.append(({"template": template}, (spec,)))
    first, second = await process.claim(remember=True), await process.claim(remember=True)
    (preload,) = await fetch(db, "SELECT name, image FROM preload")
    assert preload["image"] == TEMPLATE["image"]
    for answer in (first, second):
        assert (await remembered(db, answer.claim.id))["preloads"] == [preload["name"]]
    await process.claim(remember=True, vm=OTHER)
    assert await scalar(db, "SELECT count(*) FROM preload") == 2
    assert await scalar(db, "SELECT count(*) FROM pool WHERE kind = 'pool'") == 2


async def test_a_pool_of_that_shape_that_stands_already_is_left_as_it_is(db, process):
    pool = await process.make_pool("mine", size=0)
    answer = await process.claim(remember=True, paths=(StartPath.COLD,))
    assert (await remembered(db, answer.claim.id))["pool"] == "mine"
    assert await scalar(db, "SELECT count(*) FROM pool WHERE kind = 'pool'") == 1
    assert await scalar(db, "SELECT generation FROM pool WHERE id = :id", id=pool.id) == 1


async def test_what_cannot_be_remembered_is_told_and_the_claim_stands(db, process, gateway):
    await process.claim()  # the hidden pool is there: the next look at the cluster is the remembered pool's
    gateway.refuse("check", ClusterUnavailable("the cluster is away"), times=1)
    answer = await process.claim(remember=True)
    kept = await remembered(db, answer.claim.id)
    assert kept["pool"] is None
    assert "no pool was made: the cluster is away" in kept["reason"]
    await process.serve()
    assert await claim_state(db, answer.claim.id) == "bound"


async def test_without_being_asked_nothing_is_kept(db, process):
    await process.claim()
    assert await scalar(db, "SELECT count(*) FROM pool WHERE kind = 'pool'") == 0
    assert await scalar(db, "SELECT count(*) FROM preload") == 0
