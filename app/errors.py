"""The one error tree. A class owns its stable code, its HTTP status and its title; an instance owns the sentence.

EmberpoolError                     500 internal-error
|-- InvalidRequest                 422 invalid-request          a field is wrong; `problems` names each
|   |-- MalformedBody              400 malformed-body
|   |-- UnsupportedMediaType       415 unsupported-media-type
|   |-- BodyTooLarge               413 body-too-large
|   |-- TemplateRefused            422 template-refused         the cluster, or our rules, refuse the VM template
|   |-- ManifestRefused            422 manifest-refused         one of several documents, and so all of them
|   |-- SnapshotRefused            422 snapshot-refused         none of the VM's disks can be snapshotted
|   |-- PreloadRefused             422 preload-refused          the cluster refuses what would bring the image near
|   |-- Unschedulable              422 unschedulable            the nodes of the cluster could never take the VMs
|   |-- LeaseTooLong               422 lease-too-long
|   `-- IdempotencyKeyReused       422 idempotency-key-reused
|-- Unauthenticated                401 unauthenticated
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
|   |-- PreloadInUse               409 preload-in-use           a pool starts from it, or a VM is being made from it
|   `-- ClaimEnded                 409 claim-ended
|-- Unavailable                    503 unavailable              try again after `retry_after` seconds
|   |-- NoWarmVm                   503 no-warm-vm
|   |-- NoPath                     503 no-path                  a claim that describes its VM, and no way to one
|   |-- DeadlineTooShort           503 deadline-too-short       there are ways, each measured to take longer
|   |-- DatabaseUnavailable        503 database-unavailable
|   `-- ClusterUnavailable         503 cluster-unavailable      refused connections, time-outs, 429, 5xx
|-- ClusterError                   502 cluster-error            the cluster's answer, translated once, in cluster/
|   |-- ClusterRefused             422 template-refused         400 and 422: the object itself is wrong
|   |-- ClusterForbidden           502 cluster-forbidden        401 and 403: a right or a quota is missing
|   |-- ClusterConflict            409 cluster-conflict         another writer, or another UID under the name
|   |-- ClusterNotFound            404 cluster-object-not-found
|   `-- WatchExpired               502 watch-expired            410: list again
`-- IllegalTransition              500 illegal-transition       a bug of ours
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing wrong with one field: `field` is a dotted path from the body's root (empty: the body itself)."""

    field: str
    message: str


class EmberpoolError(Exception):
    """`detail` is a sentence for the caller: what is wrong, where, and what to do.

    `retry_after` is in seconds, and becomes the `Retry-After` header where it is set.
    """

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(
        self,
        detail: str,
        *,
        problems: Sequence[FieldProblem] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = tuple(problems)
        self.retry_after = retry_after


class InvalidRequest(EmberpoolError):
    code = "invalid-request"
    status = 422
    title = "The request is not valid"


class MalformedBody(InvalidRequest):
    code = "malformed-body"
    status = 400
    title = "The body cannot be read"


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported-media-type"
    status = 415
    title = "The content type is not taken here"


class BodyTooLarge(InvalidRequest):
    code = "body-too-large"
    status = 413
    title = "The body is too large"


class TemplateRefused(InvalidRequest):
    code = "template-refused"
    title = "No VM can be made from this template"


class ManifestRefused(InvalidRequest):
    code = "manifest-refused"
    title = "The manifests are refused"


class SnapshotRefused(InvalidRequest):
    code = "snapshot-refused"
    title = "Nothing of this VM can be snapshotted"


class PreloadRefused(InvalidRequest):
    code = "preload-refused"
    title = "The image cannot be brought near like this"


class Unschedulable(InvalidRequest):
    code = "unschedulable"
    title = "The nodes have no room for it"


class LeaseTooLong(InvalidRequest):
    code = "lease-too-long"
    title = "The lease is longer than the pool allows"


class IdempotencyKeyReused(InvalidRequest):
    code = "idempotency-key-reused"
    title = "The idempotency key was used with another body"


class Unauthenticated(EmberpoolError):
    code = "unauthenticated"
    status = 401
    title = "A valid token is needed"


class NotFound(EmberpoolError):
    code = "not-found"
    status = 404
    title = "There is nothing here"


class PoolNotFound(NotFound):
    code = "pool-not-found"
    title = "There is no such pool"


class SnapshotNotFound(NotFound):
    code = "snapshot-not-found"
    title = "There is no such snapshot"


class PreloadNotFound(NotFound):
    code = "preload-not-found"
    title = "There is no such preload"


class ClaimNotFound(NotFound):
    code = "claim-not-found"
    title = "There is no such claim"


class NodeNotFound(NotFound):
    code = "node-not-found"
    title = "There is no such node"


class VmNotFound(NotFound):
    code = "vm-not-found"
    title = "There is no such VM"


class MethodNotAllowed(EmberpoolError):
    code = "method-not-allowed"
    status = 405
    title = "This method is not taken here"


class Conflict(EmberpoolError):
    code = "conflict"
    status = 409
    title = "The state forbids it"


class PoolBeingDeleted(Conflict):
    code = "pool-being-deleted"
    title = "The pool is being deleted"


class SnapshotBeingDeleted(Conflict):
    code = "snapshot-being-deleted"
    title = "The snapshot is being deleted"


class SnapshotInUse(Conflict):
    code = "snapshot-in-use"
    title = "VMs start from this snapshot"


class PreloadBeingDeleted(Conflict):
    code = "preload-being-deleted"
    title = "The preload is being deleted"


class PreloadInUse(Conflict):
    code = "preload-in-use"
    title = "The preload is in use"


class ClaimEnded(Conflict):
    code = "claim-ended"
    title = "The claim has ended"


class Unavailable(EmberpoolError):
    code = "unavailable"
    status = 503
    title = "Not available right now"


class NoWarmVm(Unavailable):
    code = "no-warm-vm"
    title = "No VM is ready"


class NoPath(Unavailable):
    code = "no-path"
    title = "No path to such a VM is open"


class DeadlineTooShort(Unavailable):
    code = "deadline-too-short"
    title = "No path to such a VM is fast enough"


class DatabaseUnavailable(Unavailable):
    code = "database-unavailable"
    title = "The database does not answer"


class ClusterUnavailable(Unavailable):
    code = "cluster-unavailable"
    title = "The cluster does not answer"


class ClusterError(EmberpoolError):
    code = "cluster-error"
    status = 502
    title = "The cluster answered with an error"


class ClusterRefused(ClusterError):
    code = "template-refused"
    status = 422
    title = "The cluster refuses the object"


class ClusterForbidden(ClusterError):
    code = "cluster-forbidden"
    title = "The cluster forbids it"


class ClusterConflict(ClusterError):
    code = "cluster-conflict"
    status = 409
    title = "The cluster's object changed meanwhile"


class ClusterNotFound(ClusterError):
    code = "cluster-object-not-found"
    status = 404
    title = "The cluster has no such object"


class WatchExpired(ClusterError):
    code = "watch-expired"
    title = "The watch is too old to go on"


class IllegalTransition(EmberpoolError):
    code = "illegal-transition"
    title = "A state was to change in a way that is not allowed"
