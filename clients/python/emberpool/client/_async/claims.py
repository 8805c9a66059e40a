"""Claims: obtained, waited for, kept for as long as they are needed, and released on every way out."""

import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

from emberpool.client._async.background import Background, Event, pause, to_its_end, to_thread
from emberpool.client._async.consoles import AsyncConsoles
from emberpool.client._async.transport import TIMEOUT_SECONDS
from emberpool.client._patience import Patience
from emberpool.client._vm import Finished, VmFacts
from emberpool.client.errors import (
    ClaimLost,
    Conflict,
    EmberpoolError,
    NotFound,
    Refused,
    Unauthenticated,
    Unreachable,
)
from emberpool.client.schemas import (
    ClaimBody,
    ClaimView,
    GuestSpec,
    HandoverBody,
    Placement,
    Prefer,
    StartFrom,
    StartPath,
    WarmWhen,
)

_LOOK_SECONDS: Final = 10.0
"""How long one look at a pending claim waits. The VM itself is reported at once."""
_MOST_SECONDS: Final = 60.0
"""The longest that one request may wait."""
_LAST_TRY_SECONDS: Final = 2.0
_SHARE: Final = 3
"""A lease is renewed when a third of it is over, so that two renewals may fail."""
_SOON_SECONDS: Final = 5.0


class AsyncVm(VmFacts):
    """A claimed VM. It is yours until its claim is released, or its lease ends because it is not renewed."""

    def __init__(self, client: "AsyncClaims", claim: ClaimView) -> None:
        super().__init__(claim)
        self._client = client

    async def refresh(self) -> ClaimView:
        """Reads the claim again: its addresses, and its restarts. Raises ClaimLost if it has ended."""
        self.claim = await self._client.get_claim(self.id)
        if self.claim["ended_at"] is not None:
            self.lost = self.lost or f"claim {self.id} is {self.claim['state']}: {self.claim['reason']}"
            raise ClaimLost(self.lost)
        return self.claim

    async def renew(self, lease_seconds: int | None = None) -> ClaimView:
        """The lease then ends `lease_seconds` from now; by default as long as the claim's own."""
        body = {"lease_seconds": lease_seconds} if lease_seconds is not None else None
        self.claim = await self._client.renew_claim(self.id, cast("Any", body))
        return self.claim

    async def release(self) -> None:
        """Ends the claim; the VM is destroyed. A claim that has ended, or is not known any more, is left as it is."""
        with suppress(NotFound):
            self.claim = await self._client.release_claim(self.id)

    async def run(
        self,
        command: str,
        *,
        user: str,
        identity: str | Path | None = None,
        port: int = 22,
        known_hosts: str | Path | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of a process in a thread, which no cancellation reaches
    ) -> Finished:
        """Runs a command of the VM's shell by the system's `ssh` and returns how it ended, with what it wrote.

        It needs what `ssh_command` needs: an image that runs an SSH server and knows the key, a network that reaches the cluster's
        pods, and the program `ssh` here. Raises EmberpoolError where there is no such program or no address, and
        TimeoutError (the command in the VM may go on then).
        """
        words = self.ssh_command(command, user=user, identity=identity, port=port, known_hosts=known_hosts)
        return await to_thread(_run, words, timeout)


class AsyncClaims(AsyncConsoles):
    """Adds claims that wait, are kept, and are released to the operations."""

    _pause = staticmethod(pause)

    @asynccontextmanager
    async def claim(
        self,
        pool: str | None = None,
        *,
        vm: Mapping[str, Any] | None = None,
        wait: float = 60.0,
        lease_seconds: int | None = None,
        labels: Mapping[str, str] | None = None,
        paths: Sequence[StartPath] | None = None,
        prefer: Prefer | None = None,
        start_from: StartFrom | None = None,
        placement: Placement | None = None,
        guest: GuestSpec | None = None,
        handover: HandoverBody | None = None,
        warm_when: WarmWhen | None = None,
        deadline_seconds: float | None = None,
        remember: bool | None = None,
        allow_unschedulable: bool | None = None,
        key: str | None = None,
        renew: bool = True,
    ) -> AsyncIterator[AsyncVm]:
        """A VM of a pool, or one that `vm` describes, for the length of the `with`. It is released on every way out of it.

        `wait`: how many seconds to wait for a VM. `renew`: keep the lease for as long as the body runs; the claim then ends
        within one lease after this process was killed. `key`: the idempotency key, by which a program that begins anew finds
        its claim again. The others are the fields of the claim's body.

        Raises NoVm if there was none in time, Refused, Unreachable; and ClaimLost at the end if the claim ended meanwhile
        (`lost` of the VM tells so at once).
        """
        body = {
            "pool": pool,
            "vm": vm,
            "lease_seconds": lease_seconds,
            "labels": labels,
            "paths": paths,
            "prefer": prefer,
            "start_from": start_from,
            "placement": placement,
            "guest": guest,
            "handover": handover,
            "warm_when": warm_when,
            "deadline_seconds": deadline_seconds,
            "remember": remember,
            "allow_unschedulable": allow_unschedulable,
        }
        given = cast("ClaimBody", {name: value for name, value in body.items() if value is not None})
        claim = await self.obtain(given, wait=wait, key=key)
        found, stop = AsyncVm(self, claim), Event()
        try:
            found.require_bound(wait)
            async with Background(lambda: self._keep(found, stop, renew=renew), stop):
                yield found
        except BaseException as error:
            await to_its_end(self._release_after, found, error)
            raise
        await to_its_end(found.release)
        if found.lost is not None:
            raise ClaimLost(found.lost)

    async def obtain(
        self,
        body: ClaimBody,
        *,
        wait: float = 0.0,
        key: str | None = None,
        on_wait: Callable[[ClaimView], None] | None = None,
    ) -> ClaimView:
        """The claim once it is bound, or as it is when `wait` seconds are over or it has ended.

        A connection that breaks, and an outcome that the service does not know, are repeated with the same key (by default a new
        one), which finds a claim that was made. While no VM would come at all, it is tried again until the wait is over.
        Whatever breaks it off, such as Ctrl-C, also releases the claim. `on_wait` is told the claim each time it was looked
        at and still waits.
        """
        key = key or str(uuid.uuid4())
        give_up = time.monotonic() + wait
        claim: ClaimView | None = None
        if wait:
            body = cast("ClaimBody", {**body, "wait_seconds": min(wait, _MOST_SECONDS)})
        try:
            claim = await self._submit(body, key, Patience(self.patience, wait), _answer_seconds(body, wait))
            while claim["state"] == "pending" and (left := give_up - time.monotonic()) > 0:
                if on_wait is not None:
                    on_wait(claim)
                claim = await self.get_claim(claim["id"], wait_seconds=min(left, _LOOK_SECONDS))
        except BaseException as error:
            await to_its_end(self._give_up, body, key, claim, error)
            raise
        return claim

    async def _submit(
        self, body: ClaimBody, key: str, patience: Patience, seconds: float = TIMEOUT_SECONDS
    ) -> ClaimView:
        """`seconds`: how long to wait for the answer."""
        found: ClaimView = await self.request(
            "POST", "/v1/claim", body=body, headers={"Idempotency-Key": key}, patience=patience, timeout=seconds
        )
        return found

    async def _give_up(self, body: ClaimBody, key: str, claim: ClaimView | None, error: BaseException) -> None:
        """Releases the claim, which the key finds where its answer was not read. One that still waits is not found by then: the
        service gives up its place, as its client has disconnected.
        """
        if claim is None and isinstance(error, EmberpoolError):
            return  # refused, or the service is away: then it cannot be told, and its place is given up there
        with suppress(EmberpoolError):
            claim = claim or await self._submit(body, key, Patience(0), _LAST_TRY_SECONDS)
            if claim["ended_at"] is None:
                await self.release_claim(claim["id"])

    async def _release_after(self, vm: AsyncVm, error: BaseException) -> None:
        """The error of the body is what the caller has to hear of; that of the release is a note to it."""
        try:
            await vm.release()
        except EmberpoolError as failed:
            error.add_note(f"The claim {vm.id} could not be released, and ends with its lease: {failed.detail}")

    async def _keep(self, vm: AsyncVm, stop: Event, *, renew: bool) -> None:
        """Renews the lease until `stop` is set or the claim has ended."""
        if not renew:
            return
        good = time.monotonic()
        seconds = vm.claim["lease_seconds"] / _SHARE
        while vm.lost is None and not await self._pause(stop, seconds):
            asked = time.monotonic()
            try:
                await vm.renew()
                good, seconds = asked, vm.claim["lease_seconds"] / _SHARE
            except (NotFound, Conflict, Unauthenticated) as error:
                vm.lost = f"the lease of claim {vm.id} was not renewed: {error.detail}"
            except (Refused, Unreachable) as error:
                seconds = min(_SOON_SECONDS, vm.claim["lease_seconds"] / _SHARE)
                if time.monotonic() - good > vm.claim["lease_seconds"]:
                    vm.lost = f"the lease of claim {vm.id} ended, and could not be renewed: {error.detail}"


def _answer_seconds(body: ClaimBody, wait: float) -> float:
    """How long the answer to a claim may take: also while the guest's hooks run, if it waits for them."""
    handover: HandoverBody = body.get("handover") or {}
    hooks = (handover.get("wait_seconds") or _MOST_SECONDS) if handover.get("wait") else 0.0
    return TIMEOUT_SECONDS + min(wait, _MOST_SECONDS) + hooks


def _run(words: list[str], timeout: float | None) -> Finished:
    try:
        done = subprocess.run(  # noqa: S603 - the caller's command
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise EmberpoolError("there is no program ssh on this machine; install an OpenSSH client") from error
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"the command took longer than {timeout} s") from error
    return Finished(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
