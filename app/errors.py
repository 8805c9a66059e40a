"""All errors of the service. A class has a stable code, an HTTP status and a title; an instance has the `detail` sentence.

EmberpoolError                     500 internal-error
|-- InvalidRequest                 422 invalid-request          `problems` names each invalid field
|   |-- MalformedBody              400 malformed-body
|   |-- UnsupportedMediaType       415 unsupported-media-type
|   |-- BodyTooLarge               413 body-too-large
|   |-- TemplateRefused            422 template-refused         by the cluster or by our own rules
|   |-- ManifestRefused            422 manifest-refused         one document is invalid, so none is applied
|   |-- SnapshotRefused            422 snapshot-refused         none of the VM's disks can be snapshotted
|   |-- PreloadRefused             422 preload-refused          by the cluster's dry run
|   |-- Unschedulable              422 unschedulable            the VMs do not fit even on empty nodes
|   |-- LeaseTooLong               422 lease-too-long
|   `-- IdempotencyKeyReused       422 idempotency-key-reused
|-- MalformedRequest               400 malformed-request        not HTTP/1.1 as it should be
|-- RequestTimeout                 408 request-timeout          a head or a body that does not end
|-- TargetTooLong                  414 target-too-long
|-- HostNotAllowed                 421 host-not-allowed         by the setting `allowed_hosts`
|-- HeadersTooLarge                431 headers-too-large
|-- ExpectationFailed              417 expectation-failed
|-- NotImplementedHere             501 not-implemented          a transfer coding, or CONNECT
|-- VersionNotSupported            505 version-not-supported    HTTP/2 and others
|-- Unauthenticated                401 unauthenticated
|-- GuestMistaken                  403 guest-mistaken           a token that is another VM's, or a claim that is
|-- GuestGone                      410 guest-gone               a token of a VM that has ended
|-- NotFound                       404 not-found                no such route
|   |-- PoolNotFound               404 pool-not-found
|   |-- SnapshotNotFound           404 snapshot-not-found
|   |-- PreloadNotFound            404 preload-not-found
|   |-- ClaimNotFound              404 claim-not-found
|   |-- NodeNotFound               404 node-not-found
|   `-- VmNotFound                 404 vm-not-found
|-- MethodNotAllowed               405 method-not-allowed
|-- Conflict                       409 conflict
|   |-- PoolBeingDeleted           409 pool-being-deleted
|   |-- SnapshotBeingDeleted       409 snapshot-being-deleted
|   |-- SnapshotInUse              409 snapshot-in-use          a pool starts from it
|   |-- PreloadBeingDeleted        409 preload-being-deleted
|   |-- PreloadInUse               409 preload-in-use           a pool starts from it, or a VM is being created from it
|   |-- VmClaimed                  409 vm-claimed
|   |-- GuestReplaced              409 guest-replaced           another boot of the same VM said hello since
|   |-- GuestConflict              409 guest-conflict           two guests have one token
|   |-- NoConsoleLog               409 no-console-log           there is none yet, or not any more, or the cluster keeps none
|   `-- ClaimEnded                 409 claim-ended
|-- PreconditionFailed             412 precondition-failed      If-Match names another version
|-- Unavailable                    503 unavailable              retry after `retry_after` seconds
|   |-- NoWarmVm                   503 no-warm-vm
|   |-- NoPath                     503 no-path                  for a claim that describes its VM
|   |-- DeadlineTooShort           503 deadline-too-short       the measured time of every path is longer
|   |-- TooManyLists               503 too-many-lists           are read and waited for, in this process
|   |-- TooManyStreams             503 too-many-streams         of events or of console logs, in this process
|   |-- Overloaded                 503 overloaded               too many connections, or too much of requests held
|   |-- OutcomeUnknown             503 outcome-unknown          a claim may have been made, or not
|   |-- InstallationWaits          503 installation-waits       an operator has to decide whose the VMs in the cluster are
|   |-- DatabaseUnavailable        503 database-unavailable
|   |   |-- DatabaseRefused                                     the user or the password
|   |   `-- DatabaseLost                                        what was sent may have been committed
|   `-- ClusterUnavailable         503 cluster-unavailable      refused connections, time-outs, 429, 5xx
|-- ClusterError                   502 cluster-error            translated once, in compute/kubevirt
|   |-- ClusterRefused             422 template-refused         400 and 422: the object is invalid
|   |-- ClusterForbidden           503 cluster-forbidden        401 and 403: missing permission or quota
|   |-- ClusterConflict            409 cluster-conflict         another writer, or another UID
|   |-- ClusterNotFound            404 cluster-object-not-found
|   `-- WatchExpired               502 watch-expired            410: list again
`-- IllegalTransition              500 illegal-transition       a bug
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self
from uuid import UUID

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """A problem with one field. `field` is a dotted path from the root of the body; empty for the body itself."""

    field: str
    message: str


_MOST_IN_A_SENTENCE = 5


def shorten(text: str, most: int = 64) -> str:
    """The beginning of a text that somebody else wrote, with its length where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def list_problems(problems: Sequence[FieldProblem], *, untold: int = 0) -> str:
    """The first few of the problems for a sentence, and how many more there are. `untold`: those that are not among `problems`."""
    named = "; ".join(
        f"{shorten(p.field, 100) or 'body'}: {shorten(p.message, 500)}" for p in problems[:_MOST_IN_A_SENTENCE]
    )
    more = len(problems[_MOST_IN_A_SENTENCE:]) + untold
    return f"{named}; and {more} more" if more else named


class EmberpoolError(Exception):
    """`detail` tells the caller what is wrong, where, and what to do.

    `retry_after`, in seconds, becomes the `Retry-After` header. `untold`: how many problems there are beside `problems`.
    """

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The service failed unexpectedly"

    @override
    def __init_subclass__(cls, *, code: str | None = None, status: int | None = None, title: str | None = None) -> None:
        """What a subclass does not give it has from its parent."""
        super().__init_subclass__()
        cls.code, cls.status, cls.title = code or cls.code, status or cls.status, title or cls.title

    def __init__(
        self,
        detail: str,
        *,
        problems: Sequence[FieldProblem] = (),
        retry_after: float | None = None,
        untold: int = 0,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = tuple(problems)
        self.untold = untold
        self.retry_after = retry_after

    @classmethod
    def of_field(cls, field: str, message: str, hint: str = "") -> Self:
        """The error for one invalid field. `hint` follows in the sentence only."""
        return cls(f"{field}: {message}{hint}", problems=[FieldProblem(field, message)])


class InvalidRequest(EmberpoolError, code="invalid-request", status=422, title="The request is invalid"): ...


class MalformedBody(InvalidRequest, code="malformed-body", status=400, title="The body cannot be read"): ...


class UnsupportedMediaType(
    InvalidRequest, code="unsupported-media-type", status=415, title="The content type is not supported"
): ...


class BodyTooLarge(InvalidRequest, code="body-too-large", status=413, title="The body is too large"): ...


class TemplateRefused(InvalidRequest, code="template-refused", title="No VM can be created from this template"): ...


class ManifestRefused(InvalidRequest, code="manifest-refused", title="The manifests are refused"): ...


class SnapshotRefused(InvalidRequest, code="snapshot-refused", title="None of the VM's disks can be snapshotted"): ...


class PreloadRefused(InvalidRequest, code="preload-refused", title="The image cannot be preloaded"): ...


class Unschedulable(InvalidRequest, code="unschedulable", title="The nodes have no room for the VMs"): ...


class LeaseTooLong(InvalidRequest, code="lease-too-long", title="The lease is longer than the pool allows"): ...


class IdempotencyKeyReused(
    InvalidRequest, code="idempotency-key-reused", title="The idempotency key was used with a different body"
): ...


class MalformedRequest(EmberpoolError, code="malformed-request", status=400, title="The HTTP request is malformed"): ...


class RequestTimeout(
    EmberpoolError, code="request-timeout", status=408, title="The request took too long to arrive"
): ...


class TargetTooLong(EmberpoolError, code="target-too-long", status=414, title="The path and query are too long"): ...


class HostNotAllowed(
    EmberpoolError, code="host-not-allowed", status=421, title="The service does not answer under this name"
): ...


class HeadersTooLarge(EmberpoolError, code="headers-too-large", status=431, title="The headers are too large"): ...


class ExpectationFailed(
    EmberpoolError, code="expectation-failed", status=417, title="The service cannot do what the request expects"
): ...


class NotImplementedHere(
    EmberpoolError, code="not-implemented", status=501, title="The service does not implement what the request uses"
): ...


class VersionNotSupported(
    EmberpoolError, code="version-not-supported", status=505, title="The service does not speak this version of HTTP"
): ...


class Unauthenticated(EmberpoolError, code="unauthenticated", status=401, title="A valid token is required"): ...


class GuestMistaken(EmberpoolError, code="guest-mistaken", status=403, title="That is not this guest's"): ...


class GuestGone(EmberpoolError, code="guest-gone", status=410, title="The guest's VM has ended"): ...


class NotFound(EmberpoolError, code="not-found", status=404, title="The path does not exist"): ...


class PoolNotFound(NotFound, code="pool-not-found", title="The pool does not exist"): ...


class SnapshotNotFound(NotFound, code="snapshot-not-found", title="The snapshot does not exist"): ...


class PreloadNotFound(NotFound, code="preload-not-found", title="The preload does not exist"): ...


class ClaimNotFound(NotFound, code="claim-not-found", title="The claim does not exist"): ...


class NodeNotFound(NotFound, code="node-not-found", title="The node does not exist"): ...


class VmNotFound(NotFound, code="vm-not-found", title="The VM does not exist"): ...


class MethodNotAllowed(
    EmberpoolError, code="method-not-allowed", status=405, title="The path does not support this method"
):
    """`allowed`: the methods that the path supports."""

    def __init__(self, detail: str, *, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self.allowed = tuple(allowed)


class Conflict(EmberpoolError, code="conflict", status=409, title="The current state does not allow this"): ...


class PoolBeingDeleted(Conflict, code="pool-being-deleted", title="The pool is being deleted"): ...


class SnapshotBeingDeleted(Conflict, code="snapshot-being-deleted", title="The snapshot is being deleted"): ...


class SnapshotInUse(Conflict, code="snapshot-in-use", title="The snapshot is in use"): ...


class PreloadBeingDeleted(Conflict, code="preload-being-deleted", title="The preload is being deleted"): ...


class PreloadInUse(Conflict, code="preload-in-use", title="The preload is in use"): ...


class VmClaimed(Conflict, code="vm-claimed", title="The VM is claimed"): ...


class GuestReplaced(Conflict, code="guest-replaced", title="Another boot of the VM has taken this guest's place"): ...


class GuestConflict(Conflict, code="guest-conflict", title="Two guests have the same token"): ...


class NoConsoleLog(Conflict, code="no-console-log", title="The VM has no console log"): ...


class ClaimEnded(Conflict, code="claim-ended", title="The claim has ended"): ...


class PreconditionFailed(
    EmberpoolError, code="precondition-failed", status=412, title="The resource is not the one that If-Match names"
):
    """`version` is what If-Match would have to name; None: the resource does not exist."""

    def __init__(self, detail: str, *, problems: Sequence[FieldProblem] = (), version: str | None = None) -> None:
        super().__init__(detail, problems=problems)
        self.version = version


class Unavailable(EmberpoolError, code="unavailable", status=503, title="Not available at the moment"): ...


class Overloaded(Unavailable, code="overloaded", title="The service has too much to do"): ...


class NoWarmVm(Unavailable, code="no-warm-vm", title="No VM is ready"): ...


class NoPath(Unavailable, code="no-path", title="No start path is available"): ...


class ChosenPathGone(NoPath):
    """The chosen path was available a moment ago. Choosing again may find another one."""


class DeadlineTooShort(
    Unavailable, code="deadline-too-short", title="No start path is fast enough for the deadline"
): ...


class TooManyStreams(Unavailable, code="too-many-streams", title="The process serves as many streams as it may"): ...


class TooManyLists(
    Unavailable, code="too-many-lists", title="The process reads as many lists as it may, and others wait"
): ...


class OutcomeUnknown(
    Unavailable, code="outcome-unknown", status=503, title="It is not known yet whether the claim was made"
):
    """Postgres was lost while it committed the claim, and does not say yet what became of it."""

    @classmethod
    def of_claim(cls, claim_id: UUID, *, keyed: bool) -> Self:
        find_out = "send the same request with the same Idempotency-Key" if keyed else f"GET /v1/claims/{claim_id}"
        return cls(
            "the database was lost while it committed the claim, so that the claim may have been made or not. "
            f"If it was, its id is {claim_id}; to find out, {find_out} in a moment",
            retry_after=2.0,
        )


class InstallationWaits(
    Unavailable, code="installation-waits", title="It is not certain whose the VMs in the cluster are"
): ...


class DatabaseUnavailable(Unavailable, code="database-unavailable", title="The database is not available"): ...


class DatabaseRefused(DatabaseUnavailable):
    """The database does not accept the service's user or password. It may again: passwords are rotated."""


class DatabaseLost(DatabaseUnavailable):
    """The connection was lost, or the answer did not come in time: what was sent may have been committed."""


class ClusterUnavailable(Unavailable, code="cluster-unavailable", title="The cluster is not available"): ...


class ClusterError(EmberpoolError, code="cluster-error", status=502, title="The cluster returned an error"): ...


class ClusterRefused(ClusterError, code="template-refused", status=422, title="The cluster refuses the object"): ...


class ClusterForbidden(
    ClusterError, code="cluster-forbidden", status=503, title="The cluster does not permit the request"
):
    """A right or a quota is missing. Somebody has to give it; then the same request succeeds."""


class ClusterConflict(
    ClusterError, code="cluster-conflict", status=409, title="The object in the cluster was changed by someone else"
): ...


class ClusterNotFound(
    ClusterError, code="cluster-object-not-found", status=404, title="The object does not exist in the cluster"
): ...


class WatchExpired(ClusterError, code="watch-expired", title="The watch is too old to continue"): ...


class IllegalTransition(EmberpoolError, code="illegal-transition", title="The change of state is not allowed"): ...
