"""Connections that break before a request is answered."""

import httpx


class Flaky(httpx.BaseTransport):
    """Breaks the first connections, each in the way that is next; then answers with `answer`."""

    def __init__(self, *breaks: type[httpx.TransportError], answer: httpx.Response) -> None:
        self.requests: list[httpx.Request] = []
        self._breaks = list(breaks)
        self._answer = answer

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self._breaks:
            raise self._breaks.pop(0)("broken")
        return self._answer
