"""Whose the objects in the cluster are: the installation's id on them, and its Lease."""

from typing import Protocol

from app.domain.ownership import FoundVm, LeaseRecord


class OwnershipGateway(Protocol):
    """One Lease stands for all services with the same instance in the namespace, whatever their databases are."""

    def identify(self, installation: str) -> None:
        """Everything that is created from now on carries this id. No network."""
        ...

    async def read_lease(self) -> LeaseRecord | None:
        """None if there is none."""
        ...

    async def write_lease(self, before: LeaseRecord | None, *, sequence: int, writer: str, replica: str) -> None:
        """Makes or renews the Lease for the installation that `identify` named. `replica` is for people.

        Raises ClusterConflict if it is not the one of `before` any more.
        """
        ...

    async def survey(self) -> tuple[FoundVm, ...]:
        """Every VM of the instance, whoever made it, and what it carries."""
        ...

    async def sign(self, *, name: str, uid: str) -> None:
        """Writes the installation's id onto exactly that VM. It is success if the VM has gone."""
        ...
