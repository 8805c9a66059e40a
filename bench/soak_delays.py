"""Where a soak's seconds go: how late this process itself is, and which statements Postgres was long about, and why."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

_EVERY_SECONDS: Final = 0.1
_LONG_SECONDS: Final = 0.3
_KEPT: Final = 30
_LONG_STATEMENTS: Final = f"""
    SELECT a.pid, a.application_name AS who, a.state, a.wait_event_type, a.wait_event, pg_blocking_pids(a.pid) AS blocked_by,
        extract(epoch FROM clock_timestamp() - CASE WHEN a.state = 'active' THEN a.query_start ELSE a.state_change END) AS seconds,
        regexp_replace(left(a.query, 300), '\\s+', ' ', 'g') AS query, a.query_start
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.state IN ('active', 'idle in transaction')
      AND clock_timestamp() - CASE WHEN a.state = 'active' THEN a.query_start ELSE a.state_change END > make_interval(secs => {_LONG_SECONDS})
"""


@dataclass(slots=True)
class Delays:
    """`late` has moments (of `time.monotonic`) and by how many seconds this process was late then."""

    late: list[tuple[float, float]] = field(default_factory=list)
    _statements: dict[tuple[int, Any], dict[str, Any]] = field(default_factory=dict)

    async def watch(self, database: "asyncpg.Connection[Any]", stop: asyncio.Event) -> None:
        while not stop.is_set():
            due = time.monotonic() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            self.late.append((due, time.monotonic() - due))
            for row in await database.fetch(_LONG_STATEMENTS):
                self._statements[row["pid"], row["query_start"]] = {**dict(row), "at": time.monotonic()}

    def late_between(self, began: float, ended: float) -> float:
        """The longest delay of this process in that time, in seconds."""
        return max((late for at, late in self.late if began - 1 < at < ended), default=0.0)

    def statements_between(self, began: float, ended: float) -> list[str]:
        return [
            _tell(each)
            for each in self._statements.values()
            if began < each["at"] and each["at"] - float(each["seconds"]) < ended
        ]

    @property
    def longest_statements(self) -> list[str]:
        return [_tell(each) for each in sorted(self._statements.values(), key=lambda each: -each["seconds"])[:_KEPT]]


def _tell(each: dict[str, Any]) -> str:
    waits = f"{each['wait_event_type']}/{each['wait_event']}, blocked by {each['blocked_by']}"
    return f"{float(each['seconds']):.2f} s, {each['pid']} {each['who']} {each['state']}, waits for {waits}: {each['query'][:160]}"
