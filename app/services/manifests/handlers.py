"""The handlers that fulfil wishes: one for each kind of resource, each by the use case that the resource's own route calls."""

from collections.abc import Collection, Mapping

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.domain.paths import StartPath
from app.domain.pools import PoolSpec
from app.domain.preloads import PreloadSpec
from app.domain.snapshots import SnapshotSpec, assess
from app.errors import Conflict, EmberpoolError, FieldProblem, NotFound, PoolBeingDeleted
from app.lifecycle.start_sources import refuse_other_image, require_source
from app.manifests.requests import Reference, Resource, Wish
from app.services.manifests.service import Action, Handler, ManifestService, Outcome, Preloads, validated
from app.services.manifests.virtual_machines import VirtualMachineHandler, key_of
from app.services.paths.selector import PathSelector
from app.services.pools.service import Written, check_pool, put_pool
from app.services.preloads.service import put_preload
from app.services.snapshots.service import create_snapshot, refuse_without_disks
from app.store.claims import of_manifests as manifest_claims
from app.store.database import Database
from app.store.pools import rows as pool_rows
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import PreloadRow
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots.rows import SnapshotRow


def make_manifest_service(
    db: Database, gateway: Gateway, path_selector: PathSelector, *, namespace: str
) -> ManifestService:
    preloads = PreloadHandler(db, gateway)
    handlers: dict[Resource, Handler] = {
        Resource.POOL: PoolHandler(db, gateway),
        Resource.PRELOAD: preloads,
        Resource.SNAPSHOT: SnapshotHandler(db, gateway),
        Resource.CLAIM: VirtualMachineHandler(db, path_selector),
    }
    return ManifestService(handlers, preloads.find, namespace=namespace)


class PoolHandler:
    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def check(self, wish: Wish, coming: Mapping[Reference, Wish]) -> Outcome:
        spec = validated(wish, PoolSpec)
        checked = await check_pool(self._db, self._gateway, wish.name, spec)
        if checked.outcome is not Written.UNCHANGED:
            await self._check_source(wish, spec, checked.template, coming)
        return Outcome(Action(checked.outcome), f"/v1/pools/{wish.name}")

    async def fulfil(self, wish: Wish) -> Outcome:
        put = await put_pool(self._db, self._gateway, wish.name, validated(wish, PoolSpec))
        return Outcome(Action(put.outcome), f"/v1/pools/{wish.name}")

    async def _check_source(
        self, wish: Wish, spec: PoolSpec, template: VmTemplate, coming: Mapping[Reference, Wish]
    ) -> None:
        if not wish.needs.keys() <= coming.keys():
            async with self._db.begin() as tx:
                await require_source(tx, spec.start_from, template)
            return
        maker = coming.get((Resource.PRELOAD, spec.source or ""))
        if maker is not None and spec.path is StartPath.PRELOAD:
            image = self._gateway.preloads.reference(validated(maker, PreloadSpec))
            refuse_other_image(maker.name, image, template)


class PreloadHandler:
    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def check(self, wish: Wish, coming: Mapping[Reference, Wish]) -> Outcome:  # noqa: ARG002 - it refers to nothing
        return await self._put(wish, dry_run=True)

    async def fulfil(self, wish: Wish) -> Outcome:
        return await self._put(wish, dry_run=False)

    async def find(self, names: Collection[str]) -> Preloads:
        """Those of the names that are there and hold a disk."""
        async with self._db.begin() as tx:
            rows = [await preload_rows.get(tx, name) for name in sorted(names)]
        usable = (row for row in rows if row is not None and row.deleting_at is None and not row.spec.is_container)
        return {row.name: row.spec for row in usable}

    async def _put(self, wish: Wish, *, dry_run: bool) -> Outcome:
        put = await put_preload(self._db, self._gateway, wish.name, validated(wish, PreloadSpec), dry_run=dry_run)
        return Outcome(Action(put.outcome), f"/v1/preloads/{wish.name}", _state_of_preload(put.preload))


class SnapshotHandler:
    """A source VM is one of the cluster, or one that a manifest made: then it is known here by the manifest's name."""

    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def check(self, wish: Wish, coming: Mapping[Reference, Wish]) -> Outcome:
        spec = await self._resolve(validated(wish, SnapshotSpec), coming)
        pool = coming.get((Resource.POOL, spec.source.pool or ""))
        if pool is not None and await self._is_new(pool.name):
            self._check_coming(validated(pool, PoolSpec), pool)
            return Outcome(Action.CREATED, f"/v1/snapshots/{wish.name}")
        return await self._create(wish, spec, dry_run=True)

    async def fulfil(self, wish: Wish) -> Outcome:
        return await self._create(wish, await self._resolve(validated(wish, SnapshotSpec), {}), dry_run=False)

    async def _create(self, wish: Wish, spec: SnapshotSpec, *, dry_run: bool) -> Outcome:
        try:
            made = await create_snapshot(self._db, self._gateway, spec, dry_run=dry_run)
        except (NotFound, PoolBeingDeleted) as error:
            raise _of_source(error) from error
        notes = () if spec.source.vm == wish.body["source"].get("vm") else (f"it is taken of VM {spec.source.vm}",)
        return Outcome(Action(made.outcome), f"/v1/snapshots/{wish.name}", await self._state(made.snapshot), notes)

    async def _resolve(self, spec: SnapshotSpec, coming: Mapping[Reference, Wish]) -> SnapshotSpec:
        """With the name that the source VM has in the cluster. Raises Conflict where it is on its way there."""
        name = spec.source.vm
        if name is None:
            return spec
        async with self._db.begin() as tx:
            claim = await manifest_claims.by_key(tx, key_of(name))
        if claim is not None and claim.ended_at is None:
            if claim.vm_name is None:
                raise _of_source(
                    Conflict(
                        f"VM {name!r} is still on its way (claim {claim.id}); apply the snapshot once that is bound"
                    )
                )
            return spec.model_copy(update={"source": spec.source.model_copy(update={"vm": claim.vm_name})})
        if (maker := coming.get((Resource.CLAIM, name))) is not None:
            raise _of_source(
                Conflict(
                    f"VM {name!r} is made by {maker.document.path} and is not there yet; apply that first, and the snapshot "
                    "once the VM's claim is bound"
                )
            )
        return spec

    async def _is_new(self, pool: str) -> bool:
        async with self._db.begin() as tx:
            return await pool_rows.get(tx, pool) is None

    def _check_coming(self, spec: PoolSpec, pool: Wish) -> None:
        """The pool is not there yet: its template tells whether there will be anything to take a snapshot of."""
        if spec.start_from is not None:
            return
        template = self._gateway.expand(spec.template, spec.warm_when, spec.placement)
        refuse_without_disks(f"pool {pool.name!r}", "source.pool", self._gateway.snapshots.judge(template))

    async def _state(self, row: SnapshotRow | None) -> str | None:
        if row is None:
            return None
        async with self._db.begin() as tx:
            takes = (await snapshot_rows.takes_of(tx, [row.id]))[row.id]
        return str(assess([take.facts for take in takes], deleting=row.deleting_at is not None)[0])


def _of_source(error: EmberpoolError) -> EmberpoolError:
    message = error.detail.removeprefix("source.vm: ")
    return type(error)(error.detail, problems=[FieldProblem("source", message)])


def _state_of_preload(row: PreloadRow | None) -> str | None:
    return str(row.state) if row is not None else None
