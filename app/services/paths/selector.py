"""A claim that describes its VM: the fastest path to one is found, and the claim is served by it like any other.

A pool of the same shape serves it warm, by the claim of every day. Else it gets a place in a queue: of that pool, where its
next VM comes soonest, or of a hidden pool that stands for the path (`shapes`), for which one VM is then made.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import structlog

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.config import Settings
from app.domain.observation import WarmWhen
from app.domain.path_selection import Choice, NoChoice, Record, choose
from app.domain.paths import StartPath
from app.domain.placement import Placement, Prefer
from app.domain.pools import PoolSpec, StartFrom
from app.domain.states import VmState
from app.errors import (
    DatabaseUnavailable,
    DeadlineTooShort,
    FieldProblem,
    InvalidRequest,
    LeaseTooLong,
    NoPath,
    PoolNotFound,
    TemplateRefused,
)
from app.ids import new_id
from app.lifecycle.on_demand_pools import enter_pool, on_demand_name, shape_spec, start_of
from app.lifecycle.path_options import OptionRules, VmTerms, read_options, unfit
from app.lifecycle.placement import require_fit
from app.lifecycle.start_sources import require_source
from app.services.claims.lifecycle import release_claim
from app.services.claims.queue import Chosen, NewClaim, StoredClaim, UntilDisconnected
from app.services.claims.service import ClaimAnswer, ClaimService, WarmClaim
from app.services.paths.remember import remember
from app.services.single_flight import SingleFlight
from app.store.claims import described as rerouting
from app.store.claims import rows as claims
from app.store.claims.rows import StoredChoice
from app.store.claims.warm import ClaimRequest, Known
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import on_demand as shapes
from app.store.pools import rows as pool_rows
from app.store.pools.on_demand import ServingPool
from app.store.vms import rows as vms
from app.store.vms.observed import database_now
from app.telemetry import VM_CLAIMS

_DEFAULT_LEASE_SECONDS = 3600
_FACTS_SECONDS = 2.0
_FACTS_KEPT = 1000
_NO_PATH_RETRY_SECONDS = 30.0
log = structlog.get_logger(__name__)


class NewDescribedClaim(NamedTuple):
    """A client's wish that describes its VM. `paths` are those that may serve it; `start_from` leaves one of them, and a pool's."""

    vm: dict[str, Any]
    paths: tuple[StartPath, ...] = tuple(StartPath)
    warm_when: WarmWhen = WarmWhen.AGENT
    start_from: StartFrom | None = None
    placement: Placement | None = None
    prefer: Prefer | None = None
    deadline_seconds: float | None = None
    remember: bool = False
    wait_seconds: float = 0.0
    lease_seconds: int | None = None
    labels: Mapping[str, str] = MappingProxyType({})
    key: str | None = None
    request_hash: str = ""

    def in_pool(self, pool: str) -> NewClaim:
        """The same wish, addressed to a pool."""
        labels = dict(self.labels)
        return NewClaim(pool, self.wait_seconds, self.lease_seconds, labels, self.key, self.request_hash, self.prefer)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A wish, understood."""

    wish: NewDescribedClaim
    terms: VmTerms
    allowed: tuple[StartPath, ...]

    @property
    def shape(self) -> str:
        return self.terms.template.shape

    def spec(self, start_from: StartFrom | None) -> PoolSpec:
        """Of the hidden pool whose VMs start from there."""
        wish = self.wish
        return shape_spec(wish.vm, start_from=start_from, warm_when=wish.warm_when, placement=wish.placement)


class PathSelector:
    """Claims that describe their VM, in one process."""

    def __init__(self, db: Database, gateway: Gateway, claim_service: ClaimService, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._claim_service = claim_service
        self._rules = OptionRules.of(settings)
        self._pending_seconds = settings.pending_seconds
        self._expanded: dict[bytes, VmTemplate] = {}
        self._serving: dict[str, tuple[float, list[ServingPool]]] = {}
        self._reading: SingleFlight[str, list[ServingPool]] = SingleFlight(self._read_serving)

    def forget_pools(self, _payload: str = "") -> None:
        """What was known of the pools may have changed."""
        self._serving.clear()

    async def claim(self, wish: NewDescribedClaim, until_disconnected: UntilDisconnected) -> ClaimAnswer:
        """Serves one wish; `until_disconnected` is only awaited while the claim waits.

        Raises TemplateRefused, Unschedulable, InvalidRequest, LeaseTooLong, IdempotencyKeyReused, NoPath (with `retry_after`),
        DeadlineTooShort, ClusterUnavailable and ClusterError (from the dry run of a new shape), DatabaseUnavailable.
        """
        if wish.key is not None:  # before all else: what its claim starts from may be gone, and the claim stands
            async with self._db.begin() as tx:
                known = await claims.by_key(tx, wish.key)
            if known is not None:
                return await self._claim_service.queue.replay(known, wish.in_pool(""), until_disconnected)
        wanted = await self._understand(wish)
        if StartPath.POOL in wanted.allowed:
            served = await self._claim_warm(wanted, until_disconnected)
            if served is not None:
                return served
        await self._check_new(wanted)
        request = ClaimRequest(
            claim_id=new_id(),
            key=wish.key,
            request_hash=wish.request_hash,
            lease_seconds=wish.lease_seconds or _DEFAULT_LEASE_SECONDS,
            labels=orjson.dumps(dict(wish.labels)).decode(),
        )

        taken = ""

        async def choosing(tx: Tx) -> Chosen:
            nonlocal taken
            chosen = await self._place(tx, wanted)
            taken = chosen.wish.choice["path"]
            return chosen

        async def then(claim_id: UUID) -> None:
            VM_CLAIMS.labels(path=taken).inc()
            await self._remember(wanted, claim_id)

        return await self._claim_service.queue.join_chosen(
            choosing, wish.in_pool(""), request, until_disconnected, then=then
        )

    async def check(self, wish: NewDescribedClaim, *, source_is_coming: bool = False) -> None:
        """What speaks against the wish at this moment, found out without writing anything. Raises what `claim` raises.

        `source_is_coming`: what it starts from need not be there yet.
        """
        wanted = await self._understand(wish, source_is_coming=source_is_coming)
        if source_is_coming:
            async with self._db.begin() as tx:
                await require_fit(tx, self._gateway.demand(wanted.terms.template.spec), of_pool=False)
            await self._dry_run(wanted)
        else:
            await self._check_new(wanted)

    async def _understand(self, wish: NewDescribedClaim, *, source_is_coming: bool = False) -> _Wanted:
        template = self._expand(wish)
        allowed = wish.paths
        if wish.start_from is not None:
            if not source_is_coming:
                async with self._db.begin() as tx:
                    await require_source(tx, wish.start_from)
            allowed = tuple(path for path in wish.paths if path in {StartPath.POOL, wish.start_from.path})
            if not allowed:
                message = f"start_from asks for {wish.start_from.path}, which is not among them"
                raise InvalidRequest(
                    f"paths: {message}. Nothing was changed", problems=[FieldProblem("paths", message)]
                )
        return _Wanted(wish, VmTerms(template, wish.warm_when, wish.start_from, wish.lease_seconds), allowed)

    def _expand(self, wish: NewDescribedClaim) -> VmTemplate:
        """What was wished for is mostly wished for again, and expanding it takes as long as a warm claim does."""
        written = (wish.vm, wish.warm_when, wish.placement and wish.placement.model_dump(), wish.start_from is not None)
        key = orjson.dumps(written)
        template = self._expanded.get(key)
        if template is None:
            try:
                template = self._gateway.expand(
                    wish.vm, wish.warm_when, wish.placement, diskless=wish.start_from is not None
                )
            except TemplateRefused as error:
                raise _as_vm(error) from error
            if len(self._expanded) >= _FACTS_KEPT:
                self._expanded.clear()
            self._expanded[key] = template
        return template

    async def _claim_warm(self, wanted: _Wanted, until_disconnected: UntilDisconnected) -> ClaimAnswer | None:
        """From the first pool of the shape that has a VM ready."""
        wish = wanted.wish
        for serving in await self._pools(wanted.shape):
            if unfit(serving, wanted.terms) is not None:
                continue
            name = serving.pool.name
            try:
                answer = await self._claim_service.claim_warm(wish.in_pool(name))
            except (PoolNotFound, LeaseTooLong):
                continue
            if isinstance(answer, Known):
                return await self._claim_service.queue.replay(answer.claim_id, wish.in_pool(""), until_disconnected)
            if isinstance(answer, WarmClaim):
                return await self._explain(wanted, answer, until_disconnected)
        return None

    async def _explain(self, wanted: _Wanted, answer: WarmClaim, until_disconnected: UntilDisconnected) -> ClaimAnswer:
        """The answer to a claim that got a warm VM, with what it asked for written beside it."""
        reason = f"pool {answer.pool!r} had a VM of this shape ready"
        record = Record(
            StartPath.POOL, answer.pool, reason, answer.bound.created_at, start_from=wanted.wish.start_from
        ).as_json()
        written = StoredChoice(wanted.shape, record, tuple(str(path) for path in wanted.allowed))
        claim_id = answer.bound.claim_id
        try:
            async with self._db.begin() as tx:
                same = await rerouting.explain(tx, claim_id, written)
        except DatabaseUnavailable:
            log.info("claim.not_explained", claim=str(claim_id))  # it stands, and the answer says it all
            same = True
        if not same:
            return await self._exchange(wanted, answer, until_disconnected)
        VM_CLAIMS.labels(path=StartPath.POOL).inc()
        if wanted.wish.remember:
            record["remembered"] = await self._remember(wanted, claim_id)
        return answer._replace(shape=wanted.shape, choice=record)

    async def _exchange(self, wanted: _Wanted, answer: WarmClaim, until_disconnected: UntilDisconnected) -> StoredClaim:
        """The pool's template has changed since it was looked at, and the VM is of the old one: another one is waited for."""
        bound = answer.bound
        self.forget_pools()
        why = "the VM was made from an older template of the pool, with another shape"
        try:
            async with self._db.begin() as tx:
                chosen = await self._place(tx, wanted)
                if await claims.requeue(
                    tx, bound.claim_id, vm_id=bound.vm_id, reason=why, pending_seconds=self._pending_seconds
                ):
                    await vms.release(tx, [bound.vm_id], sources=[VmState.CLAIMED], reason=why)
                    await rerouting.explain(tx, bound.claim_id, chosen.wish, whatever_vm=True)
                    await rerouting.move(
                        tx,
                        bound.claim_id,
                        pool_id=chosen.pool.id,
                        path=chosen.wish.choice["path"],
                        choice=chosen.wish.choice,
                        reason=chosen.reason,
                    )
                    await pool_rows.plan_soon(tx, chosen.pool.id)
                    await notify(tx, Topic.REMOVE)
        except (NoPath, DeadlineTooShort):
            await release_claim(self._db, bound.claim_id)
            raise
        return await self._claim_service.queue.look(bound.claim_id, wanted.wish.wait_seconds, until_disconnected)

    async def _check_new(self, wanted: _Wanted) -> None:
        """Refuses early, and has the cluster look at a template that no VM was made of yet, with no transaction open."""
        async with self._db.begin() as tx:
            choice = await self._choose(tx, wanted)
            if choice.path is StartPath.POOL:
                return
            name = on_demand_name(wanted.terms.template, wanted.spec(start_of(choice)))
            if await shapes.hidden(tx, name) is not None:
                return
            await require_fit(tx, self._gateway.demand(wanted.terms.template.spec), of_pool=False)
        await self._dry_run(wanted)

    async def _dry_run(self, wanted: _Wanted) -> None:
        try:
            await self._gateway.check(wanted.terms.template)
        except TemplateRefused as error:
            raise _as_vm(error) from error

    async def _place(self, tx: Tx, wanted: _Wanted) -> Chosen:
        choice = await self._choose(tx, wanted)
        now = await database_now(tx)
        record = Record.of(
            choice, now=now, deadline_seconds=wanted.wish.deadline_seconds, start_from=wanted.wish.start_from
        )
        vm = StoredChoice(wanted.shape, record.as_json(), tuple(str(path) for path in wanted.allowed))
        pool = await enter_pool(
            tx, choice, wanted.terms.template, wanted.spec(start_of(choice)), max_pending=self._rules.max_pending
        )
        return Chosen(pool, vm, choice.reason)

    async def _choose(self, tx: Tx, wanted: _Wanted) -> Choice:
        options = await read_options(tx, wanted.terms, self._rules)
        choice = choose(options, wanted.allowed, wanted.wish.deadline_seconds)
        if isinstance(choice, NoChoice):
            raise _refusal(choice, wanted.wish.deadline_seconds)
        return choice

    async def _remember(self, wanted: _Wanted, claim_id: UUID) -> dict[str, Any] | None:
        """What was kept for the next claim of this shape; whatever goes wrong with it is told, and the claim stands."""
        wish = wanted.wish
        if not wish.remember:
            return None
        remembered = await remember(
            self._db,
            self._gateway,
            wanted.terms.template,
            PoolSpec(
                size=1,
                template=wish.vm,
                start_from=wish.start_from or await self._fastest_start(wanted),
                placement=wish.placement,
                warm_when=wish.warm_when,
            ),
            images=wish.start_from is None,
        )
        self.forget_pools()
        try:
            async with self._db.begin() as tx:
                await rerouting.remember(tx, claim_id, remembered)
        except DatabaseUnavailable:
            log.info("claim.remembered_not_noted", claim=str(claim_id))
        return remembered

    async def _fastest_start(self, wanted: _Wanted) -> StartFrom | None:
        """What VMs of the shape start from soonest at this moment, by the paths that the claim allows."""
        starts = [path for path in wanted.allowed if path is not StartPath.POOL]
        try:
            async with self._db.begin() as tx:
                choice = choose(await read_options(tx, wanted.terms, self._rules), starts)
        except DatabaseUnavailable:
            return None  # which the pool is not made without, either
        return start_of(choice) if isinstance(choice, Choice) else None

    async def _pools(self, shape: str) -> list[ServingPool]:
        known = self._serving.get(shape)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        return await self._reading.get(shape)

    async def _read_serving(self, shape: str) -> list[ServingPool]:
        good_until = time.monotonic() + _FACTS_SECONDS
        async with self._db.begin() as tx:
            found = await shapes.serving(tx, shape)
        if len(self._serving) >= _FACTS_KEPT:
            self._serving.clear()
        self._serving[shape] = (good_until, found)
        return found


def _refusal(choice: NoChoice, deadline_seconds: float | None) -> NoPath | DeadlineTooShort:
    if choice.too_slow:
        return DeadlineTooShort(
            f"no path to a VM of this shape is known to be there within {deadline_seconds:.1f} s. {choice.reason}; "
            "leave the deadline out, or make it longer"
        )
    return NoPath(f"no path to a VM of this shape is open. {choice.reason}", retry_after=_NO_PATH_RETRY_SECONDS)


def _as_vm(error: TemplateRefused) -> TemplateRefused:
    """A refusal of a pool's template, told of the claim's field `vm`."""
    problems = [FieldProblem(re.sub(r"^template\b", "vm", each.field), each.message) for each in error.problems]
    return TemplateRefused(re.sub(r"\btemplate(?=\.\w|:|\[)", "vm", error.detail), problems=problems)
