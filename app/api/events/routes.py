"""The history of pools, VMs, claims, snapshots and preloads: as pages, or as a stream of server-sent events."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.api.dependencies import Services, Svc
from app.api.events.history import Selection
from app.api.events.schemas import EventKind, EventOrder, EventPage, EventView
from app.api.lists import answer
from app.api.pages import Limit, bad_cursor
from app.api.problems import responses
from app.errors import InvalidRequest, TooManyLists, TooManyStreams
from app.store import events
from app.store.events import Cursor

router = APIRouter(prefix="/v1/events", tags=["events"])
_STREAM = "text/event-stream"
_PING_SECONDS = 15


@router.get(
    "",
    operation_id="listEvents",
    summary="List events, or stream them",
    response_model=EventPage,
    responses={
        200: {
            "description": "A page of events; with `Accept: text/event-stream`, a stream that does not end",
            "content": {
                _STREAM: {"schema": {"type": "string"}, "example": "id: 7701-42\nevent: vm.ready\ndata: {...}\n\n"}
            },
        },
        **responses(TooManyStreams, TooManyLists),
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
        EventKind | None,
        Query(description="Only events of this kind of object."),
    ] = None,
    order: Annotated[
        EventOrder,
        Query(description="Which events come first on a page. A stream is always in the order of the events."),
    ] = "oldest",
    last_event_id: Annotated[
        str | None, Header(max_length=64, description="Cursor of the last event received, to resume a stream.")
    ] = None,
) -> Response:
    """Oldest first: `next` of the last page is where the next request, or a stream, continues. With `order=newest` the last events
    come first, and `next` leads to older ones, until it is null.
    """
    start = _resumed(last_event_id) if last_event_id else _cursor(after)
    if _STREAM in request.headers.get("accept", ""):
        if order == "newest":
            raise InvalidRequest.of_field("order", "a stream is in the order of the events; leave order out")
        return _EventStream(svc, start, Selection(pool, kind))
    if order == "newest":
        async with svc.lists.turn() as tx:
            back = await events.page_back(tx, before=start, limit=limit + 1, pool=pool, kind=kind)
            following = str(back[limit - 1].cursor) if len(back) > limit else None
            return await answer(back[:limit], EventView.from_row, following)
    async with svc.lists.turn() as tx:
        found = await events.page(tx, after=start or Cursor(), limit=limit, pool=pool, kind=kind)
        following = str(found[-1].cursor) if found else (str(start) if start else None)
        return await answer(found, EventView.from_row, following)


class _EventStream(EventSourceResponse):
    """Counts as a follower for as long as it is sent. The protocol of the connection drops a client that does not read."""

    def __init__(self, svc: Services, start: Cursor | None, selection: Selection) -> None:
        super().__init__(svc.tail.follow(start, selection, stop=svc.stopping), ping=_PING_SECONDS)
        self._tail = svc.tail

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._tail.admitted():
            await super().__call__(scope, receive, send)


def _resumed(last_event_id: str) -> Cursor:
    try:
        return Cursor.parse(last_event_id)
    except ValueError as error:
        message = "not the id of an event; send the `id` of the last event received, or leave it out for the events from now on"
        raise InvalidRequest.of_field("Last-Event-ID", message) from error


def _cursor(value: str | None) -> Cursor | None:
    if value is None:
        return None
    try:
        return Cursor.parse(value)
    except ValueError as error:
        raise bad_cursor() from error
