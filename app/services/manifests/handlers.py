"""One handler for each kind of resource that manifests describe. Each calls the service behind the resource's own route."""

import dataclasses
from collections.abc import Collection

from app.compute.gateway import Gateway
from app.domain.paths import StartPath
from app.domain.pools import PoolSpec, contradictions
from app.domain.preloads import PreloadSpec
from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import assess
from app.errors import Conflict, EmberpoolError, FieldProblem, NotFound, PoolBeingDeleted
from app.lifecycle.start_sources import refuse_other_image, require_source
from app.manifests.requests import Resource, ResourceRequest
from app.services.manifests.service import Coming, Handler, ManifestService, Outcome, Preloads, Prepared, validated
from app.services.manifests.virtual_machines import VirtualMachineHandler, key_of
from app.services.paths.selector import PathSelector
from app.services.pools.service import PreparedPool, commit_pool, prepare_pool
from app.services.preloads.service import PreparedPreload, commit_preload, prepare_preload
from app.services.snapshots.service import PreparedSnapshot, commit_snapshot, prepare_snapshot
from app.store.claims import of_manifests as manifest_claims
from app.store.database import Database
from app.store.preloads import rows as preload_rows
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
        Resource.CLAIM: VirtualMachineHandler(db, gateway, path_selector),
    }
    return ManifestService(handlers, preloads.find, namespace=namespace)


class PoolHandler:
    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def prepare(self, request: ResourceRequest, coming: Coming) -> Prepared[PreparedPool]:
        spec = validated(request, PoolSpec)
        plan = await prepare_pool(self._db, self._gateway, request.name, spec)
        # What VMs start from must exist, or be made by another document of the body.
        if plan.template is None:
            pass
        elif not request.references.keys() <= coming.keys():
            async with self._db.begin() as tx:
                await require_source(tx, spec.start_from, plan.template)
        elif spec.path is StartPath.PRELOAD and spec.source is not None:
            preload: PreparedPreload = coming[Resource.PRELOAD, spec.source].plan
            refuse_other_image(preload.name, preload.image, plan.template)
        outcome = Outcome(plan.outcome, f"/v1/pools/{request.name}", notes=contradictions(spec))
        return Prepared(request, outcome, plan)

    async def commit(self, prepared: Prepared[PreparedPool]) -> Outcome:
        written = await commit_pool(self._db, prepared.plan)
        return dataclasses.replace(prepared.outcome, action=written.outcome)


class PreloadHandler:
    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def prepare(self, request: ResourceRequest, coming: Coming) -> Prepared[PreparedPreload]:  # noqa: ARG002 - a preload refers to nothing
        plan = await prepare_preload(self._db, self._gateway, request.name, validated(request, PreloadSpec))
        state = str(plan.before.state) if plan.before is not None else None
        return Prepared(request, Outcome(plan.outcome, f"/v1/preloads/{request.name}", state), plan)

    async def commit(self, prepared: Prepared[PreparedPreload]) -> Outcome:
        written = await commit_preload(self._db, prepared.plan)
        return dataclasses.replace(prepared.outcome, action=written.outcome, state=str(written.preload.state))

    async def find(self, names: Collection[str]) -> Preloads:
        """The preloads that hold a disk and have one of the `names`, or a DataSource of such a name; the oldest first."""
        async with self._db.begin() as tx:
            rows = await preload_rows.known_as(tx, names)
        return {row.name: row.spec for row in rows if not row.spec.is_container}


class SnapshotHandler:
    """The source is a pool, or a VM: one in the cluster, or one that a manifest made, which is found by the manifest's name."""

    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def prepare(self, request: ResourceRequest, coming: Coming) -> Prepared[PreparedSnapshot]:
        spec = await self._resolve(validated(request, SnapshotSpec), coming)
        pool = coming.get((Resource.POOL, spec.source.pool or ""))
        try:
            plan = await prepare_snapshot(self._db, self._gateway, spec, pool=pool.plan if pool is not None else None)
        except (NotFound, PoolBeingDeleted) as error:
            raise _of_source(error) from error
        written = request.body["source"].get("vm")
        notes = () if spec.source.vm == written else (f"it is taken of VM {spec.source.vm}",)
        href = f"/v1/snapshots/{request.name}"
        return Prepared(request, Outcome(plan.outcome, href, await self._state(plan.before), notes), plan)

    async def commit(self, prepared: Prepared[PreparedSnapshot]) -> Outcome:
        written = await commit_snapshot(self._db, prepared.plan)
        return dataclasses.replace(prepared.outcome, action=written.outcome, state=await self._state(written.snapshot))

    async def _resolve(self, spec: SnapshotSpec, coming: Coming) -> SnapshotSpec:
        """With the source VM's name in the cluster. Raises Conflict if that VM does not exist yet."""
        name = spec.source.vm
        if name is None:
            return spec
        async with self._db.begin() as tx:
            claim = await manifest_claims.by_key(tx, key_of(name))
        if claim is not None and claim.ended_at is None:
            if claim.vm_name is None:
                raise _of_source(
                    Conflict(f"VM {name!r} does not exist yet; apply the snapshot once claim {claim.id} is bound")
                )
            return spec.model_copy(update={"source": spec.source.model_copy(update={"vm": claim.vm_name})})
        if (maker := coming.get((Resource.CLAIM, name))) is not None:
            raise _of_source(
                Conflict(
                    f"VM {name!r} is made by {maker.request.document.path} and does not exist yet; apply that document first, "
                    "and the snapshot once the VM's claim is bound"
                )
            )
        return spec

    async def _state(self, row: SnapshotRow | None) -> str | None:
        if row is None:
            return None
        async with self._db.begin() as tx:
            takes = (await snapshot_rows.takes_of(tx, [row.id]))[row.id]
        return str(assess([take.facts for take in takes], deleting=row.deleting_at is not None)[0])


def _of_source(error: EmberpoolError) -> EmberpoolError:
    message = error.detail.removeprefix("source.vm: ")
    return type(error)(error.detail, problems=[FieldProblem("source", message)])
