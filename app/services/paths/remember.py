"""Keeps a pool of one VM for the shape of a claim, and preloads of its images, so that the next such claim is warm."""

from typing import Any

import structlog

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.domain.pools import PoolSpec
from app.errors import Conflict, EmberpoolError, TemplateRefused
from app.services.pools.service import commit_pool, prepare_pool, why_single
from app.services.preloads.service import ensure_preloads
from app.store.database import Database
from app.store.pools import on_demand
from app.store.pools import rows as pool_rows

_HASH = 10
log = structlog.get_logger(__name__)


async def remember(
    db: Database, gateway: Gateway, template: VmTemplate, spec: PoolSpec, *, images: bool
) -> dict[str, Any]:
    """Makes the pool that serves the shape from now on and, with `images`, preloads of its images, unless they exist.

    Returns their names as `{pool, preloads, reason}`. What exists already is not changed. What could not be made is missing, and
    `reason` says why.
    """
    reasons: list[str] = []
    pool: str | None = None
    preloads: list[str] = []
    try:
        _require_more_than_one(template, spec)
        pool = await _ensure_pool(db, gateway, template, spec)
    except EmberpoolError as error:
        log.info("remember.no_pool", shape=template.shape, error=error.detail)
        reasons.append(f"no pool was made: {error.detail}")
    if images:
        try:
            preloads = [preload.name for preload in await ensure_preloads(db, gateway, template)]
        except EmberpoolError as error:
            log.info("remember.no_preloads", shape=template.shape, error=error.detail)
            reasons.append(f"no preload was made: {error.detail}")
    return {"pool": pool, "preloads": preloads, "reason": "; ".join(reasons) or None}


def _require_more_than_one(template: VmTemplate, spec: PoolSpec) -> None:
    """Raises TemplateRefused, with the fields of the claim, if no second VM can be made like the claim's."""
    problems = why_single(template, spec)
    if problems:
        identity = {each.field: each.message for each in template.identity}
        told = (
            f"vm{each.field.removeprefix('template')}: {identity.get(each.field, each.message)}" for each in problems
        )
        raise TemplateRefused("; ".join(told), problems=problems)


async def _ensure_pool(db: Database, gateway: Gateway, template: VmTemplate, spec: PoolSpec) -> str:
    name = f"remembered-{template.shape[:_HASH]}"
    async with db.begin() as tx:
        serving = [
            each.pool.name for each in await on_demand.serving(tx, template.shape) if each.pool.deleting_at is None
        ]
        taken = await pool_rows.get(tx, name)
    if serving:
        return name if name in serving else serving[0]
    if taken is not None and taken.deleting_at is None:
        return name
    try:
        prepared = await prepare_pool(db, gateway, name, spec)
        if prepared.before is None:
            await commit_pool(db, prepared)
    except Conflict:
        async with db.begin() as tx:
            if await pool_rows.get(tx, name) is None:
                raise
    return name
