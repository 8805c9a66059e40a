"""The parts of a request to the Kubernetes API: path, verb, and the media type of the answer."""

from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web

from app.devcluster.apiserver.status import ApiError

_METHODS = {"POST": "create", "PUT": "update", "PATCH": "patch", "GET": "get", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Target:
    """A path below /api or /apis. An empty `plural` is discovery; an empty `name` the whole collection."""

    group: str
    version: str
    namespace: str = ""
    plural: str = ""
    name: str = ""
    subresource: str = ""

    def verb(self, method: str, *, watch: bool) -> str:
        """The verb as RBAC names it."""
        verb = _METHODS.get(method, method.lower())
        if self.name:
            return verb
        if verb == "get":
            return "watch" if watch else "list"
        return "deletecollection" if verb == "delete" else verb


def parse_target(path: str) -> Target | None:
    """None where the path is neither below /api nor below /apis."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) >= 2:  # noqa: PLR2004  # the version
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 3:  # noqa: PLR2004  # group and version
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if len(rest) >= 3 and rest[0] == "namespaces" and rest[2] not in {"status", "finalize"}:  # noqa: PLR2004
        namespace, rest = rest[1], rest[2:]
    padded = [*rest, "", "", ""]
    return Target(group, version, namespace, padded[0], padded[1], "/".join(rest[2:]))


@dataclass(frozen=True, slots=True)
class Answer:
    """The format of the answer (`json` or `yaml`) and its form: objects (empty), a Table, or metadata only."""

    format: str = "json"
    shape: str = ""

    @property
    def content_type(self) -> str:
        return f"application/{self.format}"


def negotiate(request: web.Request) -> Answer:
    """Raises ApiError 406 where the Accept header has no media type that this cluster can write."""
    accept = request.headers.get("Accept", "")
    if not accept:
        return Answer()
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        given = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        shape = given.get("as", "")
        if shape not in {"", "Table", "PartialObjectMetadataList", "PartialObjectMetadata"}:
            continue
        if media in {"application/json", "*/*", "application/*"}:
            return Answer("json", shape)
        if media == "application/yaml":
            return Answer("yaml", shape)
    raise ApiError(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml, "
        "application/vnd.kubernetes.protobuf",
    )


def content_type_of(request: web.Request) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip()
