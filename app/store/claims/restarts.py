"""The restarts of claimed VMs: what runs a VM was lost, with its node and addresses, and something else runs it now.

Written when it is lost, and completed when the VM is well again. A claim keeps its last ten.
"""

from sqlalchemy import text

from app.store.database import Tx, run
from app.store.vms.observed import ObservedVm

_KEPT = 10
_LOST = text("""
    WITH lost AS (
        UPDATE claim SET restarts = CASE WHEN jsonb_array_length(restarts) >= :kept THEN restarts - 0 ELSE coalesce(restarts, '[]') END
            || jsonb_build_array(jsonb_build_object('at', now(), 'reason', CAST(:reason AS text),
                'from_node', CAST(:node AS text), 'from_addresses', CAST(:addresses AS text[]),
                'back_at', NULL, 'to_node', NULL, 'to_addresses', CAST('{}' AS text[])))
        WHERE id = :claim_id AND state = 'bound' AND vm_id = :vm_id AND (restarts->-1->'back_at' = 'null') IS NOT TRUE
        RETURNING id, pool_id, vm_id, restarts->-1 AS restart)
    INSERT INTO event (type, pool_id, vm_id, claim_id, data)
    SELECT 'vm.restarting', pool_id, vm_id, id, restart - '{back_at,to_node,to_addresses}'::text[] FROM lost
""")
_BACK = text("""
    WITH back AS (
        UPDATE claim SET restarts = jsonb_set(restarts, '{-1}', restarts->-1 || jsonb_build_object(
            'back_at', now(), 'to_node', CAST(:node AS text), 'to_addresses', CAST(:addresses AS text[])))
        WHERE id = :claim_id AND state = 'bound' AND vm_id = :vm_id AND restarts->-1->'back_at' = 'null'
        RETURNING id, pool_id, vm_id, restarts->-1 AS restart)
    INSERT INTO event (type, pool_id, vm_id, claim_id, data) SELECT 'vm.restarted', pool_id, vm_id, id, restart FROM back
""")


async def note_lost(tx: Tx, vm: ObservedVm, *, reason: str) -> None:
    """What ran the claimed VM, as its row says, is gone. Nothing is added while an earlier restart is not over."""
    facts = vm.facts
    await run(
        tx,
        _LOST,
        claim_id=vm.claim_id,
        vm_id=vm.id,
        reason=reason,
        node=facts.node,
        addresses=list(facts.addresses),
        kept=_KEPT,
    )


async def note_back(tx: Tx, vm: ObservedVm, *, node: str | None, addresses: tuple[str, ...]) -> None:
    """The claimed VM is well, there. Nothing is written if it was not restarted."""
    await run(tx, _BACK, claim_id=vm.claim_id, vm_id=vm.id, node=node, addresses=list(addresses))
