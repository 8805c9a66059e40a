"""What a guest is answered, from what is known of it. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from app.domain.handovers import HANDOVER_OVER
from app.domain.states import VM_ENDED, ClaimState, VmState
from app.errors import EmberpoolError, GuestConflict, GuestGone, GuestReplaced
from app.store.guests import GuestFacts

LATE_SECONDS: Final = 10.0
"""A request that a guest sent before it was restarted may arrive so long after the hello of the next."""
_LEAVING: Final = frozenset({VmState.RELEASING, VmState.FAILED, *VM_ENDED})


class Event(StrEnum):
    CLAIMED = "claimed"
    RENEWED = "renewed"
    RELEASING = "releasing"


@dataclass(frozen=True, slots=True)
class Look:
    """A guest's request. `known`: the claim that it knows of, with its lease's end in whole seconds of Unix time."""

    boot_id: str
    known: UUID | None = None
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """`seconds`: until the VM is removed, of RELEASING."""

    event: Event
    claim_id: UUID
    seconds: float = 0.0


def next_message(guest: GuestFacts, look: Look) -> Message | None:
    """What the guest does not know yet; None: nothing."""
    if guest.claim_id is None:
        return None
    if guest.vm_state is VmState.RELEASING:
        if guest.told_id == guest.claim_id:
            return Message(Event.RELEASING, guest.claim_id, max(0.0, guest.removal_seconds))
        return None
    if guest.vm_state is not VmState.CLAIMED or guest.claim_state is not ClaimState.BOUND:
        return None
    if look.known != guest.claim_id:
        if guest.settled_id == guest.claim_id or guest.handover in HANDOVER_OVER:
            return None
        return Message(Event.CLAIMED, guest.claim_id)
    if look.lease is not None and guest.lease_expires_at is not None and look.lease != lease_end(guest):
        return Message(Event.RENEWED, guest.claim_id)
    return None


def lease_end(guest: GuestFacts) -> int:
    return int(guest.lease_expires_at.timestamp()) if guest.lease_expires_at is not None else 0


def why_refused(guest: GuestFacts, boot_id: str | None, *, hello: bool = False) -> EmberpoolError | None:
    """Why the guest is not served. A GuestConflict that is not written down yet shows two guests with one token."""
    if guest.vm_state in _LEAVING and not (guest.vm_state is VmState.RELEASING and guest.told_id == guest.claim_id):
        return GuestGone(f"VM {guest.vm_name} has ended, and its token with it: nothing is handed over any more")
    if guest.conflict is not None:
        return GuestConflict(guest.conflict)
    if boot_id is None or boot_id == guest.boot_id:
        return None
    if boot_id in guest.former_boots:
        since = (guest.now - guest.hello_at).total_seconds() if guest.hello_at is not None else 0.0
        if since < LATE_SECONDS and not hello:
            return GuestReplaced(f"the guest of VM {guest.vm_name} was started anew, and this one's time is over")
        return GuestConflict(
            f"two guests have the token of VM {guest.vm_name}, so that its disk was copied: nothing is handed over to either. "
            "Release the claim and take another VM; give each copy an identity disk of its own"
        )
    return (
        None
        if hello
        else GuestReplaced(f"the guest of VM {guest.vm_name} with this boot id has not said hello; say hello first")
    )
