"""Which file is behind which volume and layer: pure bookkeeping, kept as JSON.

A volume is written to, a layer never again. Both have a name and stand for a file; a file may have a backing file, which may serve
many. A file to which nothing leads from any volume or layer is garbage.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class DiskFile:
    """`size` is what a guest sees, in bytes. `backing` is the name of another file, empty where it has none."""

    size: int
    backing: str = ""


@dataclass(slots=True)
class Chains:
    volumes: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    files: dict[str, DiskFile] = field(default_factory=dict)

    def copy(self) -> Self:
        return replace(self, volumes=dict(self.volumes), layers=dict(self.layers), files=dict(self.files))

    def names(self) -> frozenset[str]:
        return frozenset((*self.volumes, *self.layers))

    def find(self, name: str) -> str | None:
        """The file of a volume or layer."""
        return self.volumes.get(name) or self.layers.get(name)

    def chain(self, file: str) -> Iterator[str]:
        """The file and all that it is based on, from the top down."""
        while file:
            yield file
            file = self.files[file].backing

    def depth(self, file: str) -> int:
        return sum(1 for _ in self.chain(file))

    def set_volume(self, name: str, file: str, made: DiskFile) -> None:
        self.files[file] = made
        self.volumes[name] = file

    def forget(self, name: str) -> None:
        self.volumes.pop(name, None)
        self.layers.pop(name, None)

    def take_garbage(self) -> list[str]:
        """Forget the files that nothing leads to, and name them."""
        wanted: set[str] = set()
        for file in (*self.volumes.values(), *self.layers.values()):
            for each in self.chain(file):
                if each in wanted:
                    break
                wanted.add(each)
        garbage = [file for file in self.files if file not in wanted]
        for file in garbage:
            del self.files[file]
        return garbage

    def take_broken(self, present: set[str]) -> list[str]:
        """Forget the volumes and layers of which a file is missing, and name them."""
        named = {**self.volumes, **self.layers}
        broken = [name for name, file in named.items() if not present.issuperset(self.chain(file))]
        for name in broken:
            self.forget(name)
        return broken

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or AttributeError for what is no such document."""
        files = {name: DiskFile(**each) for name, each in told["files"].items()}
        chains = cls(dict(told["volumes"]), dict(told["layers"]), files)
        for file in (*chains.volumes.values(), *chains.layers.values()):
            for _ in chains.chain(file):
                pass
        return chains
