"""Claims that describe their VM: each is served by the fastest path there is, decided once.

A user's pool of the same shape serves such a claim warm, like any other. Otherwise a path is chosen from what there is now
(`path_options`), and the claim takes a place in a queue: that of a user's pool whose next VM comes soonest, or that of the
on-demand pool for the path (`on_demand_pools`), which makes one VM for it. The choice is a value: it is made in one
transaction, the cluster checks a new template with no transaction open, and the transaction that writes the place checks only
that what was chosen is still there.
"""

from dataclasses import replace
from typing import Any
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import MAX_LEASE_SECONDS, Settings
from app.domain.claims import DescribedClaimRequest, KnownClaim, NewClaim, WarmClaim
from app.domain.path_selection import Choice, Record, choose
from app.domain.paths import StartPath
from app.domain.pools import PoolSpec, StartFrom
from app.domain.states import VmState
from app.domain.templates import NO_MARKS
from app.errors import (
    DatabaseUnavailable,
    DeadlineTooShort,
    FieldProblem,
    InvalidRequest,
    NoPath,
    TemplateRefused,
    Unschedulable,
)
from app.ids import new_id
from app.lifecycle.on_demand_pools import enter_pool, start_of
from app.lifecycle.path_options import VmTerms, read_options, why_unsuitable
from app.lifecycle.pool_templates import refuse_unreachable
from app.lifecycle.start_sources import FROM_SNAPSHOT, refuse_lossy_start, refuse_other_memory, require_source
from app.services.claims.lifecycle import release_claim
from app.services.claims.queue import Place, StoredClaim, UntilDisconnected
from app.services.claims.service import ClaimAnswer, ClaimService
from app.services.paths.claim_templates import ClaimTemplates, as_vm
from app.services.paths.decisions import Decisions, Wanted
from app.services.paths.remember import remember
from app.services.paths.serving_pools import ServingPools
from app.store.claims import described as described_claims
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import on_demand
from app.store.pools import rows as pool_rows
from app.store.pools.on_demand import ServingPool
from app.store.vms import rows as vms
from app.telemetry import VM_CLAIMS

_DEFAULT_LEASE_SECONDS = 3600
_ATTEMPTS = 3
"""How often a claim is decided where what was chosen has gone before its place was written."""
log = structlog.get_logger(__name__)


class PathSelector:
    """Claims that describe their VM, in one process."""

    def __init__(self, db: Database, gateway: Gateway, claim_service: ClaimService, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._claim_service = claim_service
        self._queue = claim_service.queue
        self._settings = settings
        self._pending_seconds = settings.pending_seconds
        self._templates = ClaimTemplates(gateway)
        self._serving = ServingPools(db)
        self._decisions = Decisions(db, gateway, settings)

    def forget_pools(self, _payload: str = "") -> None:
        """Pools may have changed: what is cached of them is dropped."""
        self._serving.forget()

    async def claim(self, request: DescribedClaimRequest, until_disconnected: UntilDisconnected) -> ClaimAnswer:
        """Serves one request; `until_disconnected` is only awaited while the claim waits.

        Raises TemplateRefused, Unschedulable, InvalidRequest, LeaseTooLong, IdempotencyKeyReused, NoPath (with `retry_after`),
        DeadlineTooShort, ClusterUnavailable and ClusterError (from the dry run of a new shape), DatabaseUnavailable,
        InstallationWaits.
        """
        try:
            wanted = self._understand(request)
        except InvalidRequest:
            known = await self._known(request)
            if known is None:
                raise
            return await self._queue.replay(known, request.in_pool(), until_disconnected)
        await refuse_unreachable(self._gateway, request.guest)
        known, pools = await self._look(wanted)
        if known is not None:
            return await self._queue.replay(known, request.in_pool(), until_disconnected)
        self._claim_service.gate.require_claims()
        if StartPath.POOL in wanted.allowed:
            served = await self._claim_warm(wanted, pools, until_disconnected)
            if served is not None:
                return served
        default = MAX_LEASE_SECONDS if request.longest_lease else _DEFAULT_LEASE_SECONDS
        claim = NewClaim(new_id(), request.lease_seconds or default, request.in_pool())
        choice, place = await self._enter_queue(wanted, claim, until_disconnected)
        if place.claim_id == claim.id:
            VM_CLAIMS.labels(path=choice.path).inc()
            if request.remember:
                async with self._queue.kept(place):
                    await self._remember(wanted, claim.id, choice)
                place = replace(
                    place, answer=None
                )  # read again: that took a while, and the row says what was remembered
        return await self._queue.follow(place, claim, until_disconnected)

    async def check(self, request: DescribedClaimRequest, *, source_is_coming: bool = False) -> None:
        """Finds out whether the request would be refused now, and writes nothing. Raises what `claim` raises.

        `source_is_coming`: what the VM starts from need not exist yet.
        """
        wanted = self._understand(request)
        await refuse_unreachable(self._gateway, request.guest)
        async with self._db.begin() as tx:
            if source_is_coming:
                await self._decisions.require_fit(tx, wanted)
                unchecked = True
            else:
                await self._require_source(tx, wanted)
                unchecked = (await self._decisions.decide(tx, wanted)).unchecked
        if unchecked:
            await self._templates.dry_run(wanted.terms.template)

    def _understand(self, request: DescribedClaimRequest) -> Wanted:
        namespace = self._settings.namespace
        if request.namespace not in {None, namespace}:
            raise InvalidRequest.of_field(
                "namespace", f"must be {namespace!r}, the only namespace of this service; or leave it out"
            )
        allowed = request.paths
        if request.start_from is not None:
            start = FROM_SNAPSHOT if request.start_from.snapshot is not None else {StartPath.PRELOAD}
            allowed = tuple(path for path in allowed if path in {StartPath.POOL, *start})
            if not allowed:
                message = f"start_from asks for {request.start_from.path}, which is not among them"
                raise InvalidRequest(
                    f"paths: {message}. Nothing was changed", problems=[FieldProblem("paths", message)]
                )
        terms = VmTerms(
            self._templates.expand(request),
            request.warm_when,
            request.start_from,
            request.lease_seconds,
            names_memory=StartPath.MEMORY in request.paths and set(request.paths) != set(StartPath),
        )
        refuse_lossy_start(request.start_from, terms.template)
        return Wanted(request, terms, allowed)

    async def _known(self, request: DescribedClaimRequest) -> UUID | None:
        """The claim that has the idempotency key. It stands even if its request would be refused now."""
        if request.key is None:
            return None
        async with self._db.begin() as tx:
            return await claims.by_key(tx, request.key)

    async def _look(self, wanted: Wanted) -> tuple[UUID | None, list[ServingPool]]:
        """The claim that has the idempotency key, or the pools of the shape; in one transaction at most.

        Raises InvalidRequest where what the VM should start from does not exist. A claim that has the key stands all the same.
        """
        request = wanted.request
        if request.key is None and request.start_from is None:
            return None, await self._serving.get(wanted.shape)
        pools = self._serving.recall(wanted.shape)
        async with self._db.begin() as tx:
            known = await claims.by_key(tx, request.key) if request.key is not None else None
            if known is None:
                await self._require_source(tx, wanted)
                if pools is None:
                    pools = await on_demand.serving(tx, wanted.shape)
        return known, pools or []

    async def _require_source(self, tx: Tx, wanted: Wanted) -> None:
        """Raises InvalidRequest, and TemplateRefused where the source has the memory of another VM."""
        await require_source(tx, wanted.request.start_from)
        try:
            await refuse_other_memory(tx, self._gateway, wanted.request.start_from, wanted.terms.template)
        except TemplateRefused as error:
            raise as_vm(error) from error

    async def _claim_warm(
        self, wanted: Wanted, pools: list[ServingPool], until_disconnected: UntilDisconnected
    ) -> ClaimAnswer | None:
        """From the first pool of the shape that has a VM ready."""
        request = wanted.request
        for serving in pools:
            if why_unsuitable(serving, wanted.terms) is not None:
                continue
            pool = serving.pool
            in_pool = request.in_pool(pool.name, pool.spec.max_lease_seconds)
            outcome = await self._claim_service.claim_warm(pool, in_pool, until_disconnected)
            if isinstance(outcome, KnownClaim):
                return await self._queue.replay(outcome.claim_id, request.in_pool(), until_disconnected)
            if outcome is not None:
                return await self._explain(wanted, outcome, until_disconnected)
        return None

    async def _explain(self, wanted: Wanted, warm: WarmClaim, until_disconnected: UntilDisconnected) -> ClaimAnswer:
        """The answer to a claim that got a warm VM. The choice is written to its row."""
        pool, claim_id = warm.claim.request.pool, warm.claim.id
        reason = f"pool {pool!r} had a VM of this shape ready"
        record = Record(StartPath.POOL, pool, reason, warm.created_at, start_from=wanted.request.start_from)
        written = wanted.stored(record)
        try:
            async with self._db.begin() as tx:
                same_shape = await described_claims.explain(tx, claim_id, written)
        except DatabaseUnavailable:
            log.info("claim.not_explained", claim=str(claim_id))  # the claim stands, and the answer says it all
            same_shape = True
            if written.marks != NO_MARKS:
                lacking = "; the database could not note its labels and annotations: the VM does not get them"
                written = wanted.stored(replace(record, reason=f"{reason}{lacking}"))
        if not same_shape:
            return await self._exchange(wanted, warm, until_disconnected)
        VM_CLAIMS.labels(path=StartPath.POOL).inc()
        choice = written.choice
        if wanted.request.remember:
            choice = {**choice, "remembered": await self._remember(wanted, claim_id)}
        return warm._replace(shape=wanted.shape, choice=choice)

    async def _exchange(self, wanted: Wanted, warm: WarmClaim, until_disconnected: UntilDisconnected) -> StoredClaim:
        """The pool's template has changed since the pool was read, and the VM has the old shape: the claim waits for another."""
        self.forget_pools()
        claim_id = warm.claim.id
        why = "the VM was made from an older template of the pool, with another shape"
        try:
            async with self._db.begin() as tx:
                chosen = wanted.carry(await self._decisions.decide(tx, wanted))
                choice = chosen.choice
                pool = await enter_pool(
                    tx, choice, chosen.template, chosen.spec, max_pending=self._settings.max_pending_per_pool
                )
                if await claims.requeue(
                    tx, claim_id, vm_id=warm.vm_id, reason=why, pending_seconds=self._pending_seconds
                ):
                    await vms.release(tx, [warm.vm_id], sources=[VmState.CLAIMED], reason=why)
                    await described_claims.explain(tx, claim_id, chosen.stored, whatever_vm=True)
                    await described_claims.move(
                        tx,
                        claim_id,
                        pool_id=pool.id,
                        path=choice.path,
                        choice=chosen.stored.choice,
                        reason=choice.reason,
                    )
                    await pool_rows.plan_soon(tx, pool.id)
                    await notify(tx, Topic.REMOVE)
        except (NoPath, DeadlineTooShort, Unschedulable):
            await release_claim(self._db, claim_id)
            raise
        return await self._queue.look(claim_id, wanted.request.wait_seconds, until_disconnected)

    async def _enter_queue(
        self, wanted: Wanted, claim: NewClaim, until_disconnected: UntilDisconnected
    ) -> tuple[Choice, Place]:
        """Decides and takes a place; again where what was chosen has gone before the place was written."""
        attempt, decision = 1, await self._decisions.get(wanted)
        while True:
            if decision.unchecked:
                await self._templates.dry_run(wanted.terms.template)
            try:
                return decision.choice, await self._queue.enter(wanted.carry(decision), claim, until_disconnected)
            except NoPath as error:
                if attempt == _ATTEMPTS:
                    raise
                attempt += 1
                log.info("claim.decided_again", claim=str(claim.id), decision=attempt, reason=error.detail)
                decision = await self._decisions.get_fresh(wanted)

    async def _remember(self, wanted: Wanted, claim_id: UUID, choice: Choice | None = None) -> dict[str, Any]:
        """What was kept for the next claim of this shape. A failure is part of the answer, and the claim stands.

        `choice`: the path that was just chosen; None: the claim was warm.
        """
        request = wanted.request
        start_from = request.start_from
        if start_from is None:
            if choice is None or choice.path is StartPath.POOL:
                start_from = await self._fastest_start(wanted)
            else:
                start_from = start_of(choice)
        remembered = await remember(
            self._db,
            self._gateway,
            wanted.terms.template,
            PoolSpec(
                size=1,
                template=request.vm,
                start_from=start_from,
                placement=request.placement,
                warm_when=request.warm_when,
                allow_unschedulable=request.allow_unschedulable,
                guest=request.guest,
            ),
            images=request.start_from is None,
        )
        self.forget_pools()
        try:
            async with self._db.begin() as tx:
                await described_claims.remember(tx, claim_id, remembered)
        except DatabaseUnavailable:
            log.info("claim.remembered_not_noted", claim=str(claim_id))
        return remembered

    async def _fastest_start(self, wanted: Wanted) -> StartFrom | None:
        """What VMs of the shape start from fastest now, by the paths that the claim allows."""
        starts = [path for path in wanted.allowed if path is not StartPath.POOL]
        try:
            async with self._db.begin() as tx:
                choice = choose(await read_options(tx, wanted.terms, self._settings), starts)
        except DatabaseUnavailable:
            return None  # no pool can be made then either
        return start_of(choice) if isinstance(choice, Choice) else None
