"""The shape of a VM is all that KubeVirt is given for it; claims keep the marks of their VMs; what exists once has one VM."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from app.compute.kubevirt.templates.shapes import shape_of
from app.compute.kubevirt.templates.singletons import exclusives_of

revision = "0008"
down_revision = "0007"

_UP = """
ALTER TABLE claim ADD COLUMN marks JSONB;
COMMENT ON COLUMN claim.marks IS 'likewise: the labels and annotations that its VM gets';
CREATE TABLE exclusive_use (
    key TEXT NOT NULL,
    vm_id UUID NOT NULL,
    CONSTRAINT exclusive_use_pkey PRIMARY KEY (key),
    CONSTRAINT exclusive_use_vm_id_fkey FOREIGN KEY (vm_id) REFERENCES vm (id) ON DELETE CASCADE
);
CREATE INDEX exclusive_use_vm_id_idx ON exclusive_use (vm_id);
COMMENT ON COLUMN exclusive_use.key IS 'something in the cluster that exists once, such as a volume';
COMMENT ON COLUMN exclusive_use.vm_id IS 'the only VM that may write to it, until it has ended';
"""

_DOWN = """
DROP TABLE exclusive_use;
ALTER TABLE claim DROP COLUMN marks;
"""

_POOLS = sa.text(
    "SELECT id, name, kind, shape, revision, vm_spec FROM pool WHERE shape IS NOT NULL AND deleted_at IS NULL"
)
_WRITE = sa.text("UPDATE pool SET shape = :shape WHERE id = :id")
# VMs of an older template may differ in what was no part of the shape before. Theirs is not known.
_WRITE_VMS = sa.text("""
    UPDATE vm SET shape = CASE WHEN revision = :revision THEN :shape END WHERE pool_id = :id AND shape = :before
""")
_WRITE_CLAIMS = sa.text("""
    UPDATE claim SET shape = :shape WHERE pool_id = :id AND shape = :before AND state IN ('pending', 'bound')
""")
_WRITE_TAKES = sa.text("""
    UPDATE snapshot_take t SET shape = :shape FROM snapshot s
    WHERE s.id = t.snapshot_id AND t.shape = :before AND s.spec #>> '{source,pool}' = :name
""")
_WRITE_TAKES_OF_VMS = sa.text("""
    UPDATE snapshot_take t SET shape = :shape FROM snapshot s, vm
    WHERE s.id = t.snapshot_id AND t.shape = :before AND s.spec #>> '{source,vm}' = vm.name AND vm.pool_id = :id
      AND vm.revision = :revision
""")
_HOLD = sa.text("""
    INSERT INTO exclusive_use (key, vm_id)
    SELECT :key, id FROM vm WHERE pool_id = :id AND asked_at IS NOT NULL AND ended_at IS NULL ORDER BY asked_at LIMIT 1
    ON CONFLICT DO NOTHING
""")


def upgrade() -> None:
    _run(_UP)
    connection = op.get_bind()
    for pool in connection.execute(_POOLS).all():
        spec = pool.vm_spec if isinstance(pool.vm_spec, dict) else json.loads(pool.vm_spec)
        _write_shape(connection, pool, shape_of(spec))
        if pool.kind == "on_demand":
            for each in exclusives_of(spec, str):
                connection.execute(_HOLD, {"id": pool.id, "key": each.key})


def downgrade() -> None:
    """The shapes stay: an older program finds them different from its own, and starts VMs anew until a pool is written again."""
    _run(_DOWN)


def _write_shape(connection: sa.Connection, pool: Any, shape: str) -> None:
    given = {"id": pool.id, "shape": shape, "before": pool.shape, "revision": pool.revision, "name": pool.name}
    for statement in (_WRITE, _WRITE_VMS, _WRITE_CLAIMS):
        connection.execute(statement, given)
    if pool.kind == "pool":
        for statement in (_WRITE_TAKES, _WRITE_TAKES_OF_VMS):
            connection.execute(statement, given)


def _run(statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            op.execute(statement)
