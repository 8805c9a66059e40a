"""Kubernetes quantities (`1Gi`, `500m`, `2k`) as numbers."""

import math
import re
from decimal import Decimal, InvalidOperation

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d+)?")
MEBI = 2**20


def parse_quantity(value: object) -> Decimal:
    """Raises ValueError for what Kubernetes would not take."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"'{value}' is no quantity; write a number with an optional suffix such as m, k, Mi or Gi")
    number, suffix = match.groups()
    suffix = suffix or ""
    try:
        if suffix[:1] in {"e", "E"} and len(suffix) > 1 and suffix != "Ei":
            return Decimal(number + suffix)
        return Decimal(number) * _SUFFIXES[suffix]
    except InvalidOperation as error:
        raise ValueError(f"'{value}' is no quantity") from error


def is_quantity(value: object) -> bool:
    try:
        parse_quantity(value)
    except ValueError:
        return False
    return True


def milli(value: object) -> int:
    """Thousandths, rounded up: the unit in which the scheduler counts CPUs."""
    return math.ceil(parse_quantity(value) * 1000)


def whole(value: object) -> int:
    """Units (bytes for memory), rounded up."""
    return math.ceil(parse_quantity(value))


def in_mebi(amount: int) -> str:
    return f"{amount // MEBI}Mi"
