"""What must hold at the end of a soak beside `tests.support.system_invariants`: of the cluster's other objects, of what was deleted and
why, of on-demand pools, preloads and snapshots, and of what the replicas logged.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg

from tests.support.system_invariants import Findings

_KINDS: Final = {
    "VirtualMachine": "/apis/kubevirt.io/v1/namespaces/default/virtualmachines",
    "VirtualMachineInstance": "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances",
    "VirtualMachinePool": "/apis/pool.kubevirt.io/v1beta1/namespaces/default/virtualmachinepools",
    "VirtualMachineSnapshot": "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinesnapshots",
    "VirtualMachineSnapshotContent": "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinesnapshotcontents",
    "VolumeSnapshot": "/apis/snapshot.storage.k8s.io/v1/namespaces/default/volumesnapshots",
    "DataVolume": "/apis/cdi.kubevirt.io/v1beta1/namespaces/default/datavolumes",
    "DataImportCron": "/apis/cdi.kubevirt.io/v1beta1/namespaces/default/dataimportcrons",
    "DaemonSet": "/apis/apps/v1/namespaces/default/daemonsets",
    "PersistentVolumeClaim": "/api/v1/namespaces/default/persistentvolumeclaims",
    "Pod": "/api/v1/namespaces/default/pods",
}
_KNOWN: Final = """
    SELECT 'VirtualMachine' AS kind, id::text AS id FROM vm WHERE ended_at IS NULL
    UNION ALL SELECT 'VirtualMachine', uid FROM vm WHERE ended_at IS NULL AND uid IS NOT NULL
    UNION ALL SELECT 'VirtualMachinePool', pool_id::text FROM vm_pool WHERE deleted_at IS NULL
    UNION ALL SELECT 'VirtualMachineSnapshot', id::text FROM snapshot_take WHERE state IN ('ready', 'taking')
    UNION ALL SELECT 'preload', id::text FROM preload WHERE deleted_at IS NULL
"""
_PRELOAD: Final = "emberpool.io/preload-id"
_LABELS: Final = {
    "VirtualMachine": "emberpool.io/vm-id",
    "VirtualMachinePool": "emberpool.io/pool-id",
    "VirtualMachineSnapshot": "emberpool.io/take",
    "DataVolume": _PRELOAD,
    "DataImportCron": _PRELOAD,
    "DaemonSet": _PRELOAD,
}
_ROWS: Final = {
    "idle on-demand pools hold no VM": """
        SELECT p.name, v.name AS vm, v.state FROM vm v JOIN pool p ON p.id = v.pool_id
        WHERE p.kind = 'on_demand' AND v.ended_at IS NULL AND v.state <> 'claimed'""",
    "every snapshot is in a clear state, with a reason where it failed": """
        SELECT s.name, t.number, t.state, t.reason FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
        WHERE t.state NOT IN ('ready', 'retired', 'failed') OR (t.state = 'failed' AND t.reason IS NULL)
        UNION ALL SELECT name, NULL, 'deleting', NULL FROM snapshot WHERE deleting_at IS NOT NULL AND deleted_at IS NULL""",
    "every preload is in a clear state, with a reason where it failed": """
        SELECT name, state, reason FROM preload
        WHERE state NOT IN ('ready', 'failed', 'absent', 'deleted') OR (state IN ('failed', 'absent') AND reason IS NULL)""",
    "no VM was lost while a claim held it: nobody but us deletes VMs": """
        SELECT e.vm_id, e.claim_id, e.data FROM event e WHERE e.type = 'vm.lost' AND e.data->>'from' = 'claimed'""",
    "no VM of a claim is removed before its claim has ended, or was given another": """
        SELECT v.id AS vm_id, v.name, v.state, v.reason, c.id AS claim_id, c.state AS claim_state
        FROM vm v JOIN claim c ON c.id = v.claim_id
        WHERE v.claimed_at IS NOT NULL AND v.state IN ('failed', 'releasing', 'deleted', 'lost')
          AND c.vm_id = v.id AND c.ended_at IS NULL""",
}
LEFT_OVER: Final = "nothing of ours is in the cluster that no row knows"
_EXPECTED: Final = frozenset({"orphans.held"})
"""A dev cluster that is killed forgets its last deletions: more VMs may come back at once than are removed without an operator.
Those that stay are found by the other invariants.
"""
LOGGED: Final = "no loop failed, and nothing was logged as an error"


async def at_the_end(
    connection: "asyncpg.Connection[Any]", session: aiohttp.ClientSession, *, cluster: str
) -> Findings:
    """What keeps it from being whole: waited for, as `settled` is."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = {
            name: [json.dumps(dict(row), default=str) for row in await connection.fetch(query)]
            for name, query in _ROWS.items()
        }
        known = {(row["kind"], row["id"]) for row in await connection.fetch(_KNOWN)}
    objects = {kind: await _list(session, cluster + path) for kind, path in _KINDS.items()}
    return {**found, LEFT_OVER: left_over(objects, known)}


def left_over(objects: Mapping[str, Sequence[dict[str, Any]]], known: set[tuple[str, str]]) -> list[str]:
    """Objects of which neither a row nor a living owner knows. Whatever is in the namespace is the service's, by way of owners."""
    living = {each["metadata"]["uid"] for items in objects.values() for each in items}
    found = []
    for kind, items in objects.items():
        label = _LABELS.get(kind)
        for each in items:
            metadata = each["metadata"]
            owners = [owner["uid"] for owner in metadata.get("ownerReferences") or ()]
            named = (metadata.get("labels") or {}).get(label) if label else None
            row = ("preload" if label == _PRELOAD else kind, str(named))
            if (
                row in known
                or (kind, metadata["uid"]) in known
                or (named is None and not living.isdisjoint(owners))
                or _follows(kind, each, objects)
            ):
                continue
            found.append(f"{kind} {metadata['name']}, labels {metadata.get('labels')}, owners {owners}")
    return found


def logged(logs: Sequence[Path]) -> list[str]:
    """Errors of the whole run, alike ones once, with how often."""
    counts: Counter[str] = Counter()
    for log in logs:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                event = line
            if not isinstance(event, dict):
                counts[f"no JSON: {line[:200]}"] += 1
            elif event.get("event") in _EXPECTED:
                continue
            elif event.get("level") in {"error", "critical"} or event.get("event") == "loop.failed":
                counts[_tell(event)] += 1
    return [f"{times} times: {what}" for what, times in counts.most_common()]


async def _list(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    async with session.get(url) as response:
        response.raise_for_status()
        items: list[dict[str, Any]] = (await response.json())["items"]
        return items


def _follows(kind: str, each: dict[str, Any], objects: Mapping[str, Sequence[dict[str, Any]]]) -> bool:
    """A content and its VolumeSnapshots are bound to their VirtualMachineSnapshot by name, and go with it."""
    if kind not in {"VirtualMachineSnapshotContent", "VolumeSnapshot"}:
        return False
    told = json.dumps(each)
    return any(other["metadata"]["uid"] in told for other in objects["VirtualMachineSnapshot"])


def _tell(event: dict[str, Any]) -> str:
    trace = event.get("exception")
    last = (
        (trace if isinstance(trace, str) else json.dumps(trace, default=str)).strip().splitlines()[-1] if trace else ""
    )
    places = [line.strip() for line in str(trace or "").splitlines() if "/app/" in line]
    where = places[-1].split("/app/")[-1] if places else ""
    return f"{event.get('event')} {event.get('loop') or event.get('task') or ''}: {last[-300:] or event.get('error', '')} {where}"
