"""When CDI looks for a newer image, as CDI v1.66.0 reads it (the standard parser of robfig/cron v3). Pure.

CDI has a Kubernetes CronJob do this, except for images with the pull method `node`, and Kubernetes 1.29 and newer accept no time
zone in the schedule of a CronJob. Whether the cluster knows the time zone is left to CDI.
"""

import re
from typing import Final

DESCRIPTORS: Final = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_RULE: Final = (
    'must be a schedule in the five fields of cron, such as "0 3 * * *", or @hourly, @daily, @weekly, @monthly, @yearly or '
    '"@every 6h", each with CRON_TZ=Europe/Berlin before it if it is not in UTC; it is {!r}{}'
)
_ZONE: Final = re.compile(r"(?:CRON_)?TZ=([A-Za-z0-9_+./-]*) +(\S.*)", re.ASCII | re.DOTALL)
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[hms])+", re.ASCII)
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final[tuple[tuple[str, int, int, tuple[str, ...]], ...]] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)


def check_schedule(text: str) -> str:
    """The schedule, which CDI accepts. Raises ValueError with a sentence for its author."""
    why = _problem(text)
    if why is not None:
        raise ValueError(_RULE.format(text, why))
    return text


def _problem(text: str) -> str | None:
    """None: there is none. Otherwise the end of the sentence, which may be empty."""
    if text.startswith(("TZ=", "CRON_TZ=")):
        zone = _ZONE.fullmatch(text)
        if zone is None:
            return ", which has no time zone or nothing after it"
        text = zone[2]
    if text.startswith("@every "):
        return None if _DURATION.fullmatch(text.removeprefix("@every ").strip()) else ", which names no time"
    if text.startswith("@"):
        return None if text in DESCRIPTORS else ""
    fields = text.split()
    if len(fields) != len(_FIELDS):
        return f", which has {len(fields)} field{'' if len(fields) == 1 else 's'}"
    for field, (name, low, high, names) in zip(fields, _FIELDS, strict=True):
        if not _is_field(field, low, high, names):
            return f", and its {name} {field!r} is not within {low} to {high}"
    return None


def _is_field(field: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    parts = [part for part in field.split(",") if part]
    return bool(parts) and all(_is_part(part, low, high, names) for part in parts)


def _is_part(part: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    """`*`, `5`, `mon`, `1-5`, each also with a step: `*/15`."""
    span, slash, step = part.partition("/")
    if slash and not (_is_number(step) and int(step) > 0):
        return False
    if span in {"*", "?"}:
        return True
    first, dash, second = span.partition("-")
    start = _value(first, low, names)
    end = _value(second, low, names) if dash else start
    return start is not None and end is not None and low <= start <= end <= high


def _value(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text.lower() in names:
        return names.index(text.lower()) + low
    return int(text) if _is_number(text) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
