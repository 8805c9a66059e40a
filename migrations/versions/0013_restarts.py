"""Claims keep the restarts of their VMs."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("ALTER TABLE claim ADD COLUMN restarts jsonb")
    op.execute(
        "COMMENT ON COLUMN claim.restarts IS 'restarts of its VM, the last of them not over yet while to_node is null; NULL: none'"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE claim DROP COLUMN restarts")
