"""Where images come from, on this machine: a server of files that can break off, and a container registry that wants a token."""

import base64
import hashlib
import io
import json
import tarfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@asynccontextmanager
async def serving(application):
    """Serve on loopback; the value is the address, as HOST:PORT."""
    runner = web.AppRunner(application, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


@dataclass
class FileServer:
    """Serves `content` under /disk.img. Each number in `cuts` ends one answer after so many bytes."""

    content: bytes
    etag: str = '"one"'
    cuts: list = field(default_factory=list)
    ranges: bool = True
    length: bool = True
    asked: list = field(default_factory=list)

    def application(self):
        app = web.Application()
        app.router.add_get("/disk.img", self._file)
        app.router.add_get("/page", self._page)
        app.router.add_get("/moved", self._moved)
        app.router.add_get("/circle", self._circle)
        return app

    async def _page(self, request):
        return web.Response(text="<html>please log in</html>", content_type="text/html")

    async def _moved(self, request):
        raise web.HTTPFound(request.query["to"])

    async def _circle(self, request):
        raise web.HTTPFound("/circle")

    async def _file(self, request):
        self.asked.append(dict(request.headers))
        if self.etag and request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304)
        start = 0
        if self.ranges and "Range" in request.headers and request.headers.get("If-Range") == self.etag:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        if self.etag:
            response.headers["ETag"] = self.etag
        body = self.content[start:]
        if self.length:
            response.content_length = len(body)
        await response.prepare(request)
        cut = self.cuts.pop(0) if self.cuts else None
        await response.write(body[:cut])
        if cut is not None:
            request.transport.close()
        return response


def layer(files, compress=bytes):
    """A layer of a container image; None as a content makes a folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return compress(packed.getvalue())


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Registry:
    """One repository, named disks/web. With `password` its token server wants the user `ada`."""

    password: str = ""
    needs_token: bool = True
    blobs: dict = field(default_factory=dict)
    manifests: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)

    def push(self, tag, *layers):
        """An image of these layers, the lowest first. Gives its manifest's digest."""
        for data in layers:
            self.blobs[digest_of(data)] = data
        entries = [
            {"digest": digest_of(data), "size": len(data), "mediaType": "application/vnd.oci.image.layer.v1.tar"}
            for data in layers
        ]
        return self._keep(tag, {"schemaVersion": 2, "mediaType": MANIFEST, "layers": entries}, MANIFEST)

    def push_index(self, tag, **digests):
        """An index that names a manifest for each architecture."""
        entries = [
            {"digest": digest, "platform": {"os": "linux", "architecture": name}} for name, digest in digests.items()
        ]
        return self._keep(tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)

    def _keep(self, tag, document, kind):
        raw = json.dumps(document).encode()
        self.manifests[tag] = self.manifests[digest_of(raw)] = (raw, kind)
        return digest_of(raw)

    def application(self):
        app = web.Application()
        app.router.add_get("/token", self._token)
        app.router.add_get("/v2/disks/web/manifests/{version}", self._manifest)
        app.router.add_get("/v2/disks/web/blobs/{digest}", self._blob)
        return app

    async def _token(self, request):
        if self.password and request.headers.get("Authorization") != basic(self.password):
            return web.Response(status=401)
        return web.json_response({"token": f"for {request.query['scope']}"})

    async def _manifest(self, request):
        self._check_token(request)
        version = request.match_info["version"]
        if version not in self.manifests:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        raw, kind = self.manifests[version]
        return web.Response(body=raw, headers={"Content-Type": kind})

    async def _blob(self, request):
        self._check_token(request)
        self.asked.append(request.match_info["digest"])
        return web.Response(body=self.blobs[request.match_info["digest"]])

    def _check_token(self, request):
        if self.needs_token and request.headers.get("Authorization") != "Bearer for repository:disks/web:pull":
            challenge = f'Bearer realm="http://{request.host}/token",service="tests",scope="repository:disks/web:pull"'
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": challenge})


def basic(password):
    return f"Basic {base64.b64encode(f'ada:{password}'.encode()).decode()}"


def pull_secret(host, password):
    return json.dumps({"auths": {host: {"auth": base64.b64encode(f"ada:{password}".encode()).decode()}}}).encode()
