"""Snapshots that keep the memory of VMs, and the path of VMs that start from it.

An older program reads the new tables as before. It does not know the path `memory`, so from the first snapshot that keeps memory on
the database serves only programs that have this migration (`app.store.migrations.require`).
"""

from alembic import op

revision = "0015"
down_revision = "0014"

_UP = """
ALTER TABLE snapshot ADD COLUMN memory BOOLEAN DEFAULT false NOT NULL;
COMMENT ON COLUMN snapshot.memory IS 'it keeps the memory of its VM too';
ALTER TABLE snapshot_take ADD COLUMN memory_bytes BIGINT;
COMMENT ON COLUMN snapshot_take.memory_bytes IS 'what the memory of its VM takes; NULL: it has none';
ALTER TABLE snapshot_take ADD COLUMN fingerprint TEXT;
COMMENT ON COLUMN snapshot_take.fingerprint IS 'what its memory can be restored with';
ALTER TABLE snapshot_take ADD COLUMN stale_reason TEXT;
COMMENT ON COLUMN snapshot_take.stale_reason IS 'why its memory cannot be restored any more; NULL: it can';
ALTER TABLE snapshot_take ADD COLUMN vm_spec JSONB;
COMMENT ON COLUMN snapshot_take.vm_spec IS 'of the VM whose memory it has, expanded';
ALTER TABLE pool DROP CONSTRAINT pool_path_check;
ALTER TABLE pool ADD CONSTRAINT pool_path_check CHECK (path IN ('pool', 'memory', 'snapshot', 'preload', 'cold'));
"""

# To a program that knows no memory its snapshots are those of the disks, and what started from them started from these.
_DOWN = """
ALTER TABLE pool DROP CONSTRAINT pool_path_check;
UPDATE pool SET path = 'snapshot' WHERE path = 'memory';
UPDATE vm SET path = 'snapshot' WHERE path = 'memory';
UPDATE claim SET path = 'snapshot' WHERE path = 'memory';
UPDATE claim SET allowed = array_remove(allowed, 'memory') WHERE 'memory' = ANY(allowed);
UPDATE claim SET choice = NULL, allowed = NULL WHERE choice::text LIKE '%"path": "memory"%';
ALTER TABLE pool ADD CONSTRAINT pool_path_check CHECK (path IN ('pool', 'snapshot', 'preload', 'cold'));
ALTER TABLE snapshot_take DROP COLUMN vm_spec;
ALTER TABLE snapshot_take DROP COLUMN stale_reason;
ALTER TABLE snapshot_take DROP COLUMN fingerprint;
ALTER TABLE snapshot_take DROP COLUMN memory_bytes;
ALTER TABLE snapshot DROP COLUMN memory;
"""


def upgrade() -> None:
    _run(_UP)


def downgrade() -> None:
    _run(_DOWN)


def _run(statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            op.execute(statement)
