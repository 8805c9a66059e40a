"""Which version of each object of one kind is known: so that a list and a watch may run side by side. Pure.

A resourceVersion is a number that grows with each change of any object of a kind (KEP-5504, promised since Kubernetes 1.35). So of
two states of an object the one with the higher version is newer, and a list at version x says nothing of what happened after x.
"""

from dataclasses import dataclass, field

from app.compute.kubevirt.kinds import Manifest


def version_of(holder: Manifest) -> int:
    """The resourceVersion of an object or a bookmark; 0 if it has none that can be compared."""
    return read_version((holder.get("metadata") or {}).get("resourceVersion"))


def read_version(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


@dataclass(slots=True)
class Versions:
    """The versions of the objects of one kind, by a key that tells objects apart. Version 0 means unknown: it is always taken."""

    reached: int = 0
    """The newest version of which anything was heard."""
    _known: dict[str, int] = field(default_factory=dict)
    _unlisted: set[str] | None = None
    """While a list runs: what was known when it began and has not come yet."""
    _ended: dict[str, int] = field(default_factory=dict)
    """While a list runs: what was deleted meanwhile. An older page of the list may still have it."""
    _missed: dict[str, int] = field(default_factory=dict)
    """While versions are compared: those that are newer than what was known when they came."""

    def restart(self, version: int) -> None:
        """A watch begins at that version. If versions have gone back (a restored backup), what was known is older than all that comes."""
        if version < self.reached:
            self._known = dict.fromkeys(self._known, 0)
        self.reached = version
        self._unlisted = None

    def begin_list(self) -> None:
        self._unlisted = set(self._known)
        self._ended.clear()
        self._missed.clear()

    def compare(self, key: str, version: int) -> None:
        """A list of versions only has this one. See `missed`."""
        if self._unlisted is not None:
            self._unlisted.discard(key)
        if not 0 < version <= self._known.get(key, 0):
            self._missed[key] = version

    def missed(self) -> list[str]:
        """What was compared and is still not known in that version, nor heard to be deleted since."""
        known, ended = self._known, self._ended
        return [key for key, seen in self._missed.items() if not 0 < seen <= max(known.get(key, 0), ended.get(key, 0))]

    def take(self, key: str, version: int) -> bool:
        """Whether the object is newer than what is known. From then on this version is known."""
        if self._unlisted is not None:
            self._unlisted.discard(key)
            if 0 < version <= self._ended.get(key, 0):
                return False
        if 0 < version <= self._known.get(key, 0):
            return False
        self._known[key] = version
        self.reached = max(self.reached, version)
        return True

    def drop(self, key: str, version: int) -> bool:
        """Whether the object that is known was deleted at that version, and not one that had its name before."""
        if 0 < version < self._known.get(key, 0):
            return False
        self._known.pop(key, None)
        self.reached = max(self.reached, version)
        if self._unlisted is not None:
            self._unlisted.discard(key)
            self._ended[key] = version
        return True

    def end_list(self, version: int) -> list[str]:
        """What a whole list at that version lacks, and what was not heard of at a newer version: it was deleted."""
        gone = [key for key in self._unlisted or () if version == 0 or self._known[key] <= version]
        for key in gone:
            del self._known[key]
        self._unlisted = None
        self._ended.clear()
        self._missed.clear()
        return gone

    def clear(self) -> None:
        """Nothing of the kind is known any more."""
        self._known.clear()
        self._unlisted = None
