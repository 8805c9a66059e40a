"""Many warm VMs in one request."""

from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.claims.bodies import BatchBody
from app.api.claims.fast_path.route import Key, fingerprint, warm_view
from app.api.claims.views import BatchView, ClaimView
from app.api.dependencies import Svc
from app.api.problems import responses
from app.domain.claims import ClaimRequest, WarmClaim
from app.errors import (
    IdempotencyKeyReused,
    InstallationWaits,
    LeaseTooLong,
    NoWarmVm,
    OutcomeUnknown,
    PoolBeingDeleted,
    PoolNotFound,
)

router = APIRouter(tags=["claims"], route_class=BodyRoute)


@router.post(
    "/v1/claim/batch",
    operation_id="claimBatch",
    summary="Claim many VMs at once",
    status_code=201,
    response_description="The bound claims, one for each VM: as many as were ready",
    responses=responses(
        PoolNotFound, PoolBeingDeleted, LeaseTooLong, IdempotencyKeyReused, NoWarmVm, OutcomeUnknown, InstallationWaits
    ),
)
async def claim_batch(body: BatchBody, svc: Svc, idempotency_key: Key = None) -> BatchView:
    """A batch does not wait: `missing` says how many VMs were not ready. If none is ready, or with `all_or_nothing` fewer than
    `count`, the answer is a 503 with `Retry-After` and nothing is claimed. A retry with the same key gets the same claims.
    """
    request = ClaimRequest(
        pool=body.pool,
        wait_seconds=0,
        lease_seconds=body.lease_seconds,
        labels=body.labels,
        key=idempotency_key,
        request_hash=fingerprint(body) if idempotency_key is not None else "",
    )
    handovers = [each.request() if each is not None else None for each in body.handovers or ()]
    answers = await svc.claim_service.claim_batch(
        request, count=body.count, all_or_nothing=body.all_or_nothing, handovers=handovers
    )
    namespace = svc.settings.namespace
    if handovers:
        answers = [await svc.handovers.read(answer) for answer in answers]
    claims = [
        warm_view(answer, namespace)
        if isinstance(answer, WarmClaim)
        else ClaimView.of(answer.claim, namespace=namespace)
        for answer in answers
    ]
    return BatchView(claims=claims, requested=body.count, missing=body.count - len(claims))
