"""The client that programs use."""

from emberpool.client._sync.claims import Claims


class Client(Claims):
    """A client of one service: its claims, and each operation of its API under the name of the document.

    Use it as a context manager, or close it. It may be shared by all that runs in the process. Every method raises Refused and
    Unreachable.
    """
