"""The hands that fulfil wishes: one for each kind of resource, each by the use case that the resource's own route calls."""

from collections.abc import Mapping

from app.cluster.gateway import Gateway
from app.domain.pools import PoolSpec
from app.manifests.wishes import Reference, Resource, Wish
from app.store.database import Database
from app.usecases.manifests import Action, Hands, Outcome, validated
from app.usecases.pools import check_pool, put_pool
from app.usecases.starting import require_source


def make_hands(db: Database, gateway: Gateway) -> Hands:
    return {Resource.POOL: PoolHand(db, gateway)}


class PoolHand:
    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def check(self, wish: Wish, coming: Mapping[Reference, Wish]) -> Outcome:
        spec = validated(wish, PoolSpec)
        if not wish.needs.keys() <= coming.keys():
            async with self._db.begin() as tx:
                await require_source(tx, spec.start_from)
        checked = await check_pool(self._db, self._gateway, wish.name, spec)
        return Outcome(Action(checked.outcome), f"/v1/pools/{wish.name}")

    async def fulfil(self, wish: Wish) -> Outcome:
        put = await put_pool(self._db, self._gateway, wish.name, validated(wish, PoolSpec))
        return Outcome(Action(put.outcome), f"/v1/pools/{wish.name}")
