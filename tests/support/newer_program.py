"""A program that has one migration more than this one."""

import shutil
import sys
from pathlib import Path
from typing import Final

from app.store import migrations

NEWER: Final = "9001"
UPGRADE: Final = (
    "import sys; from pathlib import Path; from app.store import migrations;"
    " migrations._SCRIPTS = Path(sys.argv[2]); migrations.upgrade(sys.argv[1])"
)
"""A program: it upgrades the database at its first argument by the migrations in the folder that is its second."""
OWN: Final = migrations._SCRIPTS
_MIGRATION: Final = """
from alembic import op
revision, down_revision = "{0}", "{1}"
{2}
def upgrade():
    op.execute("{3}")
def downgrade():
    pass
"""


def write_newer(
    folder: Path, sql: str = "ALTER TABLE vm ADD COLUMN extra TEXT", *, serves_from: str | None = None
) -> Path:
    """Its migrations: ours, and one that runs `sql`."""
    scripts = folder / "migrations"
    shutil.copytree(OWN, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    told = f'serves_from = "{serves_from}"' if serves_from else ""
    text = _MIGRATION.format(NEWER, migrations.head(), told, sql)
    (scripts / "versions" / f"{NEWER}_newer.py").write_text(text, encoding="utf-8")
    return scripts


def upgrade_command(url: str, scripts: Path = OWN) -> list[str]:
    return [sys.executable, "-c", UPGRADE, url, str(scripts)]
