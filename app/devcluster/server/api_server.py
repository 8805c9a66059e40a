"""The Kubernetes API over HTTP: routes requests to verbs, renders answers, streams watches, applies ordered faults."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import orjson
import structlog
import yaml
from aiohttp import web

from app.devcluster.apiserver import registry
from app.devcluster.apiserver.access import ADMINISTRATOR, Subject, authenticate, authorize, refusal
from app.devcluster.apiserver.api import Api, WriteOptions, Written
from app.devcluster.apiserver.decoding import Decoded, decode_object, decode_options, decode_patch
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.listing import (
    ListOptions,
    is_true,
    list_page,
    parse_version,
    partial,
    refuse_future,
    render_list,
    render_partial,
    render_table,
)
from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.requests import Answer, Target, content_type_of, negotiate, parse_target
from app.devcluster.apiserver.status import ApiError, Json, PlainError, bad_option
from app.devcluster.apiserver.watch import Watch
from app.devcluster.faults.disruptions import Disruptions, Stage
from app.devcluster.kubevirt.console_log import ConsoleLogs
from app.devcluster.kubevirt.subresources import GROUP, VERSIONS, Subresources
from app.devcluster.server import access_reviews, discovery, pod_logs, scale

BODY_LIMIT = 3 * 2**20
BOOKMARK_SECONDS = 60.0
_DEFAULT_WATCH_SECONDS = 1800.0
_BOOKMARK_BEFORE_END = 2.0
_log = structlog.get_logger(__name__)
_NOT_FOUND = "404 page not found\n"


@dataclass(slots=True)
class Call:
    """One request on a served kind."""

    request: web.Request
    resource: Resource
    target: Target
    verb: str
    answer: Answer


class ApiServer:
    def __init__(
        self,
        api: Api,
        subresources: Subresources,
        consoles: ConsoleLogs,
        disruptions: Disruptions,
        tokens: Mapping[str, Subject],
        *,
        keeps_memory: bool,
    ) -> None:
        """`keeps_memory`: discovery says that snapshots may keep the memory of VMs."""
        self._api = api
        self._subresources = subresources
        self._consoles = consoles
        self._disruptions = disruptions
        self._tokens = tokens
        self._keeps_memory = keeps_memory
        self.closing = asyncio.Event()
        self.watches: set[Watch] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handles every request except those of the admin API."""
        try:
            return await self._route(request)
        except PlainError as error:
            return web.Response(status=error.code, text=error.text, content_type="text/plain", charset="utf-8")
        except ApiError as error:
            return _refusal(error)
        except (ConnectionError, web.HTTPException):
            raise
        except Exception as error:  # noqa: BLE001  # an API server answers whatever goes wrong behind it
            _log.exception("request_failed", method=request.method, path=request.path)
            message = f"Internal error occurred: {type(error).__name__}: {error}"
            return _refusal(ApiError(500, "InternalError", message))

    async def _route(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path in {"/healthz", "/readyz", "/livez"}:
            return self._disruptions.health(path)
        subject = authenticate(self._tokens, request.headers.get("Authorization", ""))
        if path == "/version":
            return _fixed(request, discovery.VERSION)
        if path.rstrip("/") in {"/api", "/apis"}:
            core = path.rstrip("/") == "/api"
            groups = discovery.group_list(keeps_memory=self._keeps_memory)
            return _fixed(request, discovery.core_versions(request.host) if core else groups)
        target = parse_target(path)
        if target is None:
            name = path.removeprefix("/apis/").strip("/")
            known = discovery.group(name, keeps_memory=self._keeps_memory) if path.startswith("/apis/") else None
            if known is None:
                raise PlainError(404, _NOT_FOUND)
            return _fixed(request, known)
        if not target.plural:
            if target.group == GROUP:
                self._disruptions.check_aggregated()
            listed = discovery.resource_list(target.group, target.version, keeps_memory=self._keeps_memory)
            if listed is None:
                raise PlainError(404, _NOT_FOUND)
            return _fixed(request, listed)
        return await self._serve(request, target, subject)

    async def _serve(self, request: web.Request, target: Target, subject: Subject) -> web.StreamResponse:
        watching = is_true(request.query.get("watch", ""))
        verb = target.verb(request.method, watch=watching)
        asked = (verb, target.group, target.plural, target.subresource, target.namespace, target.name)
        if self._disruptions.forbids(verb, target.plural, target.namespace, target.name) or self._is_starting(subject):
            raise refusal(subject, *asked)
        if access_reviews.is_review(target):
            answer = access_reviews.answer(await request.read(), subject, self._disruptions)
            return _render(negotiate(request), orjson.dumps(answer), 201)
        authorize(subject, *asked)
        await self._disruptions.before(request, target, verb, self.closing)
        if target.group == GROUP:
            response: web.StreamResponse = await self._subresource(request, target)
        else:
            resource = registry.find(target.group, target.version, target.plural)
            if resource is None or (target.namespace and not resource.namespaced):
                raise PlainError(404, _NOT_FOUND)
            call = Call(request, resource, target, verb, negotiate(request))
            response = await self._verb(call, watching=watching)
        await self._disruptions.after(request, target, verb)
        return response

    def _is_starting(self, subject: Subject) -> bool:
        """Whether the authorizer does not know the roles yet. The administrator needs none."""
        return self._disruptions.stage is Stage.NO_CUSTOM_PATHS and subject != ADMINISTRATOR

    async def _verb(self, call: Call, *, watching: bool) -> web.StreamResponse:
        target, method = call.target, call.request.method
        if not target.name:
            if method == "GET":
                options = ListOptions.parse(call.resource, call.request.query)
                return await self._watch(call, options) if watching else self._list(call, options)
            if method == "POST":
                return await self._create(call)
            if method == "DELETE":
                return await self._delete_collection(call)
        else:
            self._check_subresource(call)
            match method:
                case "GET" if target.subresource == "log":
                    pod = self._api.get(call.resource, target.namespace, target.name)
                    return await pod_logs.serve(call.request, pod.obj, self._consoles, self.closing)
                case "GET":
                    return self._get(call)
                case "PUT" | "PATCH":
                    return await self._update(call)
                case "DELETE":
                    return await self._delete(call)
                case "POST":
                    return await self._create(call)
                case _:
                    pass
        raise ApiError(
            405, "MethodNotAllowed", "the server does not allow this method on the requested resource", details={}
        )

    def _check_subresource(self, call: Call) -> None:
        subresource = call.target.subresource
        if not subresource or (subresource == "status" and call.resource.status):
            return
        if subresource == "scale" and call.resource.scale:
            return
        if subresource == "log" and call.resource is registry.PODS and call.request.method == "GET":
            return
        if subresource == "status":
            name = call.target.name
            raise ApiError(
                404,
                "NotFound",
                f'{call.resource.qualified} "{name}" not found',
                details={"name": name, "group": call.resource.group, "kind": call.resource.plural},
            )
        raise PlainError(404, _NOT_FOUND)

    def _get(self, call: Call) -> web.Response:
        version = parse_version(call.request.query.get("resourceVersion", ""))
        refuse_future(self._api.store, version)
        stored = self._api.get(call.resource, call.target.namespace, call.target.name)
        if call.target.subresource == "scale":
            return _render(call.answer, orjson.dumps(scale.view(stored)))
        if call.answer.shape.startswith("PartialObjectMetadata"):
            return _render(call.answer, orjson.dumps(partial(stored.obj)))
        return _render(call.answer, stored.raw)

    def _list(self, call: Call, options: ListOptions) -> web.Response:
        page = list_page(self._api.store, call.resource, call.target.namespace, options)
        match call.answer.shape:
            case "Table":
                body = render_table(call.resource, page, self._api.clock.now())
            case "PartialObjectMetadataList":
                body = render_partial(page)
            case _:
                body = render_list(call.resource, page)
        return _render(call.answer, body)

    async def _create(self, call: Call) -> web.Response:
        options = _write_options(call.request, "CreateOptions")
        body = await call.request.read()
        decoded = decode_object(call.resource, body, content_type_of(call.request))
        if call.target.name:
            metadata = {**(decoded.value.get("metadata") or {}), "name": call.target.name}
            decoded = Decoded({**decoded.value, "metadata": metadata}, decoded.duplicates)
        self._disruptions.check_quota(call.resource, call.target.namespace, decoded.value)
        await self._disruptions.check_webhooks(call.resource, "create")
        written = self._api.create(call.resource, call.target.namespace, decoded, options)
        return _written(call.answer, written)

    async def _scale(self, call: Call) -> web.Response:
        """A PUT and a merge patch of the Scale both set the replicas."""
        target, merge = call.target, "application/merge-patch+json"
        decoded = decode_patch(await call.request.read(), merge)
        options = _write_options(call.request, "UpdateOptions")
        wanted = Decoded(scale.as_merge_patch(decoded.value))
        written = self._api.patch(call.resource, target.namespace, target.name, wanted, merge, options, status=False)
        return _render(call.answer, orjson.dumps(scale.view(written.stored)))

    async def _update(self, call: Call) -> web.Response:
        if call.target.subresource == "scale":
            return await self._scale(call)
        target, status = call.target, call.target.subresource == "status"
        body = await call.request.read()
        media = content_type_of(call.request)
        if call.request.method == "PUT":
            options = _write_options(call.request, "UpdateOptions")
            decoded = decode_object(call.resource, body, media)
            await self._disruptions.check_webhooks(call.resource, "update")
            written = self._api.replace(call.resource, target.namespace, target.name, decoded, options, status=status)
            return _written(call.answer, written)
        patch = decode_patch(body, media)
        options = _write_options(call.request, "PatchOptions")
        if not status:
            await self._disruptions.check_webhooks(call.resource, "update")
        written = self._api.patch(call.resource, target.namespace, target.name, patch, media, options, status=status)
        return _written(call.answer, written)

    async def _delete(self, call: Call) -> web.Response:
        options = await _delete_options(call.request)
        await self._disruptions.check_webhooks(call.resource, "delete")
        answer = delete(self._api, call.resource, call.target.namespace, call.target.name, options)
        return _render(call.answer, orjson.dumps(answer))

    async def _delete_collection(self, call: Call) -> web.Response:
        options = await _delete_options(call.request)
        listed = ListOptions.parse(call.resource, call.request.query)
        page = list_page(self._api.store, call.resource, call.target.namespace, listed)
        for stored in page.rows:
            delete(self._api, call.resource, *stored.key, options)
        return _render(call.answer, render_list(call.resource, page))

    async def _watch(self, call: Call, options: ListOptions) -> web.StreamResponse:
        watch = Watch(self._api.store, call.resource, call.target.namespace, options)
        self._disruptions.admit_watch(watch, call.target, options.version)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        self.watches.add(watch)
        try:
            await response.prepare(call.request)
            await self._stream(watch, response, options)
        finally:
            self.watches.discard(watch)
            watch.close()
        if self._disruptions.is_cut(watch):
            _abort(call.request)
        else:
            with suppress(ConnectionError):
                await response.write_eof()
        return response

    async def _stream(self, watch: Watch, response: web.StreamResponse, options: ListOptions) -> None:
        seconds = options.timeout if options.timeout is not None else _DEFAULT_WATCH_SECONDS
        clock = self._api.clock
        timers = [clock.call_later(seconds, watch.close)]
        if options.bookmarks:
            moments = [BOOKMARK_SECONDS * number for number in range(1, int(seconds / BOOKMARK_SECONDS) + 1)]
            moments.append(seconds - _BOOKMARK_BEFORE_END)
            timers += [clock.call_later(moment, watch.bookmark) for moment in moments if 0 < moment < seconds]
        try:
            while not self.closing.is_set():
                data = watch.drain()
                if data:
                    await response.write(data)
                elif watch.closed:
                    return
                else:
                    await watch.wait()
        finally:
            for timer in timers:
                timer.cancel()

    async def _subresource(self, request: web.Request, target: Target) -> web.Response:
        if target.version not in VERSIONS:
            raise PlainError(404, _NOT_FOUND)
        self._disruptions.check_aggregated()
        if not self._subresources.knows(target.plural, target.subresource):
            raise PlainError(404, "404: Page Not Found")
        if request.method != "PUT":
            raise PlainError(405, "405: Method Not Allowed")
        accept = request.headers.get("Accept", "*/*")
        if "*/*" not in accept:
            # virt-api declares no media type for these, so it refuses a client that accepts only JSON.
            raise PlainError(406, "406: Not Acceptable\n\nAvailable representations: ")
        status = await self._subresources.call(target.plural, target.namespace, target.name, target.subresource)
        return web.Response(status=status)


def _fixed(request: web.Request, document: Json) -> web.Response:
    accept = request.headers.get("Accept", "*/*")
    if not any(kind in accept for kind in ("*/*", "application/json", "application/*")):
        body = ApiError(
            406,
            "NotAcceptable",
            "406: Not Acceptable\n\nAvailable representations: application/json",
            details={},
        ).body
        return web.Response(
            status=406,
            text=yaml.safe_dump(body, default_flow_style=False),
            content_type="application/yaml",
        )
    return _render(Answer(), orjson.dumps(document))


def _render(answer: Answer, body: bytes, status: int = 200, warnings: list[str] | None = None) -> web.Response:
    if answer.format == "yaml":
        body = yaml.safe_dump(orjson.loads(body), default_flow_style=False).encode()
    response = web.Response(status=status, body=body, headers={"Content-Type": answer.content_type})
    for warning in warnings or ():
        escaped = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response


def _refusal(error: ApiError) -> web.Response:
    response = _render(Answer(), orjson.dumps(error.body), error.code, list(error.warnings))
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _written(answer: Answer, written: Written) -> web.Response:
    return _render(answer, written.stored.raw, 201 if written.created else 200, written.warnings)


def _write_options(request: web.Request, kind: str) -> WriteOptions:
    dry_run = request.query.getall("dryRun", [])
    if dry_run and dry_run != ["All"]:
        shown = ", ".join(f'"{item}"' for item in dry_run)
        message = f'Unsupported value: [{shown}]: supported values: "All"'
        raise bad_option(kind, "dryRun", "FieldValueNotSupported", message)
    validation = request.query.get("fieldValidation", "")
    if validation not in {"", "Ignore", "Strict", "Warn"}:
        message = f'Unsupported value: "{validation}": supported values: "", "Ignore", "Strict", "Warn"'
        raise bad_option(kind, "fieldValidation", "FieldValueNotSupported", message)
    return WriteOptions(bool(dry_run), validation or "Warn", request.query.get("fieldManager", ""))


async def _delete_options(request: web.Request) -> DeleteOptions:
    query = {key: request.query.getall(key) for key in request.query}
    return DeleteOptions.parse(decode_options(await request.read()), query)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
