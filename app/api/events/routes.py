"""The history of pools, VMs, claims, snapshots and preloads: as pages, or as a stream of server-sent events."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from app.api.dependencies import Services, Svc
from app.api.events.schemas import EventView
from app.api.pages import Limit, Page, bad_cursor
from app.api.problems import responses
from app.errors import InvalidRequest
from app.store import events
from app.store.events import Cursor, EventRow

router = APIRouter(prefix="/v1/events", tags=["events"])
_STREAM = "text/event-stream"


@router.get(
    "",
    operation_id="listEvents",
    summary="List events, or stream them",
    response_model=Page[EventView],
    responses={
        200: {
            "description": "A page of events; with `Accept: text/event-stream`, a stream that does not end",
            "content": {
                _STREAM: {"schema": {"type": "string"}, "example": "id: 7701-42\nevent: vm.ready\ndata: {...}\n\n"}
            },
        },
        **responses(),
    },
)
async def list_events(
    request: Request,
    svc: Svc,
    limit: Limit = 100,
    after: Annotated[
        str | None,
        Query(
            max_length=64,
            description=(
                "`next` of the previous page, or the `cursor` of any event. The page continues from there in its order. A stream "
                "without it starts with the next event."
            ),
        ),
    ] = None,
    pool: Annotated[str | None, Query(max_length=63, description="Only events of this pool.")] = None,
    kind: Annotated[
        Literal["pool", "vm", "claim", "snapshot", "preload"] | None,
        Query(description="Only events of this kind of object."),
    ] = None,
    order: Annotated[
        Literal["oldest", "newest"],
        Query(description="Which events come first on a page. A stream is always in the order of the events."),
    ] = "oldest",
    last_event_id: Annotated[
        str | None, Header(max_length=64, description="Cursor of the last event received, to resume a stream.")
    ] = None,
) -> Response:
    """Oldest first: `next` of the last page is where the next request, or a stream, continues. With `order=newest` the last events
    come first, and `next` leads to older ones, until it is null.
    """
    start = _cursor(last_event_id or after)
    if _STREAM in request.headers.get("accept", ""):
        if order == "newest":
            raise InvalidRequest.of_field("order", "a stream is in the order of the events; leave order out")
        return EventSourceResponse(_stream(svc, start, pool, kind), ping=15)
    if order == "newest":
        async with svc.db.begin() as tx:
            back = await events.page_back(tx, before=start, limit=limit + 1, pool=pool, kind=kind)
        return _page(back[:limit], str(back[limit - 1].cursor) if len(back) > limit else None)
    async with svc.db.begin() as tx:
        found = await events.page(tx, after=start or Cursor(), limit=limit, pool=pool, kind=kind)
    following = str(found[-1].cursor) if found else (str(start) if start else None)
    return _page(found, following)


def _page(found: Sequence[EventRow], following: str | None) -> Response:
    page = Page[EventView](items=[EventView.from_row(event) for event in found], next=following)
    return Response(page.model_dump_json(), media_type="application/json")


async def _stream(
    svc: Services, start: Cursor | None, pool: str | None, kind: str | None
) -> AsyncIterator[ServerSentEvent]:
    async for event in svc.tail.follow(start, pool=pool, kind=kind, stop=svc.stopping):
        view = EventView.from_row(event)
        yield ServerSentEvent(data=view.model_dump_json(), event=event.type, id=view.cursor)


def _cursor(value: str | None) -> Cursor | None:
    if value is None:
        return None
    try:
        return Cursor.parse(value)
    except ValueError as error:
        raise bad_cursor() from error
