"""What a claim leaves for the next one of its shape: a small pool of it, and its images brought near."""

from typing import Any

import structlog

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.domain.pools import PoolSpec
from app.errors import Conflict, EmberpoolError
from app.services.pools.service import put_pool
from app.services.preloads.service import ensure_preloads
from app.store.database import Database
from app.store.pools import on_demand as shapes
from app.store.pools import rows as pool_rows

_HASH = 10
log = structlog.get_logger(__name__)


async def remember(
    db: Database, gateway: Gateway, template: VmTemplate, spec: PoolSpec, *, images: bool
) -> dict[str, Any]:
    """Names the pool that serves the shape from now on and, with `images`, the preloads of its images, and makes what is
    missing of them: `{pool, preloads, reason}`.

    What stands already is left as its owner has it. What cannot be had is missing, and `reason` says why.
    """
    reasons: list[str] = []
    pool: str | None = None
    preloads: list[str] = []
    try:
        pool = await _ensure_pool(db, gateway, template, spec)
    except EmberpoolError as error:
        log.info("shape.not_remembered", shape=template.shape, error=error.detail)
        reasons.append(f"no pool was made: {error.detail}")
    if images:
        try:
            preloads = [preload.name for preload in await ensure_preloads(db, gateway, template)]
        except EmberpoolError as error:
            log.info("shape.images_not_remembered", shape=template.shape, error=error.detail)
            reasons.append(f"its images are not brought near: {error.detail}")
    return {"pool": pool, "preloads": preloads, "reason": "; ".join(reasons) or None}


async def _ensure_pool(db: Database, gateway: Gateway, template: VmTemplate, spec: PoolSpec) -> str:
    name = f"remembered-{template.shape[:_HASH]}"
    async with db.begin() as tx:
        serving = [each.pool.name for each in await shapes.serving(tx, template.shape) if each.pool.deleting_at is None]
        taken = await pool_rows.get(tx, name)
    if serving:
        return name if name in serving else serving[0]
    if taken is not None and taken.deleting_at is None:
        return name
    try:
        await put_pool(db, gateway, name, spec)
    except Conflict:
        async with db.begin() as tx:
            if await pool_rows.get(tx, name) is None:
                raise
    return name
