"""VM rows for the informer: reads what rows say of the VMs that the cluster shows, and writes what it shows of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from app.domain.health import VmFacts
from app.domain.observation import Observation, WarmWhen
from app.domain.states import VmState
from app.store.database import Tx, mappings, run
from app.store.rows import names_of

_SELECT = """
    SELECT v.id, v.pool_id, v.name, v.state, v.state_since, v.uid, v.vmi_uid, v.node, v.addresses, v.health, v.unhealthy_since,
    v.whole, v.stopped, v.claimed_at, v.claim_id, v.created_at, v.asked_at, v.ready_at,
    v.ready_at IS NOT NULL AS was_ready, p.spec->>'warm_when' AS warm_when,
    CASE WHEN p.spec->>'warm_when' = 'hello' THEN (SELECT g.hello_at FROM guest g WHERE g.vm_id = v.id) END AS hello_at,
    (p.spec->>'boot_timeout_seconds')::float AS boot_timeout_seconds
    FROM vm v JOIN pool p ON p.id = v.pool_id
"""
_BY_IDS = text(f"{_SELECT} WHERE v.id = ANY(CAST(:ids AS uuid[]))")
# A name may be used again. A row that has a UID is found by the UID alone, and only a row that has none by its name.
_OF_OBJECTS = text(f"""
    {_SELECT}
    WHERE v.ended_at IS NULL
      AND (v.uid = ANY(CAST(:uids AS text[])) OR (v.uid IS NULL AND v.name = ANY(CAST(:names AS text[]))))
""")

# A VM can only be missing from a list if its object was known before the list was asked for. One that became ready earlier had
# its object earlier.
_MISSING = text(f"""
    {_SELECT}
    WHERE v.ended_at IS NULL AND v.state IN ('booting', 'ready', 'claimed', 'failed', 'releasing') AND least(v.ready_at, v.state_since) < :before
      AND NOT CASE WHEN v.uid IS NULL THEN v.name = ANY(CAST(:names AS text[])) ELSE v.uid = ANY(CAST(:uids AS text[])) END
    ORDER BY v.id LIMIT :limit
""")
# VMs that are well, and whose rows do not say so, or not the same.
_UNSETTLED = text("""
    SELECT n.id FROM unnest(CAST(:ids AS uuid[]), CAST(:names AS text[]), CAST(:uids AS text[]), CAST(:vmi_uids AS text[]),
        CAST(:nodes AS text[]), CAST(:addresses AS text[]), CAST(:agents AS bool[]), CAST(:claimed AS bool[]))
        AS n(id, name, uid, vmi_uid, node, addresses, agent, claimed)
    LEFT JOIN (vm v JOIN pool p ON p.id = v.pool_id)
        ON v.id = n.id AND v.name = n.name AND v.uid = n.uid AND v.vmi_uid = n.vmi_uid AND v.node = n.node
        AND v.addresses = string_to_array(n.addresses, ' ') AND v.health IS NULL
        AND (v.state = 'claimed' OR v.state = 'ready' AND NOT n.claimed AND (n.agent OR p.spec->>'warm_when' <> 'agent'))
    WHERE v.id IS NULL
""")
_OVERDUE = text(f"""
    {_SELECT}
    WHERE v.ended_at IS NULL AND v.state = 'booting' AND v.deadline_at < now() ORDER BY v.deadline_at LIMIT :limit
""")

# Asked first: all nodes are well nearly always, and then no VM need be read.
_DEAD_NODES = text("SELECT name FROM node WHERE facts->'conditions'->>'Ready' IN ('Unknown', 'False')")
# A VM that boots on a node that has stopped answering. A node that answers and is not ready may be starting. A VM that was warm
# before has its time to recover, on a dead node too.
_BOOTING_ON_DEAD_NODES = text(f"""
    {_SELECT} JOIN node n ON n.name = v.node
    WHERE v.ended_at IS NULL AND v.state = 'booting' AND v.ready_at IS NULL AND v.node = ANY(CAST(:nodes AS text[]))
      AND n.facts->'conditions'->>'Ready' = 'Unknown' ORDER BY v.id LIMIT :limit
""")

# A claimed VM that has not been well since its claim, or since shortly after it, and whose node does not answer any more. That a
# node died shows a while later, and so does that its VMs are not well.
_ON_DEAD_NODES = text(f"""
    {_SELECT} JOIN node n ON n.name = v.node
    WHERE v.ended_at IS NULL AND v.state = 'claimed' AND NOT v.stopped AND v.node = ANY(CAST(:nodes AS text[]))
      AND n.facts->'conditions'->>'Ready' IN ('Unknown', 'False')
      AND v.unhealthy_since <= v.claimed_at + make_interval(secs => :unwell)
      AND v.claimed_at >= now() - make_interval(secs => :claimed)
    ORDER BY v.claim_id LIMIT :limit
""")

_LOCK_SLOTS = text("SELECT 1 FROM ready_slot WHERE vm_id = ANY(CAST(:ids AS uuid[])) ORDER BY pool_id, seq FOR UPDATE")
_WRITE = text("""
    UPDATE vm SET uid = coalesce(vm.uid, n.uid), vmi_uid = n.vmi_uid, node = n.node,
        addresses = string_to_array(n.addresses, ' '), health = n.health,
        unhealthy_since = CASE WHEN n.health IS NULL THEN NULL ELSE coalesce(vm.unhealthy_since, now()) END
    FROM unnest(CAST(:ids AS uuid[]), CAST(:uids AS text[]), CAST(:vmi_uids AS text[]), CAST(:nodes AS text[]),
        CAST(:addresses AS text[]), CAST(:healths AS text[])) AS n(id, uid, vmi_uid, node, addresses, health)
    WHERE vm.id = n.id
""")
_WRITE_SLOTS = text("""
    UPDATE ready_slot s SET node = v.node, addresses = v.addresses FROM vm v
    WHERE v.id = s.vm_id AND s.vm_id = ANY(CAST(:ids AS uuid[])) AND (s.node, s.addresses) IS DISTINCT FROM (v.node, v.addresses)
""")
_STAGES = text("""
    UPDATE vm SET stages = n.stages::jsonb FROM unnest(CAST(:ids AS uuid[]), CAST(:stages AS text[])) AS n(id, stages)
    WHERE vm.id = n.id
""")
# What disks suffer from, of VMs that still boot. Returns those.
_WRITE_HEALTH = text("""
    WITH booting AS (
        SELECT id FROM vm WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'booting' ORDER BY id FOR UPDATE),
    written AS (
        UPDATE vm SET health = n.health,
            unhealthy_since = CASE WHEN n.health IS NULL THEN NULL ELSE coalesce(vm.unhealthy_since, now()) END
        FROM booting b JOIN unnest(CAST(:ids AS uuid[]), CAST(:healths AS text[]), CAST(:known AS bool[])) AS n(id, health, known)
            ON n.id = b.id
        WHERE vm.id = b.id AND n.known AND vm.health IS DISTINCT FROM n.health)
    SELECT id FROM booting
""")
_LOST_CLAIMS = text("""
    SELECT v.name FROM unnest(CAST(:vm_ids AS uuid[]), CAST(:claim_ids AS uuid[])) AS n(vm_id, claim_id)
    JOIN vm v ON v.id = n.vm_id
    WHERE v.state IN ('planned', 'creating', 'booting', 'ready') AND NOT EXISTS (SELECT 1 FROM claim c WHERE c.id = n.claim_id)
""")
_NOW = text("SELECT now()")


_FACTS = names_of(VmFacts)


@dataclass(frozen=True, slots=True)
class ObservedVm:
    """One VM's row, as far as the informer needs it."""

    id: UUID
    pool_id: UUID
    name: str
    facts: VmFacts
    state_since: datetime
    claim_id: UUID | None
    created_at: datetime
    asked_at: datetime | None
    ready_at: datetime | None
    warm_when: WarmWhen
    boot_timeout_seconds: float

    @property
    def state(self) -> VmState:
        return self.facts.state


@dataclass(frozen=True, slots=True)
class VmStatus:
    """What the cluster shows of one VM now."""

    id: UUID
    uid: str
    vmi_uid: str | None
    node: str | None
    addresses: tuple[str, ...]
    health: str | None


async def by_ids(tx: Tx, ids: Iterable[UUID]) -> dict[UUID, ObservedVm]:
    return {vm.id: vm for vm in await _read(tx, _BY_IDS, ids=list(ids))}


async def of_objects(tx: Tx, objects: Mapping[str, str]) -> list[ObservedVm]:
    """The rows that have not ended of the objects given as UID: name."""
    return await _read(tx, _OF_OBJECTS, uids=list(objects), names=list(objects.values()))


async def missing(tx: Tx, *, objects: Mapping[str, str], before: datetime, limit: int) -> list[ObservedVm]:
    """VMs that should have an object, have been in their state since before `before`, and have none of the objects given as
    UID: name.
    """
    return await _read(tx, _MISSING, uids=list(objects), names=list(objects.values()), before=before, limit=limit)


async def unsettled(tx: Tx, well: Mapping[UUID, Observation]) -> set[UUID]:
    """Which of these VMs, by id, do not have a row that is `ready` or `claimed` and says the same. All of them are well (see
    `health_problem`).
    """
    if not well:
        return set()
    found = await run(
        tx,
        _UNSETTLED,
        ids=list(well),
        names=[obs.name for obs in well.values()],
        uids=[obs.uid for obs in well.values()],
        vmi_uids=[obs.vmi_uid for obs in well.values()],
        nodes=[obs.node for obs in well.values()],
        addresses=[" ".join(obs.addresses) for obs in well.values()],
        agents=[obs.agent_connected for obs in well.values()],
        claimed=[obs.claim_id is not None for obs in well.values()],
    )
    return {row.id for row in found}


async def overdue(tx: Tx, *, limit: int) -> list[ObservedVm]:
    """Booting VMs past their deadline."""
    return await _read(tx, _OVERDUE, limit=limit)


async def dead_nodes(tx: Tx) -> list[str]:
    """The names of the nodes that do not answer, or say that they are not ready."""
    return list((await run(tx, _DEAD_NODES)).scalars())


async def booting_on_dead_nodes(tx: Tx, *, nodes: Sequence[str], limit: int) -> list[ObservedVm]:
    """VMs that boot for the first time, on those of the nodes that do not answer."""
    return await _read(tx, _BOOTING_ON_DEAD_NODES, nodes=list(nodes), limit=limit)


async def on_dead_nodes(tx: Tx, *, nodes: Sequence[str], window: float, lag: float, limit: int) -> list[ObservedVm]:
    """Claimed VMs on those of the nodes that are not ready, which were lost within `window` seconds after their claim: that showed up to `lag`
    seconds later, and was written up to `lag` seconds after that.
    """
    return await _read(
        tx, _ON_DEAD_NODES, nodes=list(nodes), unwell=window + lag, claimed=window + 2 * lag, limit=limit
    )


async def write(tx: Tx, statuses: Sequence[VmStatus]) -> None:
    """Writes what the cluster shows, in the order of ids. Places in the queue follow if a ready VM moved to another node."""
    if not statuses:
        return
    ordered = sorted(statuses, key=lambda s: s.id)
    await run(tx, _LOCK_SLOTS, ids=[s.id for s in ordered])  # the queue before the VM, as a claim does it
    await run(
        tx,
        _WRITE,
        ids=[s.id for s in ordered],
        uids=[s.uid for s in ordered],
        vmi_uids=[s.vmi_uid for s in ordered],
        nodes=[s.node for s in ordered],
        addresses=[" ".join(s.addresses) for s in ordered],
        healths=[s.health for s in ordered],
    )
    await run(tx, _WRITE_SLOTS, ids=[s.id for s in ordered])


async def write_stages(tx: Tx, stages: Mapping[UUID, Mapping[str, float | None]]) -> None:
    """Writes seconds by stage of each of these VMs."""
    if stages:
        texts = [json.dumps(dict(of_vm)) for of_vm in stages.values()]
        await run(tx, _STAGES, ids=list(stages), stages=texts)


async def write_health(tx: Tx, vm_ids: Sequence[UUID], healths: Mapping[UUID, str | None]) -> set[UUID]:
    """Writes what those of the VMs suffer from that are still booting, and returns them. A VM that is not in `healths` keeps what
    is known of it.
    """
    known = [vm_id in healths for vm_id in vm_ids]
    texts = [healths.get(vm_id) for vm_id in vm_ids]
    return {row.id for row in await run(tx, _WRITE_HEALTH, ids=list(vm_ids), healths=texts, known=known)}


async def lost_claims(tx: Tx, carried: Mapping[UUID, UUID]) -> list[str]:
    """The names of those VMs that are unclaimed and carry a claim that has no row; given as VM: claim."""
    if not carried:
        return []
    rows = await run(tx, _LOST_CLAIMS, vm_ids=list(carried), claim_ids=list(carried.values()))
    return [row.name for row in rows]


async def database_now(tx: Tx) -> datetime:
    now: datetime = (await run(tx, _NOW)).scalar_one()
    return now


async def _read(tx: Tx, query: TextClause, **params: object) -> list[ObservedVm]:
    return [_vm(dict(row)) for row in await mappings(tx, query, **params)]


def _vm(row: dict[str, Any]) -> ObservedVm:
    facts = {name: row.pop(name) for name in _FACTS}
    facts |= {"state": VmState(facts["state"]), "addresses": tuple(facts["addresses"])}
    return ObservedVm(facts=VmFacts(**facts), **{**row, "warm_when": WarmWhen(row["warm_when"])})
