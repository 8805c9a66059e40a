"""Moves pending claims that describe their VM from a path that failed to the next one that they allow.

A path has failed if one of its VMs failed, if its source has not been ready for long, or if its pool is stalled, paused or
being deleted. A cold start is the last resort: it is tried again, with backoff, until its pool stalls. A claim that has no
path left fails.
"""

from dataclasses import dataclass

import structlog

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.config import Settings
from app.domain.path_selection import Choice, NoChoice, PathOption, Record, choose
from app.domain.paths import StartPath
from app.errors import ChosenPathGone, NoPath
from app.lifecycle.on_demand_pools import enter_pool, on_demand_spec, start_of
from app.lifecycle.path_options import VmTerms, read_options
from app.lifecycle.pool_templates import expand_pool
from app.lifecycle.start_sources import NotYet, resolve_start
from app.store.claims import described
from app.store.claims import rows as claims
from app.store.claims.described import StuckClaim
from app.store.database import Database, Tx
from app.store.pools import rows as pool_rows
from app.store.rows import ClaimRow, PoolRow
from app.store.vms.observed import database_now
from app.telemetry import VM_CLAIMS

PATIENCE_SECONDS = 20.0
"""How long the source of a path may not be ready before another path is looked for."""
_AT_ONCE = 50
log = structlog.get_logger(__name__)


class ClaimFailover:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._settings = settings

    async def step(self, *, patience_seconds: float = PATIENCE_SECONDS) -> bool:
        """Handles every claim that may be stuck, each in its own transaction. True if there may be more."""
        async with self._db.begin() as tx:
            stuck = await described.stuck(tx, patience_seconds=patience_seconds, limit=_AT_ONCE)
        moved = False
        for claim in stuck:
            async with self._db.begin() as tx:
                moved |= await self._move(tx, claim)
        return moved and len(stuck) == _AT_ONCE

    async def _move(self, tx: Tx, stuck: StuckClaim) -> bool:
        """True if the claim no longer waits where it did."""
        if not await described.lock(tx, stuck):
            return False
        claim = await claims.get(tx, stuck.id)
        pool = await pool_rows.get_by_id(tx, stuck.pool_id)
        if claim is None or claim.choice is None or claim.allowed is None or pool is None:
            return False
        failed = await _find_failure(tx, claim, pool)
        if failed is None:
            return False
        now = await database_now(tx)
        before = Record.read(claim.choice).gave_up(failed.reason, now)
        choice = await self._choose_again(tx, claim, pool, before)
        if isinstance(choice, NoChoice):
            if not failed.final:
                return False  # it has nowhere else to go, and may still be served where it waits
            await self._fail(tx, claim, f"no path is left. {choice.reason}")
            return True
        spec = on_demand_spec(
            pool.spec.template,
            start_from=start_of(choice),
            warm_when=pool.spec.warm_when,
            placement=pool.spec.placement,
            allow_unschedulable=pool.spec.allow_unschedulable,
            guest=pool.spec.guest,
        )
        try:
            target = await enter_pool(
                tx, choice, self._expand(pool), spec, max_pending=self._settings.max_pending_per_pool
            )
        except ChosenPathGone:
            return False  # the next step chooses again
        except NoPath as error:
            await self._fail(tx, claim, error.detail)
            return True
        record = before.followed_by(choice, now)
        reason = f"{choice.reason}; before that, {_path(pool)}: {failed.reason}"
        await described.move(tx, claim.id, pool_id=target.id, path=choice.path, choice=record.as_json(), reason=reason)
        await pool_rows.plan_soon(tx, pool.id, target.id)
        VM_CLAIMS.labels(path=choice.path).inc()
        log.info("claim.moved", claim=str(claim.id), source=_path(pool), target=choice.path, reason=failed.reason)
        return True

    async def _choose_again(self, tx: Tx, claim: ClaimRow, pool: PoolRow, record: Record) -> Choice | NoChoice:
        """Chooses among the paths that were not tried. The claim's deadline is ignored: any path is better than none."""
        terms = VmTerms(
            self._expand(pool),
            pool.spec.warm_when,
            record.start_from,
            claim.lease_seconds,
            names_memory=StartPath.MEMORY in (claim.allowed or ()),
        )
        tried = {each.path: each.reason for each in record.tried}
        options = [
            PathOption(option.path, option.source, available=False, why=f"failed: {tried[option.path]}")
            if option.path in tried
            else option
            for option in await read_options(tx, terms, self._settings)
        ]
        return choose(options, [StartPath(path) for path in claim.allowed or ()])

    def _expand(self, pool: PoolRow) -> VmTemplate:
        return expand_pool(self._gateway, pool.spec)

    async def _fail(self, tx: Tx, claim: ClaimRow, reason: str) -> None:
        await claims.fail_pending(tx, [claim.id], reason=reason)
        await pool_rows.plan_soon(tx, claim.pool_id)
        log.info("claim.no_path_left", claim=str(claim.id), reason=reason)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a path failed. `final`: it cannot succeed later. Otherwise the claim keeps waiting if there is no other path."""

    reason: str
    final: bool


async def _find_failure(tx: Tx, claim: ClaimRow, pool: PoolRow) -> _Failure | None:
    """Why the path that the claim waits for has failed. None: it has not."""
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
        return _Failure(f"{pool.path} {pool.source!r} was deleted", final=True)
    if isinstance(start, NotYet):
        return _Failure(start.reason, final=start.for_good)
    if pool.last_failure_at is not None and pool.last_failure_at > Record.read(claim.choice or {}).at:
        return _Failure(f"a VM failed: {pool.last_failure}", final=False)
    return None


def _path(pool: PoolRow) -> StartPath:
    return StartPath.POOL if pool.kind == "pool" else pool.path
