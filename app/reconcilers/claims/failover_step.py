"""Claims that described their VM and wait where none may come: moved to the next path that they allow, or told that none is left.

A path has come to nothing where a VM of it failed, where what it starts from is not there for long, or where its pool is
stalled, paused or being deleted. A cold start is the last resort: it is tried again, with backoff, until its breaker opens.
"""

from dataclasses import dataclass
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.config import Settings
from app.domain.path_selection import Choice, NoChoice, PathOption, Record, choose
from app.domain.paths import StartPath
from app.domain.states import ClaimState
from app.errors import NoPath
from app.lifecycle.on_demand_pools import enter_pool, on_demand_spec, start_of
from app.lifecycle.path_options import OptionRules, VmTerms, read_options
from app.lifecycle.start_sources import NotYet, resolve_start
from app.store.claims import described as rerouting
from app.store.claims import rows as claims
from app.store.claims.described import StuckClaim
from app.store.database import Database, Tx
from app.store.notices import notify_settled
from app.store.pools import rows as pool_rows
from app.store.rows import ClaimRow, PoolRow
from app.store.vms.observed import database_now
from app.telemetry import VM_CLAIMS

PATIENCE_SECONDS = 20.0
"""So long what a path starts from may be away before another path is looked for."""
_AT_ONCE = 50
log = structlog.get_logger(__name__)


class Rerouting:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._rules = OptionRules.of(settings)

    async def step(self, *, patience_seconds: float = PATIENCE_SECONDS) -> bool:
        """Looks once at every claim that may be stuck, each in its own transaction; True where there may be more."""
        async with self._db.begin() as tx:
            stuck = await rerouting.stuck(tx, patience_seconds=patience_seconds, limit=_AT_ONCE)
        moved = False
        for claim in stuck:
            async with self._db.begin() as tx:
                moved |= await self._reroute(tx, claim)
        return moved and len(stuck) == _AT_ONCE

    async def _reroute(self, tx: Tx, stuck: StuckClaim) -> bool:
        """Whether the claim waits there no more."""
        if not await rerouting.lock(tx, stuck):
            return False
        claim = await claims.get(tx, stuck.id)
        pool = await pool_rows.get_by_id(tx, stuck.pool_id)
        if claim is None or claim.choice is None or claim.allowed is None or pool is None:
            return False
        failed = await _why_given_up(tx, claim, pool)
        if failed is None:
            return False
        now = await database_now(tx)
        before = Record.read(claim.choice).gave_up(failed.reason, now)
        choice = await self._choose_again(tx, claim, pool, before)
        if isinstance(choice, NoChoice):
            if not failed.final:
                return False  # where it waits there is more hope than anywhere else
            await self._fail(tx, claim, f"no path is left. {choice.reason}")
            return True
        spec = on_demand_spec(
            pool.spec.template,
            start_from=start_of(choice),
            warm_when=pool.spec.warm_when,
            placement=pool.spec.placement,
        )
        try:
            target = await enter_pool(tx, choice, self._expand(pool), spec, max_pending=self._rules.max_pending)
        except NoPath as error:
            await self._fail(tx, claim, error.detail)
            return True
        record = before.followed_by(choice, now)
        reason = f"{choice.reason}; before that, {_path(pool)}: {failed.reason}"
        await rerouting.move(tx, claim.id, pool_id=target.id, path=choice.path, choice=record.as_json(), reason=reason)
        await _wake_planners(tx, pool.id, target.id)
        VM_CLAIMS.labels(path=choice.path).inc()
        log.info("claim.rerouted", claim=str(claim.id), source=_path(pool), target=choice.path, reason=failed.reason)
        return True

    async def _choose_again(self, tx: Tx, claim: ClaimRow, pool: PoolRow, record: Record) -> Choice | NoChoice:
        """Among the paths that were not tried yet. No deadline is looked at: whatever is left is better than nothing."""
        terms = VmTerms(self._expand(pool), pool.spec.warm_when, record.start_from, claim.lease_seconds)
        tried = {each.path: each.reason for each in record.tried}
        options = [
            PathOption(option.path, option.source, available=False, why=f"failed: {tried[option.path]}")
            if option.path in tried
            else option
            for option in await read_options(tx, terms, self._rules)
        ]
        return choose(options, [StartPath(path) for path in claim.allowed or ()])

    def _expand(self, pool: PoolRow) -> VmTemplate:
        spec = pool.spec
        return self._gateway.expand(spec.template, spec.warm_when, spec.placement, diskless=spec.start_from is not None)

    async def _fail(self, tx: Tx, claim: ClaimRow, reason: str) -> None:
        ended = await claims.end(tx, [claim.id], ClaimState.FAILED, sources=[ClaimState.PENDING], reason=reason)
        await notify_settled(tx, [claim_id for claim_id, _, _ in ended])
        await _wake_planners(tx, claim.pool_id)
        log.info("claim.no_path_left", claim=str(claim.id), reason=reason)


@dataclass(frozen=True, slots=True)
class _Failure:
    """`final`: nothing will come by itself. Otherwise the queue goes on trying, should there be no other path."""

    reason: str
    final: bool


async def _why_given_up(tx: Tx, claim: ClaimRow, pool: PoolRow) -> _Failure | None:
    """Why another path than the one that the claim waits for should be taken; None: it should not."""
    if pool.deleting_at is not None:
        return _Failure(f"pool {pool.name!r} is being deleted", final=True)
    if pool.stalled_at is not None:
        reason = f"{pool.consecutive_failures} VMs in a row failed, the last one: {pool.last_failure}"
        return _Failure(reason, final=True)
    if pool.paused:
        return _Failure(f"pool {pool.name!r} is paused", final=False)
    if pool.kind == "pool":
        return None
    start = await resolve_start(tx, pool.path, pool.source)
    if start is None and pool.source is not None:
        return _Failure(f"{pool.path} {pool.source!r} is no more", final=True)
    if isinstance(start, NotYet):
        return _Failure(start.reason, final=False)
    if pool.last_failure_at is not None and pool.last_failure_at > Record.read(claim.choice or {}).at:
        return _Failure(f"a VM failed: {pool.last_failure}", final=False)
    return None


async def _wake_planners(tx: Tx, *pool_ids: UUID) -> None:
    for pool_id in sorted(set(pool_ids)):
        await pool_rows.plan_soon(tx, pool_id)


def _path(pool: PoolRow) -> StartPath:
    return StartPath.POOL if pool.kind == "pool" else pool.path
