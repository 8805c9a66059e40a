"""Cron expressions as CDI reads them (robfig/cron's standard parser): five fields, descriptors, `@every`, and a time zone."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_YEARS = 5


@dataclass(frozen=True, slots=True)
class Schedule:
    """`next` is exact to the minute. A day must match both day fields, or either where both are restricted."""

    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()
    any_day: bool = True
    any_weekday: bool = True
    every: timedelta | None = None
    zone: tzinfo = UTC

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Raises ValueError for a text that is not a cron expression."""
        zone: tzinfo = UTC
        if text.startswith(("TZ=", "CRON_TZ=")):
            named, _, text = text.partition(" ")
            zone = _zone(named.partition("=")[2])
            text = text.strip()
        if text.startswith("@every "):
            parts = re.fullmatch(r"((?:[0-9.]+[hms])+)", text.removeprefix("@every ").strip())
            if parts is None:
                raise ValueError(f"'{text}' names no duration such as 1h30m")
            seconds = sum(float(amount) * _UNITS[unit] for amount, unit in re.findall(r"([0-9.]+)([hms])", parts[1]))
            return cls(every=timedelta(seconds=max(1, int(seconds))))
        fields = _DESCRIPTORS.get(text, text).split()
        if len(fields) != 5:  # noqa: PLR2004  # minute, hour, day, month, weekday
            raise ValueError(f"'{text}' has {len(fields)} fields; five are needed, or one of {', '.join(_DESCRIPTORS)}")
        return cls(
            minutes=_read(fields[0], 0, 59),
            hours=_read(fields[1], 0, 23),
            days=_read(fields[2], 1, 31),
            months=_read(fields[3], 1, 12, _MONTHS),
            weekdays=_read(fields[4], 0, 6, _DAYS),
            any_day=fields[2][0] in "*?",
            any_weekday=fields[4][0] in "*?",
            zone=zone,
        )

    def next(self, after: datetime) -> datetime | None:
        """The first moment in UTC that matches after the given one; None where there is none within five years."""
        if self.every is not None:
            return (after + self.every).replace(microsecond=0)
        moment = after.astimezone(self.zone).replace(second=0, microsecond=0) + timedelta(minutes=1)
        last = moment + timedelta(days=366 * _YEARS)
        while moment < last:
            if moment.month not in self.months or not self._is_day(moment):
                moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
            elif moment.hour not in self.hours:
                moment = moment.replace(minute=0) + timedelta(hours=1)
            elif moment.minute not in self.minutes:
                moment += timedelta(minutes=1)
            else:
                return moment.astimezone(UTC)
        return None

    def _is_day(self, moment: datetime) -> bool:
        day, weekday = moment.day in self.days, moment.isoweekday() % 7 in self.weekdays
        return (day and weekday) if self.any_day or self.any_weekday else (day or weekday)


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"'{name}' is no known time zone") from error


def _read(field: str, low: int, high: int, names: list[str] | None = None) -> frozenset[int]:
    """The values of one field: lists of `*`, numbers, names, ranges, and steps."""
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if slash else 1
        if step < 1:
            raise ValueError(f"'{part}' steps by {step}")
        first, dash, second = span.partition("-")
        if first in {"*", "?"}:
            start, end = low, high
        else:
            offset = low if names and low == 1 else 0
            start = _number(first, names, offset)
            end = _number(second, names, offset) if dash else (high if slash else start)
        if not low <= start <= end <= high:
            raise ValueError(f"'{part}' is not within {low} to {high}")
        found.update(range(start, end + 1, step))
    return frozenset(found)


def _number(text: str, names: list[str] | None, offset: int) -> int:
    if names and text.lower() in names:
        return names.index(text.lower()) + offset
    return int(text)
