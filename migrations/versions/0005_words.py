"""Columns and values under the names that the program and its API use, and a shape for each pool that has none."""

import json

import sqlalchemy as sa
from alembic import op

from app.compute.kubevirt.templates.shapes import shape_of

revision = "0005"
down_revision = "0004"
serves_from = "0005"

_UP = """
ALTER TABLE pool_plan RENAME COLUMN unfit TO capacity_problem;
ALTER TABLE vm RENAME COLUMN unwell_since TO unhealthy_since;
ALTER TABLE pool DROP CONSTRAINT pool_kind_check;
UPDATE pool SET kind = 'on_demand' WHERE kind = 'shape';
ALTER TABLE pool ADD CONSTRAINT pool_kind_check CHECK (kind IN ('pool', 'on_demand'));
COMMENT ON COLUMN pool.kind IS 'pool; on_demand: size 0 and not listed, its VMs are made for claims that describe their VM';
ALTER TABLE backing RENAME TO vm_pool;
ALTER TABLE vm_pool RENAME CONSTRAINT backing_pkey TO vm_pool_pkey;
ALTER TABLE vm_pool RENAME CONSTRAINT backing_pool_id_fkey TO vm_pool_pool_id_fkey;
ALTER TABLE vm_pool RENAME COLUMN gone_at TO deleted_at;
ALTER INDEX backing_due_idx RENAME TO vm_pool_due_idx;
"""

_DOWN = """
ALTER INDEX vm_pool_due_idx RENAME TO backing_due_idx;
ALTER TABLE vm_pool RENAME COLUMN deleted_at TO gone_at;
ALTER TABLE vm_pool RENAME CONSTRAINT vm_pool_pool_id_fkey TO backing_pool_id_fkey;
ALTER TABLE vm_pool RENAME CONSTRAINT vm_pool_pkey TO backing_pkey;
ALTER TABLE vm_pool RENAME TO backing;
COMMENT ON COLUMN pool.kind IS 'pool; shape: of no size and not shown, its VMs are made for claims of their own';
ALTER TABLE pool DROP CONSTRAINT pool_kind_check;
UPDATE pool SET kind = 'shape' WHERE kind = 'on_demand';
ALTER TABLE pool ADD CONSTRAINT pool_kind_check CHECK (kind IN ('pool', 'shape'));
ALTER TABLE vm RENAME COLUMN unhealthy_since TO unwell_since;
ALTER TABLE pool_plan RENAME COLUMN capacity_problem TO unfit;
"""

_WITHOUT_SHAPE = sa.text("SELECT id, vm_spec FROM pool WHERE shape IS NULL AND deleted_at IS NULL")
_WRITE_SHAPE = sa.text("UPDATE pool SET shape = :shape WHERE id = :id")
# VMs of an older template may have another shape: they stay without one.
_WRITE_SHAPE_OF_VMS = sa.text("""
    UPDATE vm SET shape = p.shape, path = p.path, source = p.source FROM pool p
    WHERE p.id = :id AND vm.pool_id = p.id AND vm.ended_at IS NULL AND vm.shape IS NULL AND vm.asked_at IS NOT NULL
      AND vm.revision = p.revision
""")


def upgrade() -> None:
    _run(_UP)
    _fill_shapes()


def downgrade() -> None:
    _run(_DOWN)


def _fill_shapes() -> None:
    """Pools that were written before migration 0002 have no shape. The program's own function computes it, so that claims of
    that program find these pools.
    """
    connection = op.get_bind()
    for pool_id, vm_spec in connection.execute(_WITHOUT_SHAPE).all():
        spec = vm_spec if isinstance(vm_spec, dict) else json.loads(vm_spec)
        connection.execute(_WRITE_SHAPE, {"id": pool_id, "shape": shape_of(spec)})
        connection.execute(_WRITE_SHAPE_OF_VMS, {"id": pool_id})


def _run(statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            op.execute(statement)
