"""What is known of a claimed VM, and how one reaches it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emberpool.client.errors import EmberpoolError, NoVm
from emberpool.client.schemas import ClaimView

_PROGRAM = "ssh"


class Finished(NamedTuple):
    """How a command in a VM ended. `exit_code` 255: ssh itself failed, or the command ended with 255."""

    exit_code: int
    output: str
    errors: str


class VmFacts:
    """A VM of a claim, as the service last told. `claim` is the whole answer."""

    def __init__(self, claim: ClaimView) -> None:
        self.claim = claim
        self.lost: str | None = None
        """Why the claim has ended while the VM was in use; None: it has not, as far as is known."""

    @property
    def id(self) -> str:
        """The id of the claim."""
        return self.claim["id"]

    @property
    def name(self) -> str:
        return self.claim["vm"]["name"] if self.claim["vm"] is not None else ""

    @property
    def node(self) -> str | None:
        return self.claim["vm"]["node"] if self.claim["vm"] is not None else None

    @property
    def addresses(self) -> list[str]:
        """Those that the cluster tells; empty as long as it tells none. They are of the network of its pods."""
        return self.claim["vm"]["addresses"] if self.claim["vm"] is not None else []

    def require_bound(self, waited: float) -> None:
        """Raises NoVm unless the claim has a VM."""
        if self.claim["state"] != "bound":
            told = f"it is {self.claim['state']}: {self.claim['reason']}"
            raise NoVm(f"claim {self.id} got no VM in {waited:g} s; {told}", self.claim)

    def ssh_command(
        self,
        command: str | None = None,
        *,
        user: str,
        identity: str | Path | None = None,
        port: int = 22,
        known_hosts: str | Path | None = None,
    ) -> list[str]:
        """A command line of the system's `ssh` into the VM, for example for `subprocess.run`.

        The service brings no key into the VM. The VM's image has to run an SSH server and to know the key, and this machine has to
        reach the network of the cluster's pods. `identity`: the file of the private key; by default the agent's keys and
        those of ssh's configuration. `known_hosts`: the file with the VM's host key; without one the key that the VM shows
        is taken as it is, because no VM has been there before.
        """
        if not self.addresses:
            raise EmberpoolError(
                f"the cluster tells no address of {self.name} yet; look again (refresh), or use its console"
            )
        trusted = (
            (f"UserKnownHostsFile={known_hosts}", "StrictHostKeyChecking=yes")
            if known_hosts is not None
            else (f"UserKnownHostsFile={os.devnull}", "StrictHostKeyChecking=accept-new", "LogLevel=ERROR")
        )
        return [
            *(_PROGRAM, "-o", "BatchMode=yes", *_each("-o", trusted), "-p", str(port), "-l", user),
            *(("-i", str(identity), "-o", "IdentitiesOnly=yes") if identity is not None else ()),
            *("--", self.addresses[0]),
            *((command,) if command is not None else ()),
        ]


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (option, value)]
