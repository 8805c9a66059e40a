"""Kubernetes quantities (`1Gi`, `500m`, `2k`) as numbers."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Self

from typing_extensions import override

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
QUANTITY_RULE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
"""The error of Kubernetes for a quantity that it cannot parse."""

_KIBI = 1024
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and the family of suffixes it is written with, as `resource.Quantity` of apimachinery keeps them."""

    amount: Decimal
    binary: bool = True

    @classmethod
    def parse(cls, value: object) -> Self:
        """Raises ValueError as `parse_quantity` does."""
        return cls(parse_quantity(value), binary=str(value).endswith("i"))

    def __add__(self, other: "Quantity") -> "Quantity":
        """The sum, in the suffixes of the first; those of the other where the first is zero."""
        return Quantity(self.amount + other.amount, self.binary if self.amount else other.binary)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return self + Quantity(-other.amount, other.binary)

    @override
    def __str__(self) -> str:
        """The canonical text: the largest suffix that leaves a whole number."""
        if self.binary and self.amount % 1 == 0 and abs(self.amount) >= _KIBI:
            return _with_suffix(self.amount, _BINARY, _KIBI)
        return _with_suffix(self.amount * 10**9, _DECIMAL, 1000)


def parse_quantity(value: object) -> Decimal:
    """Raises ValueError for a text that Kubernetes would refuse."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"'{value}' is not a quantity; write a number with an optional suffix such as m, k, Mi or Gi")
    number, suffix = match.groups()
    suffix = suffix or ""
    try:
        if suffix[:1] in {"e", "E"} and len(suffix) > 1 and suffix != "Ei":
            return Decimal(number + suffix)
        return Decimal(number) * _SUFFIXES[suffix]
    except InvalidOperation as error:
        raise ValueError(f"'{value}' is not a quantity") from error


def is_quantity(value: object) -> bool:
    try:
        parse_quantity(value)
    except ValueError:
        return False
    return True


def whole(value: object) -> int:
    """Units (bytes for memory), rounded up."""
    return math.ceil(parse_quantity(value))


def _with_suffix(amount: Decimal, suffixes: tuple[str, ...], step: int) -> str:
    """Fractions below the smallest suffix are rounded up, as apimachinery does."""
    number = math.ceil(amount)
    if not number:
        return "0"
    place = 0
    while number % step == 0 and place < len(suffixes) - 1:
        number //= step
        place += 1
    return f"{number}{suffixes[place]}"
