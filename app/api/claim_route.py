"""`POST /v1/claim`, the one route that has to be quick.

It is documented like every other by its signature. What runs is `serve`: the framework's own way from a body to an answer
(dependencies, response model, validation of what we have just made) would cost more than the claim itself. Parsing,
validation and the rendering of errors are the same as everywhere.
"""

import hashlib
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import override

from app.api.problems import explain, responses
from app.api.schemas import ClaimBody, ClaimView
from app.api.services import services
from app.domain.states import ClaimState
from app.errors import (
    BodyTooLarge,
    DatabaseUnavailable,
    EmberpoolError,
    FieldProblem,
    IdempotencyKeyReused,
    InvalidRequest,
    LeaseTooLong,
    MalformedBody,
    NoWarmVm,
    PoolBeingDeleted,
    PoolNotFound,
    UnsupportedMediaType,
)
from app.telemetry import CLAIM_SECONDS
from app.usecases.claiming import ClaimAnswer, WarmClaim
from app.usecases.queueing import NewClaim

_MAX_KEY = 255


class _Direct(APIRoute):
    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            return await serve(request)

        return handle


router = APIRouter(tags=["claims"], route_class=_Direct)


@router.post(
    "/v1/claim",
    operation_id="claim",
    summary="Claim a VM",
    status_code=201,
    response_description="Bound: the VM is yours until the lease ends",
    responses={
        200: {"model": ClaimView, "description": "The idempotency key's claim, which has ended meanwhile"},
        202: {
            "model": ClaimView,
            "description": "Pending: none was warm, the next is yours; `Location` is where to wait for it",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "The claim"}},
        },
        **responses(
            *(PoolNotFound, PoolBeingDeleted, InvalidRequest, LeaseTooLong, IdempotencyKeyReused, MalformedBody),
            *(BodyTooLarge, UnsupportedMediaType, NoWarmVm, DatabaseUnavailable),
        ),
    },
)
async def claim(
    body: ClaimBody,  # noqa: ARG001 - the signature is the documentation
    idempotency_key: Annotated[  # noqa: ARG001 - likewise
        str | None,
        Header(
            max_length=_MAX_KEY, description="A retry with the same key and body gets the same claim, on any replica."
        ),
    ] = None,
) -> ClaimView:
    """A warm VM in milliseconds. Where none is ready: with `wait_seconds` the request waits in order of arrival; then the claim
    stays in the pool's queue (202), or is refused with `Retry-After` where no VM would come (503).
    """
    raise AssertionError("the route is served by `serve`; this is its signature")


async def serve(request: Request) -> Response:
    """One claim, from its bytes to its answer."""
    began = time.perf_counter()
    outcome = "error"
    try:
        wish = parse(await request.body(), request.headers.get("idempotency-key"))
        svc = services(request)

        async def until_gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        answer = await svc.desk.claim(wish, until_gone)
        response, outcome = render(answer, namespace=svc.settings.namespace)
    except EmberpoolError as error:
        outcome = error.code
        raise
    finally:
        CLAIM_SECONDS.labels(outcome=outcome).observe(time.perf_counter() - began)
    return response


def parse(body: bytes, key: str | None) -> NewClaim:
    """Raises InvalidRequest, MalformedBody."""
    try:
        wish = ClaimBody.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from error
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isprintable()):
        message = f"between 1 and {_MAX_KEY} printable characters, a UUID for example"
        raise InvalidRequest(f"Idempotency-Key: {message}", problems=[FieldProblem("Idempotency-Key", message)])
    return NewClaim(
        pool=wish.pool,
        wait_seconds=wish.wait_seconds,
        lease_seconds=wish.lease_seconds,
        labels=wish.labels,
        key=key,
        request_hash=_fingerprint(wish) if key is not None else "",
    )


def render(answer: ClaimAnswer, *, namespace: str) -> tuple[Response, str]:
    """The answer, and its outcome for the metric."""
    if isinstance(answer, WarmClaim):
        return Response(_warm(answer, namespace), status_code=201, media_type="application/json"), "warm"
    claim = answer.claim
    view = ClaimView.of(claim, namespace=namespace, estimate=answer.estimate)
    headers = {"Idempotent-Replayed": "true"} if answer.replayed else {}
    status, outcome = 200, "ended"
    if claim.state is ClaimState.BOUND:
        status, outcome = 201, "replayed" if answer.replayed else "waited"
    elif claim.state is ClaimState.PENDING:
        status, outcome = 202, "pending"
        headers["Location"] = f"/v1/claims/{claim.id}"
    return Response(view.model_dump_json(), status_code=status, media_type="application/json", headers=headers), outcome


def _warm(answer: WarmClaim, namespace: str) -> bytes:
    """A ClaimView as JSON, without building one (a test holds the two together)."""
    bound = answer.bound
    return orjson.dumps(
        {
            "id": str(bound.claim_id),
            "pool": answer.pool,
            "state": "bound",
            "path": "pool",
            "vm": {
                "id": str(bound.vm_id),
                "name": bound.name,
                "namespace": namespace,
                "node": bound.node,
                "addresses": bound.addresses,
                "health": None,
            },
            "labels": answer.labels,
            "lease_seconds": answer.lease_seconds,
            "lease_expires_at": bound.lease_expires_at,
            "created_at": bound.created_at,
            "bound_at": bound.created_at,
            "ended_at": None,
            "reason": None,
            "replacements": [],
            "estimate": None,
            "timings": {
                "wait": 0.0,
                "boot": None if bound.boot_seconds is None else round(bound.boot_seconds, 3),
                "warm": round((bound.created_at - bound.ready_at).total_seconds(), 3),
            },
        },
        option=orjson.OPT_UTC_Z,
    )


def _fingerprint(wish: ClaimBody) -> str:
    return hashlib.sha256(orjson.dumps(wish.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()
