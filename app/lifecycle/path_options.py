"""The paths to a VM of one shape as they are now, each with how long it takes, or why it is not available."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from math import inf

from app.compute.vms import VmTemplate
from app.config import Settings
from app.domain.durations import in_words
from app.domain.observation import WarmWhen
from app.domain.path_selection import NO_DATA, PathOption, estimate
from app.domain.paths import StartPath
from app.domain.pools import StartFrom
from app.domain.preload_choice import needed_image
from app.domain.statistics import BootTimes
from app.lifecycle.eta import estimate_in_pool, measure_boots, why_none_will_come
from app.lifecycle.on_demand_pools import rests_until
from app.lifecycle.start_sources import NO_LABELS, NO_STATE, NotYet, path_of, resolve_start
from app.store import path_times
from app.store.database import Tx
from app.store.pools import on_demand, statistics
from app.store.pools.on_demand import OnDemandPool, ServingPool
from app.store.preloads import sources as preloads
from app.store.preloads.sources import PreloadOption
from app.store.rows import PoolRow
from app.store.snapshots import sources as snapshots
from app.store.vms.observed import database_now

NO_POOL = "no pool has this shape"
_STRENGTH = (WarmWhen.RUNNING, WarmWhen.READY, WarmWhen.HELLO, WarmWhen.AGENT)


@dataclass(frozen=True, slots=True)
class VmTerms:
    """A VM as a claim describes it. `start_from`: it must start from this and from nothing else. `names_memory`: it asks for the path
    `memory` by name.
    """

    template: VmTemplate
    warm_when: WarmWhen
    start_from: StartFrom | None
    lease_seconds: int | None
    names_memory: bool = False


async def read_options(tx: Tx, terms: VmTerms, settings: Settings) -> list[PathOption]:
    """One option for each path, in the order of `StartPath`. Where no snapshot keeps memory, as on every KubeVirt cluster, the path
    `memory` is only told to those who ask for it.
    """
    shape = terms.template.shape
    own, overall = await path_times.starts_of_shape(tx, shape), await path_times.starts_overall(tx)
    pools, now = await on_demand.of_shape(tx, shape), await database_now(tx)
    found = [await _pool_option(tx, terms, settings)]
    made = [await _snapshot_option(tx, terms), await _preload_option(tx, terms), _cold_option(terms)]
    if terms.names_memory or await snapshots.keep_memory(tx):
        made.insert(0, await _memory_option(tx, terms))
    for option in made:
        checked = _unless_closed(option, pools, settings, now)
        found.append(replace(checked, own=own.of(option.path), overall=overall.of(option.path)))
    return found


def why_unsuitable(serving: ServingPool, terms: VmTerms) -> str | None:
    """Why a pool of the shape cannot serve these terms, in words; None: it can."""
    pool = serving.pool
    named = f"pool {pool.name!r}"
    if pool.deleting_at is not None:
        return f"{named} is being deleted"
    if _STRENGTH.index(pool.spec.warm_when) < _STRENGTH.index(terms.warm_when):
        return f"a VM of {named} counts as warm when it is {pool.spec.warm_when}, not {terms.warm_when}"
    if terms.start_from is not None and pool.spec.start_from != terms.start_from:
        return f"the VMs of {named} start from something else"
    if terms.lease_seconds is not None and terms.lease_seconds > pool.spec.max_lease_seconds:
        return (
            f"{named} gives leases of up to {in_words(pool.spec.max_lease_seconds)}, and {in_words(terms.lease_seconds)} are asked "
            "for"
        )
    if terms.start_from is None and pool.spec.start_from is not None and _copied(terms.template) is not None:
        return f"the VMs of {named} have a copy of {_copied(terms.template)}"
    if serving.mixed:
        return f"{named} still has VMs of an older template, with another shape"
    return None


async def _pool_option(tx: Tx, terms: VmTerms, settings: Settings) -> PathOption:
    """The pool whose next VM comes soonest. None has a ready VM: that was tried before."""
    reasons: list[str] = []
    open_ones: list[PathOption] = []
    for serving in await on_demand.serving(tx, terms.template.shape):
        why_not = why_unsuitable(serving, terms)
        option = await _next_vm(tx, serving.pool, settings) if why_not is None else None
        if option is None or not option.available:
            reasons.append((option.why if option else why_not) or "")
        else:
            open_ones.append(option)
    if open_ones:
        return min(open_ones, key=lambda each: inf if (soon := estimate(each).p50) is None else soon)
    return PathOption(StartPath.POOL, available=False, why="; ".join(reasons) or NO_POOL)


async def _next_vm(tx: Tx, pool: PoolRow, settings: Settings) -> PathOption:
    counts = await statistics.count(tx, pool.id)
    closed = partial(PathOption, StartPath.POOL, pool.name, available=False)
    empty = f"pool {pool.name!r} has no ready VM"
    if counts.waiting >= settings.max_pending_per_pool:
        return closed(why=f"{empty}, and {counts.waiting} claims wait already")
    on_its_way = counts.in_flight - (counts.planned if pool.paused else 0) > counts.waiting
    because = why_none_will_come(pool, counts.claimed, 0)
    if because is not None and not on_its_way:
        return closed(why=f"{empty}, and {because}")
    told = await estimate_in_pool(tx, pool.id, None)
    if told.seconds is None:
        return closed(why=f"{empty}; {told.basis}")
    measured = await measure_boots(tx, pool)
    boots = measured.times
    if boots.p50 is None or boots.p95 is None:
        return PathOption(
            StartPath.POOL, pool.name, basis=told.basis, on_its_way=on_its_way, generation=pool.generation
        )
    late = told.seconds + boots.p95 - boots.p50
    times = BootTimes(boots.count, told.seconds, max(told.seconds, late))
    return PathOption(
        StartPath.POOL,
        pool.name,
        why=f"{empty}; its next one is ready in about {told.seconds:.0f} s",
        own=times if measured.of_shape else NO_DATA,
        overall=times,
        basis=told.basis,
        on_its_way=on_its_way,
        generation=pool.generation,
    )


async def _memory_option(tx: Tx, terms: VmTerms) -> PathOption:
    return await _from_snapshot(tx, terms, StartPath.MEMORY, "no snapshot keeps the memory of a VM of this shape")


async def _snapshot_option(tx: Tx, terms: VmTerms) -> PathOption:
    return await _from_snapshot(tx, terms, StartPath.SNAPSHOT, "no snapshot of this shape")


async def _from_snapshot(tx: Tx, terms: VmTerms, path: StartPath, missing: str) -> PathOption:
    closed = partial(PathOption, path, available=False)
    if terms.template.keeps_state:
        return closed(why=NO_STATE)
    if terms.template.infers:
        return closed(why=NO_LABELS)
    if terms.start_from is not None:
        return await _forced(tx, path, terms.start_from)
    if (single := _copied(terms.template)) is not None:
        return closed(why=f"{single} exists once, and a VM from a snapshot has a copy of it")
    memory, shape = path is StartPath.MEMORY, terms.template.shape
    ready = await snapshots.ready_for_shape(tx, shape, memory=memory)
    if ready:
        return PathOption(path, ready[0].name)
    taking = await snapshots.under_way_for_shape(tx, shape, memory=memory)
    return closed(source=taking[0], why=f"snapshot {taking[0]!r} is being taken") if taking else closed(why=missing)


async def _preload_option(tx: Tx, terms: VmTerms) -> PathOption:
    if terms.template.infers:
        return PathOption(StartPath.PRELOAD, available=False, why=NO_LABELS)
    if terms.start_from is not None:
        return await _forced(tx, StartPath.PRELOAD, terms.start_from)
    image = needed_image(terms.template.images)
    if isinstance(image, str):
        return PathOption(StartPath.PRELOAD, available=False, why=image)
    ready = await preloads.ready_for_images(tx, [image])
    if ready:
        return PathOption(StartPath.PRELOAD, ready[0].name, note=_on_nodes(ready[0]))
    coming = await preloads.under_way_for_images(tx, [image])
    if coming:
        return PathOption(StartPath.PRELOAD, coming[0], available=False, why=f"preload {coming[0]!r} is on its way")
    return PathOption(StartPath.PRELOAD, available=False, why=f"no preload brings {image.reference} near")


def _cold_option(terms: VmTerms) -> PathOption:
    if terms.start_from is not None:
        return PathOption(StartPath.COLD, available=False, why=f"the claim must start from {terms.start_from.source!r}")
    return PathOption(StartPath.COLD)


async def _forced(tx: Tx, path: StartPath, start_from: StartFrom) -> PathOption:
    actual = await path_of(tx, start_from)
    if path is StartPath.SNAPSHOT and actual is StartPath.MEMORY:
        why = f"snapshot {start_from.source!r} keeps memory, and VMs only start from that: allow the path memory"
        return PathOption(path, available=False, why=why)
    if actual is not path:
        return PathOption(path, available=False, why=f"the claim must start from {start_from.source!r}")
    start = await resolve_start(tx, path, start_from.source)
    option = PathOption(path, start_from.source)
    if isinstance(start, NotYet) and start.for_good:
        return replace(option, available=False, why=start.reason)
    if isinstance(start, NotYet):  # the claim must start from this, so it waits
        return replace(option, waits_for_source=True, basis=f"it waits for its source first: {start.reason}")
    if start is None:
        return replace(option, available=False, why=f"there is no {path} {start_from.source!r} any more")
    return option


def _unless_closed(option: PathOption, pools: Iterable[OnDemandPool], settings: Settings, now: datetime) -> PathOption:
    """The option; not available where the queue of its on-demand pool is full, or its last VMs failed a short while ago.

    A cold start is the last resort: one failure does not close it, only its breaker does.
    """
    source = option.source if option.path is not StartPath.COLD else None
    for each in pools:
        pool = each.pool
        if (pool.path, pool.source) != (option.path, source):
            continue
        if each.waiting >= settings.max_pending_per_pool:
            why = f"{each.waiting} claims wait already for such a VM, which is the limit"
            return PathOption(option.path, option.source, available=False, why=why)
        until = rests_until(pool, seconds=settings.backoff_cap_seconds)
        if until is None or until <= now or (option.path is StartPath.COLD and pool.stalled_at is None):
            continue
        failed = f"{pool.consecutive_failures} VMs in a row" if pool.consecutive_failures > 1 else "its last VM"
        why = f"{failed} failed: {pool.last_failure}; tried again after {until.isoformat(timespec='seconds')}"
        return PathOption(option.path, option.source, available=False, why=why)
    return option


def _copied(template: VmTemplate) -> str | None:
    """A volume that exists once and of which a snapshot would give a copy; None: there is none."""
    return next((each.key for each in template.exclusives if each.volume is not None), None)


def _on_nodes(preload: PreloadOption) -> str | None:
    """A note where the image is not on all nodes: a VM on another node has to pull it."""
    if preload.on_nodes is None or preload.of_nodes is None or preload.on_nodes >= preload.of_nodes:
        return None
    return f"its image is on {preload.on_nodes} of {preload.of_nodes} nodes"
