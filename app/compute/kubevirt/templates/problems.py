"""What is wrong with one document, collected so that its author sees all of it at once."""

from app.compute.kubevirt.kinds import Manifest
from app.errors import FieldProblem


class Problems:
    """Fields are dotted paths; a position in a list stands in brackets, as the cluster writes it."""

    def __init__(self) -> None:
        self._found: dict[FieldProblem, None] = {}

    @property
    def found(self) -> tuple[FieldProblem, ...]:
        """In the order of finding, each once."""
        return tuple(self._found)

    def add(self, field: str, message: str) -> None:
        self._found[FieldProblem(field, message)] = None

    def mapping(self, parent: Manifest, key: str, path: str) -> Manifest:
        """The mapping at `key`; an empty one where there is none, or where there is something else (a problem)."""
        value = parent.get(key)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.add(f"{path}.{key}", f"must be a mapping, got {type(value).__name__}")
        return {}

    def mappings(self, parent: Manifest, key: str, path: str) -> list[tuple[Manifest, str]]:
        """The mappings in the list at `key`, each with its path; what is none is a problem."""
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
