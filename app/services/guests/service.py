"""The guest's side of a claim: hello, the wait for something to fetch, and what became of it.

A guest is known by its token alone, and the token opens the things of its own VM and nothing else.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from uuid import UUID

import structlog
from typing_extensions import override

from app.background import PartHealth
from app.concurrency import first_of
from app.domain.handovers import cut_output
from app.errors import (
    ClaimEnded,
    EmberpoolError,
    GuestConflict,
    GuestMistaken,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from app.lifecycle.readiness import follow_ready, make_ready
from app.services.guests.answers import Event, Look, Message, next_message, why_refused
from app.services.handovers.sealing import Sealer, Unreadable
from app.services.handovers.waiting import Waiting
from app.store import events, guests
from app.store.claims import handovers
from app.store.database import Database, Tx
from app.store.guests import GuestFacts
from app.store.notices import Topic, notify
from app.store.vms import observed
from app.telemetry import GUESTS_REFUSED, GUESTS_WAITING, HANDOVER_FAILURES, HANDOVER_SECONDS

POLL_SECONDS = 60.0
_SWEEP_SECONDS = 1.0
_DUE_AT_ONCE = 1000
_TIMED_OUT = frozenset({124, 137})
_INTERRUPTED = 130
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """What a guest is told. `data`: JSON text, of CLAIMED if the claim hands something over; in no representation."""

    message: Message
    guest: GuestFacts
    data: bytes | None = None

    @override
    def __repr__(self) -> str:
        return f"Told({self.message!r})"


class GuestService:
    """The guests of one process. They are woken by notices, and by a look once a second that finds what a lost notice named."""

    def __init__(self, db: Database, sealer: Sealer, *, max_waiting: int) -> None:
        self.health = PartHealth("guests")
        self.waiting = Waiting()
        self._db = db
        self._sealer = sealer
        self._max_waiting = max_waiting

    async def hello(self, token: str, boot_id: str, vm: UUID | None) -> GuestFacts:
        """The guest is up. Raises what `next` raises, and GuestMistaken where the token is another VM's."""
        digest = _digest(token)
        async with self._db.begin() as tx:
            guest = await guests.by_token(tx, digest, lock=True)
            refusal = _why_unknown(guest, vm)
            if guest is not None and refusal is None:
                refusal = why_refused(guest, boot_id, hello=True)
            if guest is not None and refusal is None:
                await guests.greet(tx, guest.vm_id, boot_id)
                if boot_id != guest.boot_id:
                    await events.record(tx, "vm.hello", pool_id=guest.pool_id, vm_id=guest.vm_id, boot_id=boot_id)
        if guest is None or refusal is not None:
            raise await self._refuse(digest, guest, refusal or _unknown())
        await self._make_ready(guest.vm_id)
        return guest

    async def next(self, token: str, look: Look) -> Told | None:
        """What the guest is to know, as soon as there is anything; None after a minute without.

        Raises Unauthenticated, GuestGone, GuestReplaced, GuestConflict, Overloaded, Unavailable at the stop, DatabaseUnavailable.
        """
        digest, looked_at = _digest(token), self.waiting.now
        ends_at = looked_at + POLL_SECONDS
        async with self._db.once() as tx:
            guest = await guests.by_token(tx, digest)
        refusal = _unknown() if guest is None else why_refused(guest, look.boot_id)
        if guest is None or refusal is not None:
            raise await self._refuse(digest, guest, refusal or _unknown())
        if next_message(guest, look) is not None and (told := await self._tell(digest, look)) is not None:
            return told
        if len(self.waiting) >= self._max_waiting:
            raise Overloaded("as many guests wait here as may; ask again in a moment", retry_after=5)
        while await self.waiting.wait(guest.vm_id, ends_at - self.waiting.now, looked_at=looked_at):
            looked_at = self.waiting.now
            if (told := await self._tell(digest, look)) is not None:
                return told
        if self.waiting.closed:
            raise Unavailable("this process stops; ask again in a moment", retry_after=2)
        return None

    async def handed_over(self, token: str, claim_id: UUID, exit_code: int, output: bytes) -> None:
        """The hooks have run. What was handed over is erased. Repeating it changes nothing.

        Raises ClaimEnded, GuestMistaken where the claim is not the guest's, and what `next` raises.
        """
        async with self._db.begin() as tx:
            guest = await self._own(tx, token, claim_id)
            if guest.settled_id == claim_id:
                return
            reason = _why_failed(exit_code)
            await guests.note_settled(tx, guest.vm_id, claim_id)
            had = await handovers.settle(tx, claim_id, exit_code=exit_code, output=cut_output(output), reason=reason)
            type_ = "claim.handover_failed" if reason else "claim.handed_over"
            ids = {"pool_id": guest.pool_id, "vm_id": guest.vm_id, "claim_id": claim_id}
            await events.record(tx, type_, **ids, exit_code=exit_code)
            await handovers.notify_over(tx, [claim_id] if had else [])
        if reason and had:
            HANDOVER_FAILURES.labels(reason=_kind_of(exit_code)).inc()
        log.info("handover.done", claim=str(claim_id), vm=guest.vm_name, exit_code=exit_code)

    async def released(self, token: str, claim_id: UUID) -> None:
        """The guest is ready for its end, which need not be waited for any more."""
        async with self._db.begin() as tx:
            guest = await guests.by_token(tx, _digest(token), lock=True)
            if guest is None:
                raise _unknown()
            if guest.told_id == claim_id and await guests.remove_now(tx, guest.vm_id):
                await notify(tx, Topic.REMOVE)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: finds what lost notices named, once a second. Then ends the wait of all: other processes serve them."""
        while not stop.is_set():
            with self.health.attempt():
                async with self._db.once() as tx:
                    due = await handovers.due_guests(tx, limit=_DUE_AT_ONCE)
                self.waiting.wake_each(due)
            self.waiting.forget()
            GUESTS_WAITING.set(len(self.waiting))
            await first_of(stop.wait(), timeout=_SWEEP_SECONDS)
        self.waiting.close()

    async def _tell(self, digest: bytes, look: Look) -> Told | None:
        """What there is now, written down as told."""
        async with self._db.begin() as tx:
            guest = await guests.by_token(tx, digest, lock=True)
            if guest is None or why_refused(guest, look.boot_id) is not None:
                return None
            message = next_message(guest, look)
            if message is None or message.event is not Event.CLAIMED:
                return Told(message, guest) if message is not None else None
            data = self._open(guest, message.claim_id)
            if isinstance(data, Unreadable):
                await handovers.explain(tx, message.claim_id, reason=f"it cannot be decrypted: {data.detail}")
            elif not await self._note_told(tx, guest, message.claim_id):
                return None  # the claim has ended at the same moment
        if isinstance(data, Unreadable):
            HANDOVER_FAILURES.labels(reason="unreadable").inc()
            log.error("handover.unreadable", claim=str(message.claim_id), reason=data.detail)
            raise Unavailable("what the claim hands over cannot be read here; ask again in a moment", retry_after=5)
        return Told(message, guest, data)

    async def _note_told(self, tx: Tx, guest: GuestFacts, claim_id: UUID) -> bool:
        """False where there is nothing to hand over any more."""
        if guest.handover is not None:
            taken = await handovers.take(tx, claim_id)
            if taken is None:
                return False
            if taken.is_first:
                ids = {"pool_id": guest.pool_id, "vm_id": guest.vm_id, "claim_id": claim_id}
                await events.record(tx, "claim.handover_taken", **ids)
                HANDOVER_SECONDS.observe(taken.seconds)
        await guests.note_told(tx, guest.vm_id, claim_id)
        return True

    def _open(self, guest: GuestFacts, claim_id: UUID) -> bytes | Unreadable | None:
        if guest.sealed is None:
            return None
        try:
            return self._sealer.open(guest.sealed, claim_id)
        except Unreadable as error:
            return error

    async def _own(self, tx: Tx, token: str, claim_id: UUID) -> GuestFacts:
        guest = await guests.by_token(tx, _digest(token), lock=True)
        if guest is None:
            raise _unknown()
        if guest.told_id != claim_id:
            raise GuestMistaken(f"claim {claim_id} was not handed over to VM {guest.vm_name}")
        if guest.conflict is not None:
            raise GuestConflict(guest.conflict)
        if guest.claim_id != claim_id or guest.claim_state != "bound":
            raise ClaimEnded(f"claim {claim_id} has ended; what its hooks did counts for nothing")
        return guest

    async def _make_ready(self, vm_id: UUID) -> None:
        """A VM that only lacked the hello is warm. Otherwise the informer, which looks for a hello after its own commit, makes it
        so: at least one of the two sees both.
        """
        async with self._db.begin() as tx:
            if not await guests.is_warm(tx, vm_id):
                return
            booted = list((await observed.by_ids(tx, [vm_id])).values())
            pools = await make_ready(tx, booted)
        if pools:
            async with self._db.begin() as tx:
                await follow_ready(tx, pools, booted)

    async def _refuse(self, digest: bytes, guest: GuestFacts | None, error: EmberpoolError) -> EmberpoolError:
        """Writes a refusal down, at most once a minute for a token, and what it shows of the VM. Returns the error."""
        GUESTS_REFUSED.labels(reason=error.code).inc()
        if guest is None:
            return error
        async with self._db.begin() as tx:
            new = isinstance(error, GuestConflict) and await guests.note_conflict(tx, guest.vm_id, error.detail)
            if new and guest.claim_id is not None and await handovers.fail(tx, guest.claim_id, reason=error.detail):
                await handovers.notify_over(tx, [guest.claim_id])
                HANDOVER_FAILURES.labels(reason="conflict").inc()
            if await guests.note_refusal(tx, digest) is not None or new:
                ids = {"pool_id": guest.pool_id, "vm_id": guest.vm_id}
                await events.record(tx, "vm.guest_refused", **ids, code=error.code, reason=error.detail)
                log.warning("guest.refused", vm=guest.vm_name, code=error.code, reason=error.detail)
        return error


def _why_unknown(guest: GuestFacts | None, vm: UUID | None) -> EmberpoolError | None:
    if guest is None:
        return _unknown()
    if vm is not None and vm != guest.vm_id:
        return GuestMistaken("the token belongs to another VM than the guest says it is: each VM has a disk of its own")
    return None


def _unknown() -> Unauthenticated:
    return Unauthenticated(
        "no VM has this token; send the one from the identity disk as `Authorization: Bearer <token>`"
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _why_failed(exit_code: int) -> str | None:
    if exit_code == 0:
        return None
    if exit_code in _TIMED_OUT:
        return f"a hook took longer than it may, and was ended (exit code {exit_code})"
    if exit_code == _INTERRUPTED:
        return "the guest program was started anew while the hooks ran"
    return f"a hook ended with exit code {exit_code}"


def _kind_of(exit_code: int) -> str:
    return "hook-timeout" if exit_code in _TIMED_OUT else "interrupted" if exit_code == _INTERRUPTED else "hook-failed"
