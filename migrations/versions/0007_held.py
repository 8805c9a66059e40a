"""Why VMs that are to be replaced are not."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("ALTER TABLE pool_plan ADD COLUMN held text")
    op.execute(
        "COMMENT ON COLUMN pool_plan.held IS 'why VMs that are to be replaced are not; NULL: they are, or there are none'"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE pool_plan DROP COLUMN held")
