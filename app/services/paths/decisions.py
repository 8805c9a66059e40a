"""Which path serves a claim that describes its VM: a choice from what there is now (`path_options`)."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.config import Settings
from app.domain.claims import DescribedClaimRequest
from app.domain.path_selection import Choice, NoChoice, Record, choose
from app.domain.paths import StartPath
from app.domain.pools import PoolSpec, StartFrom
from app.errors import DeadlineTooShort, NoPath, TemplateRefused
from app.lifecycle.on_demand_pools import on_demand_name, on_demand_spec, start_of
from app.lifecycle.path_options import VmTerms, read_options
from app.lifecycle.placement import require_fit
from app.lifecycle.start_sources import refuse_preloaded_disk
from app.services.claims.queue import ChosenPath
from app.services.paths.claim_templates import as_vm
from app.services.single_flight import SingleFlight
from app.store.claims.rows import StoredChoice
from app.store.database import Database, Tx
from app.store.pools import on_demand
from app.store.vms.observed import database_now

_DECISIONS_AT_ONCE = 3
"""A decision takes many statements. The rest of the process's connections are for requests that take few."""
_NO_PATH_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, with its template expanded and the paths that it allows."""

    request: DescribedClaimRequest
    terms: VmTerms
    allowed: tuple[StartPath, ...]

    @property
    def shape(self) -> str:
        return self.terms.template.shape

    def spec(self, start_from: StartFrom | None) -> PoolSpec:
        """Of the on-demand pool whose VMs start from there."""
        request = self.request
        return on_demand_spec(
            request.vm,
            start_from=start_from,
            warm_when=request.warm_when,
            placement=request.placement,
            allow_unschedulable=request.allow_unschedulable,
            guest=request.guest,
        )

    def stored(self, record: Record) -> StoredChoice:
        """The path `memory` is only in it where it means something: programs that do not know it read these rows too."""
        told = self.terms.names_memory or any(each.path is StartPath.MEMORY for each in record.considered)
        allowed = tuple(str(path) for path in self.allowed if told or path is not StartPath.MEMORY)
        return StoredChoice(self.shape, record.as_json(), allowed, self.terms.template.marks)

    def carry(self, decision: "Decision") -> ChosenPath:
        request, choice = self.request, decision.choice
        record = Record.of(
            choice,
            now=decision.made_at,
            deadline_seconds=request.deadline_seconds,
            start_from=request.start_from,
        )
        return ChosenPath(choice, self.stored(record), self.terms.template, self.spec(start_of(choice)))

    @property
    def question(self) -> "_Question":
        request = self.request
        return _Question(
            (
                self.terms.template.fingerprint,
                self.allowed,
                request.deadline_seconds,
                repr((request.start_from, request.warm_when, request.placement, request.guest)),
                request.lease_seconds,
                request.allow_unschedulable,
            ),
            self,
        )


class Decision(NamedTuple):
    """A choice, and whether the cluster should check the template because no VM was made of it yet."""

    choice: Choice
    unchecked: bool
    made_at: datetime


@dataclass(frozen=True, slots=True)
class _Question:
    """Equal for requests that get the same decision at the same moment."""

    key: tuple[object, ...]
    wanted: Wanted = field(compare=False)


class Decisions:
    """The decisions of one process, each made once for all requests that ask the same at the same moment: clients that were
    refused may ask again many times a second.
    """

    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._settings = settings
        self._shared: SingleFlight[_Question, Decision] = SingleFlight(self._decide)
        self._turn = asyncio.Semaphore(_DECISIONS_AT_ONCE)

    async def get(self, wanted: Wanted) -> Decision:
        """Raises TemplateRefused, NoPath, DeadlineTooShort, Unschedulable, DatabaseUnavailable."""
        return await self._shared.get(wanted.question)

    async def get_fresh(self, wanted: Wanted) -> Decision:
        """One that begins after this call. Raises what `get` raises."""
        return await self._shared.get_fresh(wanted.question)

    async def _decide(self, question: _Question) -> Decision:
        """Once for all requests that ask the same at this moment: clients that were refused may ask again many times a second."""
        async with self._turn, self._db.begin() as tx:
            return await self.decide(tx, question.wanted)

    async def decide(self, tx: Tx, wanted: Wanted) -> Decision:
        """Raises TemplateRefused, NoPath, DeadlineTooShort, Unschedulable."""
        request = wanted.request
        if request.start_from is None:
            await _refuse_preloaded_disk(tx, wanted.terms.template)
        choice = choose(await read_options(tx, wanted.terms, self._settings), wanted.allowed, request.deadline_seconds)
        if isinstance(choice, NoChoice):
            raise _refusal(choice, request.deadline_seconds)
        unchecked = False
        if choice.path is not StartPath.POOL:
            name = on_demand_name(wanted.terms.template, wanted.spec(start_of(choice)))
            unchecked = await on_demand.lock(tx, name) is None
        if unchecked:
            await self.require_fit(tx, wanted)
        return Decision(choice, unchecked, await database_now(tx))

    async def require_fit(self, tx: Tx, wanted: Wanted) -> None:
        """Raises Unschedulable."""
        if not wanted.request.allow_unschedulable:
            await require_fit(tx, self._gateway.demand(wanted.terms.template.spec), of_pool=False)


async def _refuse_preloaded_disk(tx: Tx, template: VmTemplate) -> None:
    try:
        await refuse_preloaded_disk(tx, template)
    except TemplateRefused as error:
        raise as_vm(error) from error


def _refusal(choice: NoChoice, deadline_seconds: float | None) -> NoPath | DeadlineTooShort:
    if choice.too_slow:
        return DeadlineTooShort(
            f"no path to a VM of this shape is known to take less than {deadline_seconds:.1f} s. {choice.reason}; "
            "leave the deadline out, or make it longer"
        )
    return NoPath(f"no path to a VM of this shape is open. {choice.reason}", retry_after=_NO_PATH_RETRY_SECONDS)
