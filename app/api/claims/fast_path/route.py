"""`POST /v1/claim`, the one route that has to be quick.

It is documented like every other, by the signature of `claim`. What serves it is `ClaimRoute`, which is reached by two shorter
roads than the router, since the framework's own way from a body to an answer costs more than the claim itself (an empty
POST 65 microseconds of CPU, a claim 30). A plain claim, with a warm VM for an answer, is taken from its connection
(`claim_protocol`); every other comes as ASGI, handed over by the edge before any routing. Checks at the edge, validation,
the use case, metrics and the rendering of errors are the same as everywhere.
"""

import hashlib
import time
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import orjson
from fastapi import APIRouter, Header
from prometheus_client import Counter, Histogram
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.claims.schemas import ClaimBody, ClaimView
from app.api.dependencies import Services
from app.api.problems import explain, render, render_crash, responses
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.states import ClaimState
from app.errors import (
    BodyTooLarge,
    ClusterError,
    ClusterForbidden,
    ClusterUnavailable,
    DatabaseUnavailable,
    DeadlineTooShort,
    EmberpoolError,
    FieldProblem,
    IdempotencyKeyReused,
    InvalidRequest,
    LeaseTooLong,
    MalformedBody,
    NoPath,
    NoWarmVm,
    PoolBeingDeleted,
    PoolNotFound,
    TemplateRefused,
    Unschedulable,
    UnsupportedMediaType,
)
from app.services.claims.batcher import Asker
from app.services.claims.queue import NewClaim, StoredClaim, UntilDisconnected
from app.services.claims.service import ClaimAnswer, WarmClaim
from app.services.paths.selector import NewDescribedClaim
from app.store.claims.warm import Bound, ClaimRequest, Outcome
from app.telemetry import CLAIM_SECONDS, REQUESTS

PATH = "/v1/claim"
MAX_KEY = 255
_SHORT = 1000  # bytes of a body that is worth remembering
_METRICS: dict[tuple[str, int], tuple[Histogram, Counter]] = {}


Key = Annotated[
    str | None,
    Header(max_length=MAX_KEY, description="A retry with the same key and body gets the same claim, on any replica."),
]
router = APIRouter(tags=["claims"])


@router.post(
    PATH,
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
            *(BodyTooLarge, UnsupportedMediaType, TemplateRefused, Unschedulable, NoWarmVm, NoPath, DeadlineTooShort),
            *(DatabaseUnavailable, ClusterUnavailable, ClusterForbidden, ClusterError),
        ),
    },
)
async def claim(
    body: ClaimBody,  # noqa: ARG001 - the signature is the documentation
    idempotency_key: Key = None,  # noqa: ARG001 - likewise
) -> ClaimView:
    """A warm VM in milliseconds. Where none is ready: with `wait_seconds` the request waits in order of arrival; then the claim
    stays in the pool's queue (202), or is refused with `Retry-After` where no VM would come (503).

    With `vm` instead of `pool` the VM comes by the fastest path that is open: a pool of the same shape, a snapshot, a preloaded
    image, cold. `choice` says which, and why not by each other; `timings.stages` later says what took how long.
    """
    raise AssertionError("the edge hands this route's requests to ClaimRoute")


class Begun(NamedTuple):
    """A claim that its connection has asked for already, and what came of it; `began` is of `time.perf_counter`."""

    wish: NewClaim
    request: ClaimRequest
    outcome: Outcome | Exception
    began: float


BEGUN = "begun_claim"
"""Where a request's `Begun` is in its scope's state."""


class ClaimRoute:
    """An ASGI application for `POST /v1/claim` alone; `begin` and `render_bound` are the same without ASGI."""

    def __init__(self, services: Services) -> None:
        self._claim_service = services.claim_service
        self._chooser = services.path_selector
        self._namespace = services.settings.namespace

    def begin(self, body: bytes, key: str | None, asker: Asker) -> NewClaim | None:
        """Asks for a warm VM; the asker hears of it. None: the request has to go the ordinary way, and nothing was asked."""
        try:
            wish = parse(body, key) if key is not None or len(body) > _SHORT else _parse_again(body)
            return wish if isinstance(wish, NewClaim) and self._claim_service.ask(wish, asker) else None
        except Exception:  # noqa: BLE001 - the ordinary way meets it again, and tells it
            return None

    def render_bound(self, wish: NewClaim, request: ClaimRequest, bound: Bound) -> bytes:
        """The body of a warm answer."""
        return render_warm(WarmClaim(wish.pool, wish.labels, request.lease_seconds, bound), self._namespace)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: Begun | None = scope.get("state", {}).get(BEGUN)
        began = time.perf_counter() if begun is None else begun.began
        outcome, status = "error", 500

        async def until_disconnected() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        try:
            answer = await self._claim(scope, await _read(receive), begun, until_disconnected)
            if isinstance(answer, WarmClaim):
                outcome, status = "warm", 201
                await _send(send, status, render_warm(answer, self._namespace))
            else:
                outcome, response = render_stored(answer, self._namespace)
                status = response.status_code
                await response(scope, receive, send)
        except EmberpoolError as error:
            outcome, status = error.code, error.status
            await render(error, instance=PATH)(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - no framework stands between this and the server
            await render_crash(PATH, error)(scope, receive, send)
        finally:
            observe(outcome, status, time.perf_counter() - began)

    async def _claim(
        self, scope: Scope, body: bytes, begun: Begun | None, until_disconnected: UntilDisconnected
    ) -> ClaimAnswer:
        if begun is None:
            wish = parse(body, header(scope, b"idempotency-key"))
            if isinstance(wish, NewDescribedClaim):
                return await self._chooser.claim(wish, until_disconnected)
            return await self._claim_service.claim(wish, until_disconnected)
        if isinstance(begun.outcome, Exception):
            raise begun.outcome
        return await self._claim_service.conclude(begun.wish, begun.request, begun.outcome, until_disconnected)


def parse(body: bytes, key: str | None) -> NewClaim | NewDescribedClaim:
    """Raises InvalidRequest, MalformedBody."""
    try:
        wish = ClaimBody.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from error
    refuse_odd_key(key)
    if wish.pool is None:
        return _vm_claim(wish, key)
    return NewClaim(
        pool=wish.pool,
        wait_seconds=wish.wait_seconds,
        lease_seconds=wish.lease_seconds,
        labels=wish.labels,
        key=key,
        request_hash=fingerprint(wish, leave_out={"paths"}) if key is not None else "",
        prefer=wish.prefer,
    )


@lru_cache(maxsize=1000)
def _parse_again(body: bytes) -> NewClaim | NewDescribedClaim:
    """The same bytes are the same wish; who claims without a key mostly sends what it has sent before."""
    return parse(body, None)


def refuse_odd_key(key: str | None) -> None:
    """Raises InvalidRequest for an idempotency key that is none."""
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        message = f"between 1 and {MAX_KEY} printable characters, a UUID for example"
        raise InvalidRequest(f"Idempotency-Key: {message}", problems=[FieldProblem("Idempotency-Key", message)])


def render_stored(answer: StoredClaim, namespace: str) -> tuple[str, Response]:
    """The outcome for the metric, and the answer."""
    claim = answer.claim
    view = ClaimView.of(claim, namespace=namespace, estimate=answer.estimate)
    headers = {"Idempotent-Replayed": "true"} if answer.replayed else {}
    status, outcome = 200, "ended"
    if claim.state is ClaimState.BOUND:
        status, outcome = 201, "replayed" if answer.replayed else "waited"
    elif claim.state is ClaimState.PENDING:
        status, outcome = 202, "pending"
        headers["Location"] = f"/v1/claims/{claim.id}"
    return outcome, Response(view.model_dump_json(), status_code=status, media_type="application/json", headers=headers)


def render_warm(answer: WarmClaim, namespace: str) -> bytes:
    """A ClaimView as JSON, without building one (a test holds the two together)."""
    return orjson.dumps(_describe_warm(answer, namespace), option=orjson.OPT_UTC_Z)


def warm_view(answer: WarmClaim, namespace: str) -> ClaimView:
    """The same as a ClaimView."""
    return ClaimView.model_validate(_describe_warm(answer, namespace))


def fingerprint(wish: BaseModel, *, leave_out: set[str] | None = None) -> str:
    """What an idempotency key is tied to: the body as it was understood, whatever its spelling.

    What was left out and what was given as its default are the same, so that a later field changes no hash of an earlier body.
    """
    body = wish.model_dump(mode="json", exclude=leave_out, exclude_defaults=True)
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _vm_claim(wish: ClaimBody, key: str | None) -> NewDescribedClaim:
    """Raises InvalidRequest where neither a pool nor a VM is asked for, TemplateRefused for a VM that cannot be told."""
    if wish.vm is None:
        message = "this field is required, or `vm` in its place"
        raise InvalidRequest(f"pool: {message}. Nothing was changed", problems=[FieldProblem("pool", message)])
    try:
        orjson.dumps(wish.vm)
    except orjson.JSONEncodeError as error:  # half a surrogate, an integer beyond 64 bits, nesting without end
        message = f"cannot be sent to the cluster: {error}"
        raise TemplateRefused(f"vm: {message}", problems=[FieldProblem("vm", message)]) from error
    return NewDescribedClaim(
        vm=wish.vm,
        paths=wish.paths or tuple(StartPath),
        warm_when=wish.warm_when or WarmWhen.AGENT,
        start_from=wish.start_from,
        placement=wish.placement,
        prefer=wish.prefer,
        deadline_seconds=wish.deadline_seconds,
        remember=wish.remember,
        wait_seconds=wish.wait_seconds,
        lease_seconds=wish.lease_seconds,
        labels=wish.labels,
        key=key,
        request_hash=fingerprint(wish) if key is not None else "",
    )


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, which is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found.decode("latin-1")
    return None


def observe(outcome: str, status: int, seconds: float) -> None:
    """Counts an answer."""
    metrics = _METRICS.get((outcome, status))
    if metrics is None:
        metrics = CLAIM_SECONDS.labels(outcome=outcome), REQUESTS.labels(operation="claim", status=status)
        _METRICS[outcome, status] = metrics
    duration, count = metrics
    duration.observe(seconds)
    count.inc()


def _describe_warm(answer: WarmClaim, namespace: str) -> dict[str, Any]:
    bound = answer.bound
    return {
        "id": bound.claim_id,
        "pool": answer.pool,
        "shape": answer.shape,
        "state": "bound",
        "path": "pool",
        "choice": _told_choice(answer.choice) if answer.choice else None,
        "remembered": answer.choice.get("remembered") if answer.choice else None,
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
            "stages": None,
        },
    }


def _told_choice(choice: dict[str, Any]) -> dict[str, Any]:
    """Of a stored choice what a client is told."""
    return {key: choice[key] for key in ("path", "source", "reason", "at", "deadline_at", "considered", "tried")}


async def _read(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
