"""Errors of the Kubernetes API: each renders as a `Status` object (reasons and texts as API server 1.36 gives them)."""

from typing import Any

Json = dict[str, Any]


class ApiError(Exception):
    """An error answer. `body` is the Status object; `retry_after` (seconds) becomes a header."""

    def __init__(
        self,
        code: int,
        reason: str | None,
        message: str,
        *,
        details: Json | None = None,
        retry_after: int | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.retry_after = retry_after
        self.warnings = warnings
        self.metadata: Json = {}

    @property
    def body(self) -> Json:
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason is not None:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


class PlainError(Exception):
    """An error with a text body, as the API server's mux and KubeVirt's aggregated API answer."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def qualified(name: str, group: str) -> str:
    return f"{name}.{group}" if group else name


def describe(group: str, kind: str, name: str = "", **more: Any) -> Json:
    details: Json = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    details["kind"] = kind
    return {**details, **more}


def bad_request(message: str, warnings: tuple[str, ...] = ()) -> ApiError:
    return ApiError(400, "BadRequest", message, warnings=warnings)


def not_found(group: str, plural: str, name: str) -> ApiError:
    message = f'{qualified(plural, group)} "{name}" not found'
    return ApiError(404, "NotFound", message, details=describe(group, plural, name))


def already_exists(group: str, plural: str, name: str, *, going: bool = False) -> ApiError:
    prefix = "object is being deleted: " if going else ""
    message = f'{prefix}{qualified(plural, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details=describe(group, plural, name))


def conflict(group: str, kind: str, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {qualified(kind, group)} "{name}": {why}'
    return ApiError(409, "Conflict", message, details=describe(group, kind, name))


def cause(reason: str, message: str, field: str) -> Json:
    return {"reason": reason, "message": message, "field": field}


def invalid(group: str, kind: str, name: str, causes: list[Json]) -> ApiError:
    """A 422 with field errors: the message has one cause as it is, several in brackets."""
    parts = [f"{item['field']}: {item['message']}" for item in causes]
    told = parts[0] if len(parts) == 1 else "[" + ", ".join(parts) + "]"
    message = f'{qualified(kind, group)} "{name}" is invalid: {told}'
    return ApiError(422, "Invalid", message, details=describe(group, kind, name, causes=causes))


def bad_option(kind: str, field: str, reason: str, message: str) -> ApiError:
    """A 422 for a query parameter or option, such as those of `ListOptions`."""
    return invalid("meta.k8s.io", kind, "", [cause(reason, message, field)])


def patch_refused() -> ApiError:
    """A JSON patch that fails: the API server does not say why."""
    return ApiError(422, "Invalid", "the server rejected our request due to an error in our request", details={})
