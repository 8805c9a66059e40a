"""Existing claims: read, wait, renew, release."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response

from app.api.bodies import BodyRoute
from app.api.claims.bodies import RenewBody
from app.api.claims.views import ClaimPage, ClaimView
from app.api.dependencies import Svc
from app.api.lists import answer
from app.api.pages import After, Limit, cut, decode_id
from app.api.problems import responses
from app.config import MAX_WAIT_SECONDS
from app.domain.states import ClaimState
from app.errors import ClaimEnded, ClaimNotFound, Conflict, InvalidRequest, LeaseTooLong, TooManyLists
from app.lifecycle.eta import tell_why_pending
from app.services.claims import lifecycle
from app.store.claims import pages as claim_pages

router = APIRouter(prefix="/v1/claims", tags=["claims"], route_class=BodyRoute)
ClaimId = Annotated[UUID, Path(description="The claim's id.")]


@router.get(
    "",
    operation_id="listClaims",
    summary="List claims, newest first",
    response_description="A page of claims, including ended ones",
    response_model=ClaimPage,
    responses=responses(TooManyLists),
)
async def list_claims(
    svc: Svc,
    limit: Limit = 100,
    after: After = None,
    pool: Annotated[str | None, Query(max_length=63, description="Only claims of this pool.")] = None,
    state: Annotated[ClaimState | None, Query(description="Only claims in this state.")] = None,
    label: Annotated[
        str | None, Query(max_length=319, description="Only claims with this label.", examples=["job=ci-4711"])
    ] = None,
    shape: Annotated[str | None, Query(max_length=200, description="Only claims of this shape.")] = None,
) -> Response:
    """Filters can be combined. Ended claims are kept for `EMBERPOOL_HISTORY_DAYS`."""
    async with svc.lists.turn() as tx:
        found = await claim_pages.page(
            tx, after=decode_id(after), limit=limit + 1, pool=pool, state=state, label=_label(label), shape=shape
        )
        found = await tell_why_pending(tx, found)
        claims, following = cut(found, limit, lambda claim: claim.id)
        view = partial(ClaimView.of, namespace=svc.settings.namespace, output=False)
        return await answer(claims, view, following)


@router.get(
    "/{claim_id}",
    operation_id="getClaim",
    summary="Get a claim",
    response_description="The claim, as it is now or when the wait ended",
    responses=responses(ClaimNotFound),
)
async def get_claim(
    claim_id: ClaimId,
    request: Request,
    svc: Svc,
    wait_seconds: Annotated[
        float,
        Query(ge=0, le=MAX_WAIT_SECONDS, description="How many seconds to wait for a pending claim to get its VM."),
    ] = 0,
) -> ClaimView:
    """With `wait_seconds` the answer comes when the claim is no longer pending, or when that time is over."""

    async def until_disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    found = await svc.claim_service.queue.look(claim_id, wait_seconds, until_disconnected)
    return ClaimView.of(found.claim, namespace=svc.settings.namespace, estimate=found.estimate)


@router.post(
    "/{claim_id}/renew",
    operation_id="renewClaim",
    summary="Renew a claim's lease",
    response_description="The claim with its new lease",
    responses=responses(ClaimNotFound, LeaseTooLong, ClaimEnded, Conflict),
)
async def renew_claim(claim_id: ClaimId, svc: Svc, body: RenewBody | None = None) -> ClaimView:
    """The lease then expires `lease_seconds` from now. Without a body the claim's own `lease_seconds` is used."""
    claim = await lifecycle.renew_claim(svc.db, claim_id, body.lease_seconds if body else None)
    return ClaimView.of(claim, namespace=svc.settings.namespace)


@router.delete(
    "/{claim_id}",
    operation_id="releaseClaim",
    summary="Release a claim",
    response_description="The claim, ended",
    responses=responses(ClaimNotFound),
)
async def release_claim(claim_id: ClaimId, svc: Svc) -> ClaimView:
    """The VM is destroyed and never given to another client. Releasing a claim that has ended changes nothing."""
    claim = await lifecycle.release_claim(svc.db, claim_id)
    return ClaimView.of(claim, namespace=svc.settings.namespace)


def _label(label: str | None) -> tuple[str, str] | None:
    if label is None:
        return None
    name, equals, value = label.partition("=")
    if not (name and equals):
        raise InvalidRequest.of_field("label", "a label filter is name=value")
    return name, value
