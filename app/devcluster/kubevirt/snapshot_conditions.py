"""The conditions of VirtualMachineSnapshots, restores and clones."""

from datetime import datetime

from app.devcluster.apiserver.conditions import make, put
from app.devcluster.apiserver.status import Json


def progress(
    old: list[Json] | None,
    progressing: tuple[bool, str],
    ready: tuple[bool, str],
    now: datetime,
    **more: tuple[bool, str],
) -> list[Json]:
    """Progressing, Ready and `more`, each as (value, reason); unchanged ones keep their times."""
    conditions = old or []
    for kind, (value, reason) in {**more, "Progressing": progressing, "Ready": ready}.items():
        conditions = put(conditions, make(kind, value, now, reason=reason))
    return conditions
