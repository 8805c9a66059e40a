"""Clients of the service that know what they were told, and notice where two answers do not go together.

An errand is one claim's whole life: claimed under an idempotency key, asked again under the same key wherever no answer came,
held for a while, and released, or left to its lease. What every errand was answered goes into one ledger.
"""

import asyncio
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import aiohttp

from tests.support.patience import PATIENCE

_ANSWER_SECONDS: Final = 8.0
_PAUSE_SECONDS: Final = (0.02, 0.2)
_AWAY_SECONDS: Final = (0.1, 0.5)
_SLOWEST: Final = 10
_ENDED: Final = frozenset({"released", "expired", "failed"})


class Served(NamedTuple):
    """A request that was answered with a VM that was ready; `began` is of `time.monotonic`."""

    began: float
    seconds: float
    address: str
    wish: str = ""
    """Which VM it was for: a pool's name, or `vm`."""


@dataclass(slots=True)
class Ledger:
    """What all clients together were told. `outcomes` counts errands by how they ended, `statuses` answers to claims.

    `warm` has the requests that were answered with a VM that was ready; `waited` the seconds from sending a request to its
    answer for those whose claim had to wait for its VM.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    warm: list[Served] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)
    _claims_of_key: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _claims_of_vm: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _vms_of_claim: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _replaced: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)
    """Claims that a client holds now or left to their lease, and the VM of each."""

    def note(self, key: str, claim: dict[str, Any]) -> None:
        """A bound claim, as an answer to `key`."""
        vm = str(claim["vm"]["id"])  # the names of a VirtualMachinePool's VMs come back
        self._claims_of_key[key].add(claim["id"])
        self._claims_of_vm[vm].add(claim["id"])
        self._vms_of_claim[claim["id"]].add(vm)
        if claim["replacements"]:
            self._replaced.add(claim["id"])

    def note_time(self, claim: dict[str, Any], served: Served) -> None:
        self.paths[claim["path"]] += 1
        if (
            claim["bound_at"] != claim["created_at"]
        ):  # `timings.wait` may be 0 for a claim that stood in the queue for a moment
            self.waited.append(served.seconds)
            return
        self.warm.append(served)

    def slowest(self) -> list[Served]:
        """Of the warm ones, the slowest first."""
        return sorted(self.warm, key=lambda each: -each.seconds)[:_SLOWEST]

    def contradictions(self) -> list[str]:
        """Answers that cannot be true together."""
        found = [
            f"key {key} was answered with {len(ids)} claims: {sorted(ids)}"
            for key, ids in self._claims_of_key.items()
            if len(ids) > 1
        ]
        found += [
            f"VM {vm} was given to {len(ids)} claims: {sorted(ids)}"
            for vm, ids in self._claims_of_vm.items()
            if len(ids) > 1
        ]
        found += [
            f"claim {claim} was answered with {len(vms)} VMs and told of no replacement: {sorted(vms)}"
            for claim, vms in self._vms_of_claim.items()
            if len(vms) > 1 and claim not in self._replaced
        ]
        return found

    @property
    def keys(self) -> int:
        return len(self._claims_of_key)


@dataclass(frozen=True, slots=True)
class Habits:
    """How clients behave: seconds they hold a VM, how long they let a request wait, and the shares of the odd ones."""

    hold_seconds: tuple[float, float] = (0.05, 0.5)
    wait_seconds: float = 2.0
    lease_seconds: int = 600
    short_lease_seconds: int = 2
    forgetful: float = 0.1
    """These never release: their lease, a short one, does."""
    doubled: float = 0.1
    """These send each request twice at the same moment, through two replicas."""
    impatient: float = 0.0
    """These release a claim that they are told is pending."""
    give_up_seconds: float = PATIENCE


class Clients:
    """Runs errands against whichever of `addresses()` is drawn. The seed decides everything but the moments."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        addresses: Callable[[], Sequence[str]],
        pools: Sequence[str],
        *,
        seed: int,
        habits: Habits | None = None,
        wish: Callable[[random.Random], dict[str, Any]] | None = None,
    ) -> None:
        """`wish` draws what of a claim's body says which VM it is for; without it, one of `pools`."""
        self.ledger = Ledger()
        self._session = session
        self._addresses = addresses
        self._random = random.Random(seed)
        self._habits = habits or Habits()
        self._wish = wish or (lambda draw: {"pool": draw.choice(pools)})

    async def run(self, stop: asyncio.Event) -> None:
        """Errand after errand; the one under way at the stop is finished."""
        while not stop.is_set():
            await self.errand()

    async def errand(self) -> None:
        """One claim from its key to its end."""
        draw = self._random
        forgetful = draw.random() < self._habits.forgetful
        body = {
            **self._wish(draw),
            "wait_seconds": self._habits.wait_seconds,
            "lease_seconds": self._habits.short_lease_seconds if forgetful else self._habits.lease_seconds,
        }
        key = str(uuid.UUID(int=draw.getrandbits(128)))
        doubled, impatient = draw.random() < self._habits.doubled, draw.random() < self._habits.impatient
        claim = await self._claim(key, body, doubled=doubled, impatient=impatient)
        if claim is None:
            return
        self.ledger.held[claim["id"]] = claim["vm"]["name"]
        await asyncio.sleep(draw.uniform(*self._habits.hold_seconds))
        if forgetful:
            self.ledger.outcomes["left to its lease"] += 1
        elif await self._release(claim["id"]):
            self.ledger.outcomes["released"] += 1
            del self.ledger.held[claim["id"]]
        else:
            self.ledger.outcomes["not released in time"] += 1

    async def _claim(self, key: str, body: dict[str, Any], *, doubled: bool, impatient: bool) -> dict[str, Any] | None:
        """The bound claim; None where there was none in time. Whatever happens on the way, the key stays the same."""
        began = time.monotonic()
        while time.monotonic() - began < self._habits.give_up_seconds:
            asks = [self._ask("POST", "/v1/claim", json=body, headers={"Idempotency-Key": key}) for _ in range(2)]
            if not doubled:
                asks.pop().close()
            answers = await asyncio.gather(*asks)
            bound = None
            for status, claim, served in answers:
                self.ledger.statuses[_tell_answer(status, claim, served)] += 1
                if status == 201:
                    bound = claim
                    self.ledger.note(key, claim)
                    self.ledger.note_time(claim, served._replace(wish=str(body.get("pool", "vm"))))
            if bound is not None:
                return bound
            pending = next((claim["id"] for status, claim, _ in answers if status == 202), None)
            if pending is not None and impatient:
                ended = await self._release(pending)
                self.ledger.outcomes["released before it had its VM" if ended else "not released in time"] += 1
                return None
            if any(status == 200 for status, _, _ in answers):
                self.ledger.outcomes["ended before it was heard of"] += 1
                return None
            if any(status is not None and 400 <= status < 500 for status, _, _ in answers):
                self.ledger.outcomes[f"refused: {answers[0][1].get('code', answers[0][0])}"] += 1
                return None
            there = any(status is not None for status, _, _ in answers)
            await asyncio.sleep(self._random.uniform(*(_PAUSE_SECONDS if there else _AWAY_SECONDS)))
        self.ledger.outcomes["no VM in time"] += 1
        return None

    async def _release(self, claim_id: str) -> bool:
        """Asks until it is told that the claim has ended."""
        began = time.monotonic()
        while time.monotonic() - began < self._habits.give_up_seconds:
            status, claim, _ = await self._ask("DELETE", f"/v1/claims/{claim_id}")
            if status == 200 and claim["state"] in _ENDED:
                return True
            await asyncio.sleep(self._random.uniform(*_PAUSE_SECONDS))
        return False

    async def _ask(self, method: str, path: str, **request: Any) -> tuple[int | None, dict[str, Any], Served]:
        """Status, body, and how long it took; no status where the replica went away in the middle, or was not there."""
        addresses = self._addresses()
        began = time.monotonic()
        if not addresses:
            return None, {}, Served(began, 0.0, "")
        address = self._random.choice(addresses)
        timeout = aiohttp.ClientTimeout(total=self._habits.wait_seconds + _ANSWER_SECONDS)
        try:
            async with self._session.request(method, address + path, timeout=timeout, **request) as response:
                body = await response.json(content_type=None)
                return response.status, body, Served(began, time.monotonic() - began, address)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None, {}, Served(began, time.monotonic() - began, address)


def _tell_answer(status: int | None, body: dict[str, Any], served: Served) -> str:
    if status is None:
        return "no answer" if served.address else "no replica up"
    return f"{status} {body['code']}" if "code" in body else str(status)
