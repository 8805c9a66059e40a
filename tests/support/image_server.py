"""A web server with disk images, on this machine."""

from aiohttp import web
from aiohttp.test_utils import TestServer


class ImageServer:
    """`files`: what is found under which path; a missing one is 404. `asked`: the paths in order."""

    def __init__(self):
        self.files = {}
        self.asked = []
        application = web.Application()
        application.router.add_get("/{name:.+}", self._answer)
        self._server = TestServer(application)

    async def __aenter__(self):
        await self._server.start_server()
        return self

    async def __aexit__(self, *_):
        await self._server.close()

    def url(self, name):
        return str(self._server.make_url(name))

    async def _answer(self, request):
        name = request.match_info["name"]
        self.asked.append(name)
        if name not in self.files:
            return web.Response(status=404)
        body = self.files[name]
        kind = "text/html" if body.startswith(b"<") else "application/octet-stream"
        return web.Response(body=body, content_type=kind)
