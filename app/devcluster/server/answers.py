"""What concerns every answer of a dev cluster."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from app.devcluster.faults.disruptions import ResetError

SERVER_NAME = "emberpool-devcluster"


async def sign(_request: web.Request, response: web.StreamResponse) -> None:
    """Mark every answer as coming from a dev cluster."""
    response.headers["Server"] = SERVER_NAME


@web.middleware
async def quiet_cuts(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A connection that was cut by an ordered fault needs no stack trace."""
    try:
        return await handler(request)
    except ResetError:
        return web.Response(status=499)
