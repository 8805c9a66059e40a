"""Translates the cluster's errors to our own: `with translating("create the VM x"):` around each call. The cause is chained."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.config import ConfigException

from app.compute.kubevirt.kinds import Manifest
from app.errors import (
    ClusterConflict,
    ClusterError,
    ClusterForbidden,
    ClusterNotFound,
    ClusterRefused,
    ClusterUnavailable,
    EmberpoolError,
    FieldProblem,
    WatchExpired,
)

DEFAULT_RETRY_AFTER = 5.0
"""Seconds to wait if the cluster names none. An API server that is starting says 5 (Kubernetes v1.36, recorded)."""

FORBIDDEN_RETRY_AFTER = 30.0
"""Seconds after which somebody may have given us a right or a quota."""

_LONGEST_RETRY_AFTER = 3600.0
_STRICT_DECODING = re.compile(r'(?:unknown|duplicate) field "(?P<field>[^"]+)"')
_FIELD_IN_TEXT = re.compile(r"\b(?:spec|metadata)(?:\.\w+|\[\d+\])+")
# How every authorizer refuses, whatever decides behind it; admission refuses in other words (Kubernetes 1.36, recorded).
_NO_RIGHT = re.compile(r'User "[^"]*" cannot ')
_BY_WEBHOOK = re.compile(r'^admission webhook "[^"]+" denied the request')
_LONGEST_TEXT = 2000  # characters of an answer that is not a Status, such as a proxy's HTML page


class NoRight(ClusterForbidden):
    """The cluster's authorizer refused, or did not accept our credentials. This error never leaves `kubevirt`: see `access`."""


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """`doing` completes "could not ..." in the message."""
    try:
        yield
    except ApiException as error:
        raise translate(int(error.status or 0), _read_status(error.body, error.reason), error.headers, doing) from error
    except (aiohttp.ClientError, OSError, ConfigException) as error:
        if isinstance(error, TimeoutError):
            what = "The cluster did not answer in time"
        elif isinstance(error, ConfigException):
            what = f"The cluster's credentials cannot be renewed ({_name(error)})"
        else:
            what = f"The cluster cannot be reached ({_name(error)})"
        raise ClusterUnavailable(f"{what}; could not {doing}.", retry_after=DEFAULT_RETRY_AFTER) from error
    except (ValueError, LookupError) as error:  # the answer is not JSON, or not UTF-8
        raise ClusterError(f"The cluster's answer cannot be read ({_name(error)}); could not {doing}.") from error


def translate(code: int, status: Manifest, headers: object, doing: str) -> EmberpoolError:
    """The error for an answer with HTTP status `code` and a Kubernetes Status as its body (`{"message": ...}` if it had none).

    An ERROR event of a watch has the same Status and `code`.
    """
    message = str(status.get("message") or f"HTTP {code}")
    detail = f"{message.rstrip('.')}; could not {doing}."
    match code:
        case 400 | 413 | 422:
            return ClusterRefused(message, problems=find_problems(status))
        case 403 if _BY_WEBHOOK.search(message):  # a policy, as of an admission controller of the cluster's owner
            return ClusterRefused(message, problems=find_problems(status))
        case 401 | 403:
            error = NoRight if code == 401 or _NO_RIGHT.search(message) else ClusterForbidden  # noqa: PLR2004 - Unauthorized
            return error(f"The cluster forbids to {doing}: {message}", retry_after=FORBIDDEN_RETRY_AFTER)
        case 404:
            return ClusterNotFound(detail)
        case 409:
            return ClusterConflict(detail)
        case 410:
            return WatchExpired(detail)
        case _ if code == 429 or code >= 500:  # noqa: PLR2004 - server errors, all of them
            return ClusterUnavailable(
                f"The cluster does not answer: {detail}", retry_after=_read_retry_after(status, headers)
            )
        case _:
            return ClusterError(f"The cluster answered with HTTP {code}: {detail}")


def reason_of(error: ApiException) -> str:
    """The `reason` of the Status (`AlreadyExists`, `Conflict`, ...); empty if the body is not a Status."""
    return str(_read_status(error.body, error.reason).get("reason") or "")


def is_unserved(error: ClusterNotFound) -> bool:
    """Whether the cluster does not serve the kind at all: it answers in plain text then (Kubernetes 1.36, recorded)."""
    cause = error.__cause__
    return isinstance(cause, ApiException) and "kind" not in _read_status(cause.body, cause.reason)


def is_of_namespace(error: ClusterNotFound) -> bool:
    """Whether it is the namespace that does not exist: a create says so (Kubernetes 1.36, recorded)."""
    cause = error.__cause__
    status = _read_status(cause.body, cause.reason) if isinstance(cause, ApiException) else {}
    return (status.get("details") or {}).get("kind") == "namespaces"


def find_problems(status: Manifest) -> tuple[FieldProblem, ...]:
    """Every field that a refusal names, in the cluster's notation. If it names none: the whole message, without a field.

    The most reliable source counts: `details.causes[].field`, then the quoted fields of a strict decoding error, then a path
    somewhere in the text.
    """
    message = str(status.get("message") or "")
    causes = (status.get("details") or {}).get("causes") or []
    found = {
        FieldProblem(field, str(cause.get("message") or message)): None
        for cause in causes
        if (field := _read_field(cause, message)) is not None
    }
    if not found:
        quoted = _STRICT_DECODING.finditer(message)
        found = {FieldProblem(match["field"], match.group()): None for match in quoted}
    if not found:
        found = {FieldProblem(field, message): None for field in _first_path(message)}
    return tuple(found) or (FieldProblem("", message),)


def _read_field(cause: Manifest, message: str) -> str | None:
    field = cause.get("field")
    if isinstance(field, str) and field and not field.startswith("<"):  # "<nil>" means no field
        return field
    return next(iter(_first_path(str(cause.get("message") or message))), None)


def _first_path(text: str) -> list[str]:
    match = _FIELD_IN_TEXT.search(text)
    return [match.group()] if match else []


def _read_status(body: object, reason: object) -> Manifest:
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    if isinstance(status, dict):
        return status
    return {"message": text.strip()[:_LONGEST_TEXT] or str(reason or "")}


def _read_retry_after(status: Manifest, headers: object) -> float:
    get = getattr(headers, "get", None)
    for value in (get("Retry-After") if get else None, (status.get("details") or {}).get("retryAfterSeconds")):
        try:
            seconds = float(str(value))
        except ValueError:  # missing, or a date, which API servers never send
            continue
        if 0 <= seconds <= _LONGEST_RETRY_AFTER:
            return seconds
    return DEFAULT_RETRY_AFTER


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
