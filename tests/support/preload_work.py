"""Everything that preloads ask of a cluster: a role that lacks one right of it is not enough."""

import asyncio

from app.compute.preloads import PreloadGateway, PreloadOrder
from app.devcluster import DevCluster
from app.devcluster.apiserver.registry import STORAGE_PROFILES
from app.domain.preload_lifecycle import PreloadObject, PullState
from app.domain.preloads import PreloadSpec
from app.ids import new_id
from tests.support.rows import eventually

HTTP = {"image": {"http": {"url": "https://images.example/a.qcow2"}}, "size": "1Gi"}
NIGHTLY = {"image": {"registry": {"url": "docker://r.example/a:1"}}, "size": "1Gi", "schedule": "30 2 * * *"}
IMAGE = {"image": {"container": "registry.example/a:1"}}


def keep_as_snapshots(cluster: DevCluster, storage_class: str) -> None:
    """Imports of schedules into that class are kept as VolumeSnapshots."""
    profile = cluster.store.get(STORAGE_PROFILES, "", storage_class)
    assert profile is not None
    cluster.store.put(STORAGE_PROFILES, {**profile.obj, "spec": {"dataImportCronSourceFormat": "snapshot"}})


async def bring_near(preloads: PreloadGateway) -> None:
    """Raises ClusterForbidden where a right is missing."""
    kept_as_snapshot = {**NIGHTLY, "storage_class": "fast-ssd"}
    await asyncio.gather(*(_bring(preloads, body) for body in (HTTP, NIGHTLY, kept_as_snapshot, IMAGE)))
    await preloads.find_present("fedora")
    await preloads.all()


async def _bring(preloads: PreloadGateway, body: dict[str, object]) -> None:
    order = PreloadOrder(new_id(), "fedora", 1, PreloadSpec.model_validate(body))
    await preloads.check(order)
    await preloads.make(order)
    await preloads.make(order)  # the answer was lost, and the call is made again

    async def look() -> PreloadObject | None:
        (seen,) = await preloads.look(order.preload_id)
        return seen if seen.volume or any(each.state is PullState.PULLED for each in seen.nodes) else None

    seen = await eventually(look)
    if seen.volume is not None:
        assert await preloads.clones(seen.volume) == ()
    await preloads.remove(seen)
