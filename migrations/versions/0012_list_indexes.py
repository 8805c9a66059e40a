"""The indexes of lists, built while the service runs: an ordinary build would hold up every claim for as long as it takes.

Each statement is a transaction of its own. After a failure the migration is run again: what is there already stays, and what was
left unfinished is built anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_INDEXES = {
    "vm_live_pool_idx": "vm (pool_id, id) WHERE ended_at IS NULL",
    "vm_deadline_idx": "vm (deadline_at) WHERE deadline_at IS NOT NULL",
    "vm_boot_times_idx": "vm (pool_id, ready_at) INCLUDE (boot_seconds) WHERE boot_seconds IS NOT NULL",
    "vm_history_idx": "vm (lost, id) WHERE ended_at IS NOT NULL",
    "vm_pool_history_idx": "vm (pool_id, lost, id) WHERE ended_at IS NOT NULL",
    "claim_history_idx": "claim (state, id) WHERE ended_at IS NOT NULL",
    "claim_pool_history_idx": "claim (pool_id, state, id) WHERE ended_at IS NOT NULL",
    "claim_shape_idx": "claim (shape, state, id) WHERE shape IS NOT NULL",
    "claim_pool_shape_idx": "claim (pool_id, shape, state, id) WHERE shape IS NOT NULL",
    "event_pool_idx": "event (pool_id, split_part(type, '.', 1), xid, id) WHERE pool_id IS NOT NULL AND type <> 'claim.bound'",
    "event_kind_idx": "event (split_part(type, '.', 1), xid, id) WHERE split_part(type, '.', 1) <> 'claim'",
}
_UNFINISHED = sa.text(
    "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE NOT i.indisvalid AND c.relname = ANY(:names)"
)
# Claims that ended before the trigger was there, some at a time.
_LABELS = sa.text("""
    WITH old AS (
        SELECT id, pool_id, shape, state, labels FROM claim WHERE ended_at IS NOT NULL AND id > :after ORDER BY id LIMIT 20000),
    kept AS (
        INSERT INTO claim_label (claim_id, label, pool_id, shape, state)
        SELECT o.id, l.key || '=' || l.value, o.pool_id, o.shape, o.state FROM old o CROSS JOIN jsonb_each_text(o.labels) l
        ON CONFLICT DO NOTHING)
    SELECT id FROM old ORDER BY id DESC LIMIT 1
""")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        # Such a build waits for the transactions that are under way, and nobody waits for it.
        patience = connection.execute(sa.text("SHOW lock_timeout")).scalar()
        op.execute("SET lock_timeout = '60s'")
        for name in connection.execute(_UNFINISHED, {"names": [*_INDEXES, "vm_live_idx"]}).scalars().all():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        for name, what in _INDEXES.items():
            op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {what}")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS vm_live_idx")
        op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS vm_live_idx ON vm (id) WHERE ended_at IS NULL")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS vm_boots_idx")
        after = "00000000-0000-0000-0000-000000000000"
        while (last := connection.execute(_LABELS, {"after": after}).scalar()) is not None:
            after = last
        op.execute(f"SET lock_timeout = '{patience}'")


def downgrade() -> None:
    op.execute("CREATE INDEX vm_boots_idx ON vm (pool_id, ready_at) WHERE boot_seconds IS NOT NULL")
    op.execute("DROP INDEX vm_live_idx")
    op.execute("CREATE INDEX vm_live_idx ON vm (pool_id) WHERE ended_at IS NULL")
    for name in _INDEXES:
        op.execute(f"DROP INDEX {name}")
