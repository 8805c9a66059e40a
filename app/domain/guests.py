"""What a pool or a described VM says of its guest: whether it has a channel to the service, and how it is used."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

MAX_RELEASE_SECONDS = 300
_USER = r"^[a-z_][a-z0-9_-]{0,31}$"
PATTERNS_IN_WORDS = {
    _USER: "a user's name is 1 to 32 lower-case letters, digits, '-' and '_', and begins with a letter or '_'"
}
"""The message for each pattern that does not match."""
_DEFAULT_RELEASE_SECONDS = 5


class GuestSpec(BaseModel):
    """With a channel each VM gets an identity disk, and its guest asks the service for what a claim hands over."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": [{"channel": True}]})

    channel: Annotated[bool, Strict()] = Field(
        default=False,
        description=(
            "Give each VM an identity disk with the guest program, by which a claim hands data over to its VM. VMs with the disk "
            "have another shape than VMs without."
        ),
    )
    user: str | None = Field(
        default=None,
        pattern=_USER,
        max_length=32,
        description="The user of the guest for whom claims are meant.",
        examples=["ubuntu"],
    )
    release_seconds: Annotated[int, Strict()] = Field(
        default=_DEFAULT_RELEASE_SECONDS,
        ge=0,
        le=MAX_RELEASE_SECONDS,
        description=(
            "How long a released VM is kept at most while its guest runs `/etc/emberpool/released.d`. It is removed as soon as the "
            "guest says that it has, and at once if the guest took nothing over."
        ),
    )


def has_channel(guest: GuestSpec | None) -> bool:
    return guest is not None and guest.channel
