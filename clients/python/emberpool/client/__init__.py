"""A client of Emberpool, which hands out running VMs.

    with Client() as client, client.claim("web") as vm:
        print(vm.name, vm.addresses)

`AsyncClient` has the same methods for asyncio. `schemas` are the types of the JSON, as the service's OpenAPI document has them.
"""

from emberpool.client import errors, schemas
from emberpool.client._async.claims import AsyncVm
from emberpool.client._async.client import AsyncClient
from emberpool.client._sync.claims import Vm
from emberpool.client._sync.client import Client
from emberpool.client._vm import Finished
from emberpool.client._where import DEFAULT_URL
from emberpool.client.errors import (
    ClaimLost,
    Conflict,
    EmberpoolError,
    Invalid,
    Misconfigured,
    NotFound,
    NoVm,
    Refused,
    Unauthenticated,
    Unavailable,
    Unreachable,
)

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "AsyncVm",
    "ClaimLost",
    "Client",
    "Conflict",
    "EmberpoolError",
    "Finished",
    "Invalid",
    "Misconfigured",
    "NoVm",
    "NotFound",
    "Refused",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Vm",
    "errors",
    "schemas",
]
