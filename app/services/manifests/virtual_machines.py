"""A VirtualMachine of a manifest: a claim that is found again by the VirtualMachine's name."""

import asyncio
import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, Strict

from app.compute.gateway import Gateway
from app.config import MAX_LEASE_SECONDS
from app.domain.claims import DescribedClaimRequest, WarmClaim
from app.domain.durations import in_words
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.placement import Placement
from app.domain.pools import Count, StartFrom
from app.domain.states import ClaimState
from app.errors import Conflict
from app.lifecycle.path_options import NO_POOL
from app.manifests.requests import VIRTUAL_MACHINE, ResourceRequest
from app.services.claims.service import ClaimAnswer
from app.services.manifests.service import Coming, Outcome, Prepared, validated
from app.services.paths.selector import PathSelector
from app.services.writes import WriteOutcome, overtaken
from app.store.claims import of_manifests as manifest_claims
from app.store.database import Database
from app.store.rows import ClaimRow

_MARK = "\x1f"  # in no key that a client can send
_LONGEST_LEASE = (
    f"it is claimed for as long as its pool gives leases, or for {in_words(MAX_LEASE_SECONDS)} if the VM is made for it; "
    "emberpool.io/lease-seconds sets another lease"
)


class VmClaim(BaseModel):
    """A claim that describes its VM, as far as a manifest can say one. Without `lease_seconds` it gets the longest lease that there is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm: dict[str, Any]
    start_from: StartFrom | None = None
    placement: Placement | None = None
    warm_when: WarmWhen = WarmWhen.AGENT
    paths: Annotated[tuple[StartPath, ...], Field(min_length=1, max_length=len(StartPath))] = tuple(StartPath)
    deadline_seconds: Annotated[float, Strict(), Field(gt=0, le=MAX_LEASE_SECONDS)] | None = None
    remember: Annotated[bool, Strict()] = False
    lease_seconds: Annotated[Count, Field(ge=1, le=MAX_LEASE_SECONDS)] | None = None
    allow_unschedulable: Annotated[bool, Strict()] = False
    labels: dict[str, Annotated[str, Field(max_length=255)]]


def key_of(name: str) -> str:
    """The idempotency key of the claim that stands for the VirtualMachine of that name."""
    return f"{_MARK}manifest/{VIRTUAL_MACHINE}/{name}"


class VirtualMachineHandler:
    def __init__(self, db: Database, gateway: Gateway, path_selector: PathSelector) -> None:
        self._db = db
        self._gateway = gateway
        self._path_selector = path_selector

    async def prepare(self, request: ResourceRequest, coming: Coming) -> Prepared[DescribedClaimRequest | None]:
        spec = validated(request, VmClaim)
        known = await self._known(request, spec)
        if known is not None:
            return Prepared(request, known, None)
        vm, notes = self._as_new(request, spec)
        fields = {**{name: getattr(spec, name) for name in VmClaim.model_fields}, "vm": vm}
        claim = DescribedClaimRequest(
            **fields,
            longest_lease=spec.lease_seconds is None,
            key=key_of(request.name),
            request_hash=_content(spec),
        )
        await self._path_selector.check(claim, source_is_coming=bool(request.references.keys() & coming.keys()))
        lease = (_LONGEST_LEASE,) if claim.longest_lease else ()
        return Prepared(request, Outcome(WriteOutcome.CREATED, None, notes=(*notes, *lease)), claim)

    async def commit(self, prepared: Prepared[DescribedClaimRequest | None]) -> Outcome:
        request, claim = prepared.request, prepared.plan
        known = await self._known(request, validated(request, VmClaim))
        if known is not None:
            return known
        if claim is None:
            raise overtaken(f"VM {request.name!r}")
        async with self._db.begin() as tx:
            await manifest_claims.free_key(tx, key_of(request.name))
        outcome = _outcome_of(await self._path_selector.claim(claim, _never), longest_lease=claim.longest_lease)
        before = (note for note in prepared.outcome.notes if note != _LONGEST_LEASE)  # now it is known
        return replace(outcome, notes=(*before, *outcome.notes))

    def _as_new(self, request: ResourceRequest, spec: VmClaim) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The VM of the manifest. One that was exported from a VM of the cluster would make that machine a second time."""
        body = request.document.body
        if "status" not in body and "uid" not in (body.get("metadata") or {}):
            return spec.vm, ()
        vm, taken = self._gateway.without_identity(spec.vm)
        fields = ", ".join(f"spec.{field}" for field in taken)
        return vm, (f"what identifies the VM that this was exported from was left out: {fields}",) if taken else ()

    async def _known(self, request: ResourceRequest, spec: VmClaim) -> Outcome | None:
        """The claim that an earlier apply made, while it lasts. Raises Conflict if it was made from another manifest."""
        async with self._db.begin() as tx:
            claim = await manifest_claims.by_key(tx, key_of(request.name))
        if claim is None or claim.ended_at is not None:
            return None
        if claim.request_hash != _content(spec):
            raise Conflict(
                f"VM {request.name!r} was made from another manifest, and a VM is not changed in place: release claim {claim.id} "
                f"first (emberpool release {request.name}), which destroys the VM, and apply again"
            )
        return Outcome(WriteOutcome.UNCHANGED, _href(claim.id), str(claim.state), _lease_notes(claim))


def _content(spec: VmClaim) -> str:
    body = spec.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _outcome_of(answer: ClaimAnswer, *, longest_lease: bool) -> Outcome:
    if isinstance(answer, WarmClaim):
        claim = answer.claim
        notes = [f"it was served warm, by pool {claim.request.pool!r}"]
        if longest_lease:
            notes.append(f"its lease is {in_words(claim.lease_seconds)}, the longest that this pool gives")
        notes.append(_lease(claim.id, answer.lease_expires_at))
        return Outcome(WriteOutcome.CREATED, _href(claim.id), str(ClaimState.BOUND), tuple(notes))
    stored = answer.claim
    on_its_way = (f"it is on its way: {stored.reason}",) if stored.state is ClaimState.PENDING else ()
    action = WriteOutcome.UNCHANGED if answer.replayed else WriteOutcome.CREATED
    told = (*on_its_way, *_why_not_warm(stored), *_lease_notes(stored))
    return Outcome(action, _href(stored.id), str(stored.state), told)


def _why_not_warm(claim: ClaimRow) -> tuple[str, ...]:
    """Why no pool serves the claim; nothing where there is no pool of its shape."""
    considered = (claim.choice or {}).get("considered") or ()
    return tuple(
        f"it does not come from a pool: {path['why']}"
        for path in considered
        if path["path"] == StartPath.POOL and path["why"] not in {None, NO_POOL}
    )


def _lease_notes(claim: ClaimRow) -> tuple[str, ...]:
    return (_lease(claim.id, claim.lease_expires_at),) if claim.lease_expires_at is not None else ()


def _lease(claim_id: UUID | str, until: datetime) -> str:
    return f"its lease ends at {until.isoformat(timespec='seconds')}; POST {_href(claim_id)}/renew extends it"


def _href(claim_id: UUID | str) -> str:
    return f"/v1/claims/{claim_id}"


async def _never() -> None:
    await asyncio.Event().wait()
