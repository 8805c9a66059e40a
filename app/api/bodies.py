"""The JSON body of a request: from bytes to a valid value, for all routes the same.

What no layer below could hold is refused here, with its place: text that is no UTF-8, keys that are repeated, NUL characters
and halves of surrogate pairs, numbers beyond 64 bits, NaN, deep nesting, and more values than any body needs.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from json import JSONDecoder
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive
from typing_extensions import override

from app.api.problems import explain
from app.manifests import json_text
from app.manifests.encoding import decode
from app.manifests.values import INTEGERS, MAX_DEPTH, plain_number

LARGE: Final = 8 * 1024
"""In bytes. A larger body is read in a thread, so that no other request waits for it: 64 KiB of numbers take tens of milliseconds (measured)."""
_SIMPLE: Final = 1000
_THREAD: Final = ThreadPoolExecutor(1, "body")
"""One is enough: two would not read faster, and keep the event loop from the interpreter twice as long."""
_Found = TypeVar("_Found")


class BodyForm:
    """What a body has to be: a model, or any other type that pydantic validates."""

    def __init__(self, form: Any) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(form)
        self._model = form if isinstance(form, type) and issubclass(form, BaseModel) else None

    def read(self, raw: bytes) -> Any:
        """The body as an instance. Raises MalformedBody, InvalidRequest."""
        try:
            return self._adapter.validate_python(read_json(raw))
        except ValidationError as error:
            raise explain(error, self._model) from error


class BodyRoute(APIRoute):
    """A route whose body is read as this module reads it. The framework's own check has nothing left to do then."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        form = BodyForm(self.body_field.field_info.annotation)

        async def read_first(request: Request) -> Response:
            return await handle(_BodyRequest(request, form))

        return read_first


class _BodyRequest(Request):
    def __init__(self, request: Request, form: BodyForm) -> None:
        super().__init__(request.scope, request.receive)
        self._expected = form

    @override
    async def json(self) -> Any:
        raw = await self.body()
        return await in_turn(len(raw), partial(self._expected.read, raw))


async def read_whole(receive: Receive) -> bytes:
    """The whole body. Raises ClientDisconnect where the client broke off before its end: half a request is none."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def in_turn(size: int, read: Callable[[], _Found]) -> _Found:
    """The result of `read`, which works on a body of `size` bytes: at once, or in the thread if the body is large."""
    return read() if size <= LARGE else await in_thread(read)


async def in_thread(read: Callable[[], _Found]) -> _Found:
    """The result of `read`, which runs in the thread for bodies, one after another in order of arrival."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, read)


def read_json(raw: bytes) -> Any:
    """The value that the text is. Raises MalformedBody.

    A body without anything unusual is read by the standard library's parser in a few microseconds. All others are read by
    one that counts and locates each value.
    """
    try:
        return _read_simple(raw.decode())
    except ValueError:
        return json_text.read_value(decode(raw))


def _read_simple(text: str) -> Any:
    """Raises ValueError where the text is no simple JSON, which the other parser may still read."""
    if "\\u" in text or text.count("{") + text.count("[") > MAX_DEPTH or text.count(",") > _SIMPLE:
        raise ValueError("it may be nested deeply, have many values, or characters that cannot be stored")
    return _PARSER.decode(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _integer(digits: str) -> int:
    value = int(digits)
    if value not in INTEGERS:
        raise ValueError("it has more than 64 bits")
    return value


def _fraction(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("it is too large")
    return plain_number(value)


def _constant(word: str) -> float:
    raise ValueError(f"{word} is not a number in JSON")


_PARSER: Final = JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_fraction, parse_constant=_constant
)
