"""Addresses of pods, each given once."""

_FIRST = 1
_PER_BLOCK = 250


class PodAddresses:
    def __init__(self) -> None:
        self._given = _FIRST

    def take(self) -> str:
        self._given += 1
        return f"10.244.{self._given // _PER_BLOCK % 256}.{self._given % _PER_BLOCK + 1}"

    def skip(self, address: str) -> None:
        """Give none up to this one, which a pod of a saved cluster has."""
        high, low = address.split(".")[2:]
        self._given = max(self._given, int(high) * _PER_BLOCK + int(low) - 1)
