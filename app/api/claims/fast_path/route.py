"""`POST /v1/claim`, the one route that has to be fast.

It is documented like every other route, by the signature of `claim`. `ClaimRoute` serves it and bypasses the router, because
the framework's way from a body to an answer costs more than the claim itself (docs/operations.md has the figures). A plain claim that a warm VM answers is served directly on its connection (`protocol`); every other claim comes through
ASGI, from the edge and before any routing. The checks at the edge, the validation, the service, the metrics and the rendering
of errors are the same as everywhere.
"""

import hashlib
import time
from collections import deque
from functools import lru_cache, partial
from typing import Annotated, Any, NamedTuple

import orjson
from fastapi import APIRouter, Depends, Header
from prometheus_client import Counter, Histogram
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.bodies import LARGE, BodyForm, in_turn, read_whole
from app.api.claims.bodies import ClaimBody
from app.api.claims.views import ClaimView
from app.api.dependencies import Services
from app.api.problems import CLUSTER_ERRORS, render, render_crash, responses
from app.api.text import MAX_KEY
from app.api.text import idempotency_key as idempotency_key_of
from app.domain.claims import ClaimRequest, DescribedClaimRequest, NewClaim, Outcome, WarmClaim
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.states import ClaimState
from app.errors import (
    DeadlineTooShort,
    EmberpoolError,
    IdempotencyKeyReused,
    InstallationWaits,
    InvalidRequest,
    LeaseTooLong,
    NoPath,
    NoWarmVm,
    OutcomeUnknown,
    PoolBeingDeleted,
    PoolNotFound,
    TemplateRefused,
    Unschedulable,
)
from app.services.claims.batcher import Recipient
from app.services.claims.queue import StoredClaim, UntilDisconnected
from app.services.claims.service import ClaimAnswer
from app.telemetry import CLAIM_SECONDS, REQUESTS

PATH = "/v1/claim"
_FORM = BodyForm(ClaimBody)
_MAX_CACHED_BODY = 1000  # bytes
WARM_SECONDS: deque[float] = deque(maxlen=200)
"""How long the last warm claims of this process took, from the arrival of the request to its answer. The database's clock shows
nothing of it: a warm claim is found and bound in one statement.
"""
_METRICS: dict[tuple[str, int], tuple[Histogram, Counter]] = {}


def _key(
    request: Request,
    idempotency_key: Annotated[  # noqa: ARG001 - the documentation; the framework would read it as Latin-1
        str | None,
        Header(
            description="A retry with the same key and body gets the same claim, on any replica.",
            json_schema_extra={"maxLength": MAX_KEY},
        ),
    ] = None,
) -> str | None:
    return idempotency_key_of(request.scope["headers"])


Key = Annotated[str | None, Depends(_key)]
"""As the type of a route's parameter: the idempotency key of the request."""
router = APIRouter(tags=["claims"])


@router.post(
    PATH,
    operation_id="claim",
    summary="Claim a VM",
    status_code=201,
    response_description="Bound: the VM is yours until the lease ends",
    responses={
        200: {"model": ClaimView, "description": "The claim that has the idempotency key; it has ended"},
        202: {
            "model": ClaimView,
            "description": "Pending: no VM was ready, and the claim is in the queue; wait for it at `Location`",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "The claim"}},
        },
        **responses(
            *(PoolNotFound, PoolBeingDeleted, LeaseTooLong, IdempotencyKeyReused, TemplateRefused, Unschedulable),
            *(NoWarmVm, NoPath, DeadlineTooShort, OutcomeUnknown, InstallationWaits, *CLUSTER_ERRORS),
        ),
    },
)
async def claim(
    body: ClaimBody,  # noqa: ARG001 - the signature is the documentation
    idempotency_key: Key = None,  # noqa: ARG001 - likewise
) -> ClaimView:
    """Returns a warm VM in milliseconds. If none is ready, the claim joins the pool's queue, which is served in order of
    arrival: the request waits for up to `wait_seconds`, and then returns the pending claim (202). Where no VM would come the
    claim is refused with `Retry-After` (503).

    With `vm` instead of `pool` the VM comes by the fastest available path: a pool of the same shape, a snapshot with memory or without, a preloaded
    image, or a cold start. `choice` says which path was chosen and why the others were not; `timings.stages` says later how
    long each stage took.
    """
    raise AssertionError("the edge passes this route's requests to ClaimRoute")


class Submitted(NamedTuple):
    """A claim that its connection has submitted already, with the outcome; `began` is a time of `time.perf_counter`."""

    claim: NewClaim
    outcome: Outcome | Exception
    began: float


SUBMITTED = "submitted_claim"
"""The key of a request's `Submitted` in its scope's state."""


class ClaimRoute:
    """An ASGI application for `POST /v1/claim` alone; `submit` and `render` do the same without ASGI."""

    def __init__(self, services: Services) -> None:
        self._claim_service = services.claim_service
        self._path_selector = services.path_selector
        self._handovers = services.handovers
        self._namespace = services.settings.namespace

    def submit(self, body: bytes, key: str | None, recipient: Recipient) -> bool:
        """Submits a claim, whose outcome the recipient gets. False: nothing was submitted, and ASGI has to serve the request."""
        try:
            if len(body) > LARGE:
                return False
            request = parse(body, key) if len(body) > _MAX_CACHED_BODY else _parse_small(body, key)
            return isinstance(request, ClaimRequest) and self._claim_service.submit(request, recipient)
        except Exception:  # noqa: BLE001 - it is raised again on the way through ASGI, and answered there
            return False

    def render(self, warm: WarmClaim) -> bytes:
        """The body of a warm answer."""
        return render_warm(warm, self._namespace)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        submitted: Submitted | None = scope.get("state", {}).get(SUBMITTED)
        began = time.perf_counter() if submitted is None else submitted.began
        outcome, status = "error", 500

        async def until_disconnected() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        try:
            answer = await self._claim(scope, await read_whole(receive), submitted, until_disconnected)
            if isinstance(answer, WarmClaim):
                outcome, status = "warm", 201
                await _send(send, status, render_warm(answer, self._namespace))
            else:
                outcome, response = render_stored(answer, self._namespace)
                status = response.status_code
                await response(scope, receive, send)
        except ClientDisconnect:
            outcome, status = "disconnected", 499
        except EmberpoolError as error:
            outcome, status = error.code, error.status
            await render(error, instance=PATH)(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - no framework stands between this and the server
            await render_crash(PATH, error)(scope, receive, send)
        finally:
            observe(outcome, status, time.perf_counter() - began)

    async def _claim(
        self, scope: Scope, body: bytes, submitted: Submitted | None, until_disconnected: UntilDisconnected
    ) -> ClaimAnswer:
        if submitted is None:
            key = idempotency_key_of(scope["headers"])
            request = await in_turn(len(body), partial(parse, body, key))
            if isinstance(request, DescribedClaimRequest):
                answer = await self._path_selector.claim(request, until_disconnected)
            else:
                answer = await self._claim_service.claim(request, until_disconnected)
            if request.handover is None:
                return answer
            return await self._handovers.follow(answer, request.handover, until_disconnected)
        if isinstance(submitted.outcome, Exception):
            raise submitted.outcome
        return await self._claim_service.conclude(submitted.claim, submitted.outcome, until_disconnected)


def parse(raw: bytes, key: str | None) -> ClaimRequest | DescribedClaimRequest:
    """Raises InvalidRequest, MalformedBody."""
    body: ClaimBody = _FORM.read(raw)
    if body.pool is None:
        return _described(body, key)
    return ClaimRequest(
        pool=body.pool,
        wait_seconds=body.wait_seconds,
        lease_seconds=body.lease_seconds,
        labels=body.labels,
        key=key,
        request_hash=fingerprint(body, leave_out={"paths"}) if key is not None else "",
        prefer=body.prefer,
        handover=body.handover.request() if body.handover is not None else None,
    )


class _Secret(Exception):
    """A request with data that nothing may keep: a result would stay in the cache, and an exception does not."""

    def __init__(self, request: ClaimRequest | DescribedClaimRequest) -> None:
        super().__init__()
        self.request = request


def _parse_small(raw: bytes, key: str | None) -> ClaimRequest | DescribedClaimRequest:
    """The same bytes are the same request but for its key, and most clients send the same body each time."""
    try:
        return _parse_cached(raw, keyed=False) if key is None else _parse_cached(raw, keyed=True)._replace(key=key)
    except _Secret as secret:
        return secret.request._replace(key=key)


@lru_cache(maxsize=1000)
def _parse_cached(raw: bytes, *, keyed: bool) -> ClaimRequest | DescribedClaimRequest:
    """`keyed`: with the hash that a key is tied to. Raises _Secret."""
    request = parse(raw, "" if keyed else None)
    if request.handover is not None:
        raise _Secret(request)
    return request


def render_stored(answer: StoredClaim, namespace: str) -> tuple[str, Response]:
    """The outcome for the metric, and the answer."""
    claim = answer.claim
    view = ClaimView.of(claim, namespace=namespace, estimate=answer.estimate)
    headers = {"Idempotent-Replayed": "true"} if answer.replayed else {}
    status, outcome = 200, "ended"
    if claim.state is ClaimState.BOUND:
        status, outcome = 201, "replayed" if answer.replayed else "waited" if claim.handover is None else "handed-over"
    elif claim.state is ClaimState.PENDING:
        status, outcome = 202, "pending"
        headers["Location"] = f"/v1/claims/{claim.id}"
    return outcome, Response(view.model_dump_json(), status_code=status, media_type="application/json", headers=headers)


def render_warm(answer: WarmClaim, namespace: str) -> bytes:
    """A ClaimView as JSON, without building one (a test holds the two to the same content)."""
    return orjson.dumps(_describe_warm(answer, namespace), option=orjson.OPT_UTC_Z)


def warm_view(answer: WarmClaim, namespace: str) -> ClaimView:
    """The same as a ClaimView."""
    return ClaimView.model_validate(_describe_warm(answer, namespace))


def fingerprint(body: BaseModel, *, leave_out: set[str] | None = None) -> str:
    """The hash of a body that an idempotency key is tied to. It is of the body's meaning, not of its spelling.

    A field that is left out and one that is given its default count as the same, so that a field that is added to the API
    later changes no hash.
    """
    content = body.model_dump(mode="json", exclude=leave_out, exclude_defaults=True)
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _described(body: ClaimBody, key: str | None) -> DescribedClaimRequest:
    """Raises InvalidRequest where there is neither a pool nor a VM."""
    if body.vm is None:
        raise InvalidRequest.of_field("pool", "this field is required, or `vm` in its place", ". Nothing was changed")
    return DescribedClaimRequest(
        vm=body.vm,
        paths=body.paths or tuple(StartPath),
        guest=body.guest,
        handover=body.handover.request() if body.handover is not None else None,
        warm_when=body.warm_when or WarmWhen.AGENT,
        start_from=body.start_from,
        placement=body.placement,
        prefer=body.prefer,
        deadline_seconds=body.deadline_seconds,
        remember=body.remember,
        wait_seconds=body.wait_seconds,
        lease_seconds=body.lease_seconds,
        labels=body.labels,
        key=key,
        request_hash=fingerprint(body) if key is not None else "",
        allow_unschedulable=body.allow_unschedulable,
        namespace=body.namespace,
    )


def observe(outcome: str, status: int, seconds: float) -> None:
    """Counts an answer."""
    metrics = _METRICS.get((outcome, status))
    if metrics is None:
        metrics = CLAIM_SECONDS.labels(outcome=outcome), REQUESTS.labels(operation="claim", status=status)
        _METRICS[outcome, status] = metrics
    duration, count = metrics
    duration.observe(seconds)
    if outcome == "warm":
        WARM_SECONDS.append(seconds)
    count.inc()


def _describe_warm(warm: WarmClaim, namespace: str) -> dict[str, Any]:
    claim, created_at = warm.claim, warm.created_at
    return {
        "id": claim.id,
        "pool": claim.request.pool,
        "shape": warm.shape,
        "state": "bound",
        "path": "pool",
        "choice": _public_choice(warm.choice) if warm.choice else None,
        "remembered": warm.choice.get("remembered") if warm.choice else None,
        "vm": {
            "id": str(warm.vm_id),
            "name": warm.vm_name,
            "namespace": namespace,
            "node": warm.node,
            "addresses": warm.addresses,
            "health": None,
        },
        "labels": claim.request.labels,
        "lease_seconds": claim.lease_seconds,
        "lease_expires_at": warm.lease_expires_at,
        "created_at": created_at,
        "bound_at": created_at,
        "ended_at": None,
        "reason": None,
        "replacements": [],
        "restarts": [],
        "handover": None,
        "estimate": None,
        "timings": {
            "wait": 0.0,
            "boot": None if warm.boot_seconds is None else round(warm.boot_seconds, 3),
            "warm": round((created_at - warm.ready_at).total_seconds(), 3),
            "stages": None,
        },
    }


def _public_choice(choice: dict[str, Any]) -> dict[str, Any]:
    """The part of a stored choice that clients see."""
    return {key: choice[key] for key in ("path", "source", "reason", "at", "deadline_at", "considered", "tried")}


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
