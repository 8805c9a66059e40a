"""Who we are to a container registry: nobody, or what a pull secret says (OCI distribution specification; its token flow is Docker's)."""

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final
from urllib.request import parse_http_list, parse_keqv_list

import httpx
from typing_extensions import override

from app.devcluster.guests.images.errors import FetchFailed

_DOCKER_HUB_NAMES: Final = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str
    password: str


def credentials_for(host: str, pull_secret: bytes) -> Credentials | None:
    """What a secret of the type kubernetes.io/dockerconfigjson has for the registry. Raises FetchFailed if it is no such secret."""
    try:
        auths: dict[str, Any] = json.loads(pull_secret)["auths"]
        names = _DOCKER_HUB_NAMES if host in _DOCKER_HUB_NAMES else (host,)
        for key, entry in auths.items():
            if key in names or _host_of(key) in names:
                return _credentials(entry)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise FetchFailed("The pull secret has no readable .dockerconfigjson.", pull=True) from error
    return None


def _host_of(key: str) -> str:
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _credentials(entry: dict[str, str]) -> Credentials:
    if "auth" in entry:
        username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        return Credentials(username, password)
    return Credentials(entry["username"], entry["password"])


class RegistryAuth(httpx.Auth):
    """Answers a registry's challenge once: with a token from the server that it names, or with the credentials themselves."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._header = ""

    @override
    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if self._header:
            request.headers["Authorization"] = self._header
        response = yield request
        scheme, _, parameters = response.headers.get("WWW-Authenticate", "").partition(" ")
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return
        if scheme.lower() == "bearer":
            answer = yield self._token_request(parse_keqv_list(parse_http_list(parameters)))
            await answer.aread()
            self._header = f"Bearer {_token(answer)}"
        elif scheme.lower() == "basic" and self._credentials:
            self._header = _basic(self._credentials)
        else:
            return
        request.headers["Authorization"] = self._header
        yield request

    def _token_request(self, challenge: dict[str, str]) -> httpx.Request:
        wanted: dict[str, str | int | float | bool | None] = {
            name: challenge[name] for name in ("service", "scope") if name in challenge
        }
        headers = {"Authorization": _basic(self._credentials)} if self._credentials else {}
        return httpx.Request("GET", challenge.get("realm", ""), params=wanted, headers=headers)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _token(answer: httpx.Response) -> str:
    if answer.status_code != httpx.codes.OK:
        raise FetchFailed(
            f"failed to pull image: the registry's token server {answer.url.host} answered {answer.status_code}: check the pull secret.",
            pull=True,
        )
    try:
        body = answer.json()
        return str(body.get("token") or body["access_token"])
    except (ValueError, KeyError, AttributeError) as error:
        raise FetchFailed(
            f"failed to pull image: the registry's token server {answer.url.host} gave no token.", pull=True
        ) from error
