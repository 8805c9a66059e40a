"""Admission: webhooks that change and refuse what clients write."""

from typing import Protocol

from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import ApiError, Json


class Webhooks(Protocol):
    """The webhooks of one component. Both methods raise ApiError to refuse; `old` is None for a new object."""

    def mutate(self, resource: Resource, obj: Json, old: Json | None) -> Json: ...

    def validate(self, resource: Resource, obj: Json, old: Json | None) -> list[str]:
        """Gives warnings."""
        ...


class Admission:
    """The webhooks of all components, in their order. Only the API calls them: controllers write without."""

    def __init__(self, *components: Webhooks) -> None:
        self._components = components

    def mutate(self, resource: Resource, obj: Json, old: Json | None) -> Json:
        for component in self._components:
            obj = component.mutate(resource, obj, old)
        return obj

    def validate(self, resource: Resource, obj: Json, old: Json | None) -> list[str]:
        return [warning for component in self._components for warning in component.validate(resource, obj, old)]


def deny(webhook: str, causes: list[Json]) -> None:
    """Raises ApiError 422 in the words of a webhook's denial, where there are causes."""
    if causes:
        told = ", ".join(item["message"] for item in causes)
        message = f'admission webhook "{webhook}" denied the request: {told}'
        raise ApiError(422, "Invalid", message, details={"causes": causes})
