"""What must hold of the rows at every moment, asked in one look. Any test may call it at any time, also while others write."""

from sqlalchemy import text

from app.store.database import Database

_RULES = {
    "a place in the queue whose VM is not ready": """
        SELECT s.vm_id FROM ready_slot s LEFT JOIN vm v ON v.id = s.vm_id
        WHERE v.state IS DISTINCT FROM 'ready' OR v.pool_id IS DISTINCT FROM s.pool_id""",
    "a ready VM without a place in the queue": """
        SELECT v.id FROM vm v WHERE v.state = 'ready' AND NOT EXISTS (SELECT 1 FROM ready_slot s WHERE s.vm_id = v.id)""",
    "a place among those that wait whose claim is not pending": """
        SELECT q.claim_id FROM claim_queue q LEFT JOIN claim c ON c.id = q.claim_id
        WHERE c.state IS DISTINCT FROM 'pending' OR c.pool_id IS DISTINCT FROM q.pool_id""",
    "a pending claim without a place": """
        SELECT c.id FROM claim c
        WHERE c.state = 'pending' AND NOT EXISTS (SELECT 1 FROM claim_queue q WHERE q.claim_id = c.id)""",
    "a bound claim whose VM is not claimed by it": """
        SELECT c.id FROM claim c LEFT JOIN vm v ON v.id = c.vm_id
        WHERE c.state = 'bound' AND (v.state IS DISTINCT FROM 'claimed' OR v.claim_id IS DISTINCT FROM c.id)""",
    "a claimed VM whose claim is not bound to it": """
        SELECT v.id FROM vm v LEFT JOIN claim c ON c.id = v.claim_id
        WHERE v.state = 'claimed' AND (c.state IS DISTINCT FROM 'bound' OR c.vm_id IS DISTINCT FROM v.id)""",
    "a VM with two claims": """
        SELECT vm_id FROM claim WHERE vm_id IS NOT NULL GROUP BY vm_id HAVING count(*) > 1""",
    "a VM that has ended and has no time of it, or the other way round": """
        SELECT id FROM vm WHERE (state IN ('deleted', 'lost')) <> (ended_at IS NOT NULL)""",
    "a claim that has ended and has no time of it, or the other way round": """
        SELECT id FROM claim WHERE (state IN ('released', 'expired', 'failed')) <> (ended_at IS NOT NULL)""",
    "a VM that a VirtualMachinePool owns and of which no object is known, or whose pool has none": """
        SELECT v.id FROM vm v LEFT JOIN vm_pool b ON b.pool_id = v.pool_id
        WHERE v.member AND v.ended_at IS NULL AND (v.uid IS NULL OR b.pool_id IS NULL OR b.deleted_at IS NOT NULL)""",
    "a place that tells another node or address than its VM": """
        SELECT v.id FROM vm v JOIN ready_slot s ON s.vm_id = v.id
        WHERE (v.node, v.addresses, v.name) IS DISTINCT FROM (s.node, s.addresses, s.name)""",
}

# One statement, so that every rule sees the rows of one moment.
_ALL = " UNION ALL ".join(f"SELECT '{rule}' AS rule, b.* FROM ({query}) AS b(id)" for rule, query in _RULES.items())


async def broken_rules(db: Database) -> list[tuple[str, str]]:
    """(rule, id of the row that breaks it), empty where all is well."""
    async with db.begin() as tx:
        return [(row.rule, str(row.id)) for row in await tx.execute(text(_ALL))]


async def check(db: Database) -> None:
    broken = await broken_rules(db)
    assert not broken, broken
