"""Collects everything that is wrong with a template, so that its author sees all of it at once."""

from app.compute.kubevirt.kinds import Manifest
from app.errors import FieldProblem


class Problems:
    """Fields are dotted paths with list positions in brackets, as the cluster writes them."""

    def __init__(self) -> None:
        self._found: dict[FieldProblem, None] = {}

    @property
    def found(self) -> tuple[FieldProblem, ...]:
        """In the order in which they were found, each once."""
        return tuple(self._found)

    def add(self, field: str, message: str) -> None:
        self._found[FieldProblem(field, message)] = None

    def mapping(self, parent: Manifest, keys: str, path: str) -> Manifest:
        """The mapping at dotted `keys`; empty if there is none, or if something on the way is no mapping, which is a problem."""
        for key in keys.split("."):
            path, value = f"{path}.{key}", parent.get(key)
            if value is not None and not isinstance(value, dict):
                self.add(path, f"must be a mapping, got {type(value).__name__}")
            parent = value if isinstance(value, dict) else {}
        return parent

    def mappings(self, parent: Manifest, key: str, path: str) -> list[tuple[Manifest, str]]:
        """The mappings in the list at `key`, each with its path. Anything else is a problem."""
        value = parent.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.add(f"{path}.{key}", f"must be a list, got {type(value).__name__}")
            return []
        found = []
        for index, item in enumerate(value):
            at = f"{path}.{key}[{index}]"
            if isinstance(item, dict):
                found.append((item, at))
            else:
                self.add(at, f"must be a mapping, got {type(item).__name__}")
        return found
