"""Kubernetes quantities (`2Gi`, `500m`, `1e3`), read exactly."""

import re
from fractions import Fraction

_QUANTITY = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d+))?", re.ASCII)
_SCALES = {
    **{suffix: Fraction(1024**power) for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
    **{suffix: Fraction(1000**power) for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: Fraction(1, 1000**power) for power, suffix in enumerate(("m", "u", "n"), start=1)},
}
_LONGEST = 63
_LARGEST_EXPONENT = 27  # far above an exbibyte, and small enough that no input makes us compute huge powers


def parse_quantity(value: object) -> Fraction:
    """The number that a quantity stands for. Raises ValueError with a sentence that says how to write one.

    Takes what a custom resource's schema takes: a string or an integer. A float is refused, as the API server refuses it.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(value)
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) and len(value) <= _LONGEST else None
    if match is None:
        raise ValueError(f'must be a quantity, an integer or a string such as "2Gi" or "500m"; got {value!r}')
    sign, digits, suffix, exponent = match.groups()
    number = Fraction(digits.removesuffix("."))
    if suffix:
        number *= _SCALES[suffix]
    elif exponent:
        if abs(int(exponent)) > _LARGEST_EXPONENT:
            raise ValueError(f"is out of range: {value!r}")
        number *= Fraction(10) ** int(exponent)
    return -number if sign == "-" else number
