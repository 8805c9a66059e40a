"""Since when the VMs of a pool are to be replaced."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("ALTER TABLE pool ADD COLUMN rotated_at timestamptz")
    op.execute(
        "COMMENT ON COLUMN pool.rotated_at IS 'VMs that the cluster was asked for until then are to be replaced'"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE pool DROP COLUMN rotated_at")
