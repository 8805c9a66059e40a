"""Reads Kubernetes quantities (`2Gi`, `500m`, `1e3`) exactly, and what is asked of storage."""

import re
from fractions import Fraction

from app.compute.kubevirt.kinds import Manifest

_QUANTITY = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d+))?", re.ASCII)
_SCALES = {
    **{suffix: Fraction(1024**power) for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
    **{suffix: Fraction(1000**power) for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: Fraction(1, 1000**power) for power, suffix in enumerate(("m", "u", "n"), start=1)},
}
_LONGEST = 63
_LARGEST_EXPONENT = 27  # far above an exbibyte, and small enough to keep the powers small whatever the input


def parse_quantity(value: object) -> Fraction:
    """The number that a quantity means. Raises ValueError with a sentence that says how to write one.

    It accepts what the schema of a custom resource accepts: a string or an integer. The API server refuses a float, and so do we.
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


def requested_storage(spec: Manifest) -> str | None:
    """The storage that a PVC, or the storage of a DataVolume, requests: a quantity."""
    found = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    return str(found) if found is not None else None
