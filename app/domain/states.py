"""The states of VMs, claims and pools, and the transitions between them.

A VM: `planned -> creating -> booting -> ready -> claimed -> releasing -> deleted`.

- `planned`: the row exists; the cluster was not asked for the VM yet.
- `creating`: a worker is asking the cluster for it.
- `booting`: the cluster has the object.
- `ready`: it waits in the queue of warm VMs. A VM that is no longer warm goes back to `booting` and has a short time to recover.
- `claimed`: it belongs to a claim.
- `releasing`: it is being deleted from the cluster.
- `deleted`: its object is gone. A planned VM that is no longer needed is `deleted` at once, unless the cluster was asked for it
  before: that answer may have been lost, so the object is removed first.
- `failed`: the VM does not work. `releasing` follows, because its object still has to be removed.
- `lost`: it left the cluster without us.

A claim: `pending -> bound -> released | expired | failed`. It goes back from `bound` to `pending` where its VM died right after
the claim and no other VM is ready.
"""

from enum import StrEnum

from app.errors import IllegalTransition


class VmState(StrEnum):
    PLANNED = "planned"
    CREATING = "creating"
    BOOTING = "booting"
    READY = "ready"
    CLAIMED = "claimed"
    RELEASING = "releasing"
    DELETED = "deleted"
    FAILED = "failed"
    LOST = "lost"


class ClaimState(StrEnum):
    PENDING = "pending"
    BOUND = "bound"
    RELEASED = "released"
    EXPIRED = "expired"
    FAILED = "failed"


class PoolPhase(StrEnum):
    """`ready`: has as many ready VMs as its size. `filling`: has fewer, and VMs are being created. `drained`: has fewer, and no VM is
    being created until `replenish`. `degraded`: has fewer ready VMs than `min_available`, or none of the VMs on their way gets on,
    or the cluster takes no creates, or its size is more than the nodes can ever run. `stalled`: creates no VM after repeated failures,
    until `resume`. `paused`, `deleting`: on request.
    """

    READY = "ready"
    FILLING = "filling"
    DRAINED = "drained"
    DEGRADED = "degraded"
    STALLED = "stalled"
    PAUSED = "paused"
    DELETING = "deleting"


_VM = VmState
VM_TRANSITIONS: dict[VmState, frozenset[VmState]] = {
    _VM.PLANNED: frozenset({_VM.CREATING, _VM.RELEASING, _VM.FAILED, _VM.DELETED}),
    _VM.CREATING: frozenset({_VM.BOOTING, _VM.PLANNED, _VM.RELEASING, _VM.FAILED, _VM.LOST}),
    _VM.BOOTING: frozenset({_VM.READY, _VM.RELEASING, _VM.FAILED, _VM.LOST}),
    _VM.READY: frozenset({_VM.BOOTING, _VM.CLAIMED, _VM.RELEASING, _VM.FAILED, _VM.LOST}),
    _VM.CLAIMED: frozenset({_VM.RELEASING, _VM.FAILED, _VM.LOST}),
    _VM.RELEASING: frozenset({_VM.DELETED}),
    _VM.FAILED: frozenset({_VM.RELEASING}),
    _VM.LOST: frozenset(),
    _VM.DELETED: frozenset(),
}

_CL = ClaimState
CLAIM_TRANSITIONS: dict[ClaimState, frozenset[ClaimState]] = {
    _CL.PENDING: frozenset({_CL.BOUND, _CL.RELEASED, _CL.EXPIRED, _CL.FAILED}),
    _CL.BOUND: frozenset({_CL.PENDING, _CL.RELEASED, _CL.EXPIRED, _CL.FAILED}),
    _CL.RELEASED: frozenset(),
    _CL.EXPIRED: frozenset(),
    _CL.FAILED: frozenset(),
}

VM_ENDED = frozenset({_VM.DELETED, _VM.LOST})
CLAIM_ENDED = frozenset({_CL.RELEASED, _CL.EXPIRED, _CL.FAILED})


def check_vm_transition(old: VmState, new: VmState) -> None:
    """Raises IllegalTransition where the table does not allow it."""
    if new not in VM_TRANSITIONS[old]:
        raise IllegalTransition(f"a VM cannot go from {old} to {new}")


def check_claim_transition(old: ClaimState, new: ClaimState) -> None:
    """Raises IllegalTransition where the table does not allow it."""
    if new not in CLAIM_TRANSITIONS[old]:
        raise IllegalTransition(f"a claim cannot go from {old} to {new}")
