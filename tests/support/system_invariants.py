"""What must hold whatever happened: read from the rows, from the service and from the cluster itself.

`standing` holds at every instant, in the middle of any storm: it is read in one snapshot of the database. `settled` holds
once the storm is over and the service had its time; it is waited for.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp
import asyncpg

from app.domain.states import CLAIM_TRANSITIONS, VM_TRANSITIONS, ClaimState, VmState

_VMS: Final = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
_OURS: Final = "app.kubernetes.io/managed-by=emberpool"
_VM_ID: Final = "emberpool.io/vm-id"
_CLAIM: Final = "emberpool.io/claim"

# Each query gives one row a violation.
_STANDING: Final = {
    "no VM was ever given to two claims": """
        SELECT vm_id, array_agg(claim_id) AS claims FROM (
            SELECT vm_id, id AS claim_id FROM claim WHERE vm_id IS NOT NULL
            UNION SELECT (r->>'vm_id')::uuid, id FROM claim, jsonb_array_elements(replacements) r) given
        GROUP BY vm_id HAVING count(*) > 1""",
    "a claim is bound exactly while its VM is claimed by it": """
        SELECT c.id AS claim_id, c.state AS claim_state, v.id AS vm_id, v.state AS vm_state, v.claim_id AS claim_of_vm
        FROM (SELECT * FROM claim WHERE state = 'bound') c
        FULL JOIN (SELECT * FROM vm WHERE state = 'claimed') v ON v.id = c.vm_id AND v.claim_id = c.id
        WHERE c.id IS NULL OR v.id IS NULL""",
    "a place in the queue of VMs exists exactly for a ready VM": """
        SELECT v.id AS vm_id, v.state, s.seq FROM (SELECT * FROM vm WHERE state = 'ready') v
        FULL JOIN ready_slot s ON s.vm_id = v.id AND s.pool_id = v.pool_id WHERE v.id IS NULL OR s.vm_id IS NULL""",
    "a place in the queue of claims exists exactly for a pending claim": """
        SELECT c.id AS claim_id, c.state, q.seq FROM (SELECT * FROM claim WHERE state = 'pending') c
        FULL JOIN claim_queue q ON q.claim_id = c.id AND q.pool_id = c.pool_id WHERE c.id IS NULL OR q.claim_id IS NULL""",
    "a claim that ended, and no other, says when": """
        SELECT id AS claim_id, state, ended_at FROM claim
        WHERE (state IN ('released', 'expired', 'failed')) <> (ended_at IS NOT NULL)""",
    "a VM that ended, and no other, says when": """
        SELECT id AS vm_id, state, ended_at FROM vm WHERE (state IN ('deleted', 'lost')) <> (ended_at IS NOT NULL)""",
}
_CHANGES: Final = """
    SELECT split_part(type, '.', 1) AS kind, data->>'from' AS source, split_part(type, '.', 2) AS target, count(*) AS times
    FROM event WHERE type LIKE ANY(ARRAY['vm.%', 'claim.%']) AND data ? 'from' GROUP BY 1, 2, 3
"""
LEGAL_CHANGES: Final = "every change of state is one that the tables allow"

AT_REST: Final = "nothing is on its way, nothing waits, nothing is left to remove"
FULL: Final = "every pool is back at its size"
KNOWN: Final = "every VM in the cluster has a living row"
"""By its UID or the id in its label, which those of a VirtualMachinePool only get with their claim."""
PRESENT: Final = "every ready or claimed VM is in the cluster, by its UID"
LABELLED: Final = "the cluster says of each VM which claim holds it"
SERVED: Final = "the service tells the same"

Findings = dict[str, list[str]]
"""By invariant, what violates it: nothing, one hopes."""


async def standing(connection: "asyncpg.Connection[Any]") -> Findings:
    """What the rows say against themselves at this instant."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = {name: [_tell(row) for row in await connection.fetch(query)] for name, query in _STANDING.items()}
        found[LEGAL_CHANGES] = [
            f"{row['kind']}: {row['source']} to {row['target']}, {row['times']} times"
            for row in await connection.fetch(_CHANGES)
            if not _is_legal(row["kind"], row["source"], row["target"])
        ]
    return found


async def settled(
    connection: "asyncpg.Connection[Any]", session: aiohttp.ClientSession, *, cluster: str, services: Sequence[str]
) -> Findings:
    """What keeps the whole from being at rest and whole: the rows, the cluster's own list, and what each replica tells."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        vms = await connection.fetch("SELECT id, name, state, uid, claim_id, ended_at FROM vm WHERE ended_at IS NULL")
        pools = await connection.fetch("""
            SELECT p.name, (p.spec->>'size')::int AS size, (SELECT count(*) FROM ready_slot s WHERE s.pool_id = p.id) AS ready
            FROM pool p WHERE p.deleted_at IS NULL AND p.kind = 'pool' ORDER BY p.name""")
        waiting = await connection.fetchval("SELECT count(*) FROM claim_queue")
    objects = await list_vms(session, cluster)
    rows = {row["name"]: row for row in vms}
    restless = [f"VM {row['name']} is {row['state']}" for row in vms if row["state"] not in {"ready", "claimed"}]
    return {
        AT_REST: restless + ([f"{waiting} claims wait"] if waiting else []),
        FULL: [
            f"pool {row['name']} has {row['ready']} of {row['size']}" for row in pools if row["ready"] != row["size"]
        ],
        KNOWN: [
            f"{name} ({labels_of(vm).get(_VM_ID)})"
            for name, vm in objects.items()
            if name not in rows
            or (rows[name]["uid"] != _uid(vm) and str(rows[name]["id"]) != labels_of(vm).get(_VM_ID))
        ],
        PRESENT: [
            f"{name} is {row['state']}; the cluster has {_uid(objects.get(name))}, the row {row['uid']}"
            for name, row in rows.items()
            if row["state"] in {"ready", "claimed"} and (row["uid"] is None or _uid(objects.get(name)) != row["uid"])
        ],
        LABELLED: [
            f"{name} is held by {row['claim_id']}; its label says {labels_of(objects.get(name) or {}).get(_CLAIM)}"
            for name, row in rows.items()
            if labels_of(objects.get(name) or {}).get(_CLAIM) != (str(row["claim_id"]) if row["claim_id"] else None)
        ],
        SERVED: [line for url in services for line in await _compare(session, url, pools, vms)],
    }


def violated(findings: Mapping[str, Sequence[str]]) -> Findings:
    """Those that do not hold, each with its first few cases."""
    return {name: list(cases[:5]) for name, cases in findings.items() if cases}


async def list_vms(session: aiohttp.ClientSession, cluster: str) -> dict[str, dict[str, Any]]:
    """Our VMs as the cluster has them, by name."""
    async with session.get(f"{cluster}{_VMS}", params={"labelSelector": _OURS}) as response:
        response.raise_for_status()
        return {item["metadata"]["name"]: item for item in (await response.json())["items"]}


def labels_of(vm: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = (vm.get("metadata") or {}).get("labels") or {}
    return found


async def _compare(session: aiohttp.ClientSession, url: str, pools: Sequence[Any], vms: Sequence[Any]) -> list[str]:
    """Where a replica's answers differ from the rows."""
    found = []
    for pool in pools:
        async with session.get(f"{url}/v1/pools/{pool['name']}") as response:
            told = (await response.json()).get("status", {}).get("counts", {}).get("ready")
        if told != pool["ready"]:
            found.append(f"{url} counts {told} ready VMs in {pool['name']}, the rows {pool['ready']}")
    claimed = {str(row["claim_id"]) for row in vms if row["state"] == "claimed"}
    bound: set[str] = set()
    after: dict[str, str] = {}
    while True:
        async with session.get(f"{url}/v1/claims", params={"state": "bound", "limit": "100", **after}) as response:
            page = await response.json()
        bound |= {claim["id"] for claim in page["items"]}
        if not page["next"]:
            break
        after = {"after": page["next"]}
    if bound != claimed:
        found.append(f"{url} tells of {len(bound)} bound claims, the rows of {len(claimed)}")
    return found


def _is_legal(kind: str, source: str, target: str) -> bool:
    if kind == "vm":
        return VmState(target) in VM_TRANSITIONS[VmState(source)]
    # `claim.renewed` and the like are no changes of state.
    return target not in set(ClaimState) or ClaimState(target) in CLAIM_TRANSITIONS[ClaimState(source)]


def _uid(vm: Mapping[str, Any] | None) -> str | None:
    return vm["metadata"]["uid"] if vm else None


def _tell(row: Any) -> str:
    return json.dumps(dict(row), default=str)
