"""The template of a pool's VMs, from what the pool's spec says of them."""

from app.compute.capabilities import Capability
from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.domain.guests import GuestSpec, has_channel
from app.domain.pools import PoolSpec
from app.errors import InvalidRequest


def expand_pool(gateway: Gateway, spec: PoolSpec) -> VmTemplate:
    """Raises TemplateRefused."""
    return gateway.expand(
        spec.template,
        spec.warm_when,
        spec.placement,
        diskless=spec.start_from is not None,
        channel=spec.has_channel,
    )


async def refuse_unreachable(gateway: Gateway, guest: GuestSpec | None) -> None:
    """Raises InvalidRequest where guests are to have a channel, and the service could not be reached by it."""
    if has_channel(guest) and (why := await gateway.unavailable(Capability.IDENTITIES)) is not None:
        raise InvalidRequest.of_field("guest.channel", f"no guest could reach the service: {why}")
