"""What schemathesis does before each request that it made up."""

from typing import Any, Final

import schemathesis

from app.config import MAX_WAIT_SECONDS

_ENOUGH: Final = 1


@schemathesis.hook
def before_call(_context: Any, case: Any, **_: Any) -> None:
    """One request that waits for a minute would use up the time of all."""
    for given in (case.body, case.query):
        waits = given.get("wait_seconds") if isinstance(given, dict) else None
        if isinstance(waits, int | float) and _ENOUGH < waits <= MAX_WAIT_SECONDS:
            given["wait_seconds"] = _ENOUGH
