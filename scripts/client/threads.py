"""The client for threads, made of the one for asyncio word by word."""

import re
from typing import Final

HAND_WRITTEN: Final = "background.py"
"""What the two differ in."""
_WORDS: Final = {
    "async def": "def",
    "async with": "with",
    "async for": "for",
    "await ": "",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aread": "read",
    "aiter_sse": "iter_sse",
    "aiter_bytes": "iter_bytes",
    "aconnect_sse": "connect_sse",
    "asynccontextmanager": "contextmanager",
    "async_auth_flow": "sync_auth_flow",
    "AsyncGenerator[httpx.Request, httpx.Response]": "Generator[httpx.Request, httpx.Response, None]",
    "AsyncGenerator": "Generator",
    "AsyncIterator": "Iterator",
    "AsyncRetrying": "Retrying",
    "AsyncBaseTransport": "BaseTransport",
    "emberpool.client._async": "emberpool.client._sync",
    "for asyncio, of which the other one is made (`scripts/client`)": "for threads, made of the one for asyncio by `make client`",
}
_CLASS: Final = re.compile(r"\bAsync([A-Z]\w*)")


def for_threads(source: str) -> str:
    for word, instead in _WORDS.items():
        source = source.replace(word, instead)
    return _CLASS.sub(r"\1", source)
