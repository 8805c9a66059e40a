"""The templates of claims: expanded once, and checked by the cluster once."""

import re
import time

import orjson

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.domain.claims import DescribedClaimRequest
from app.domain.guests import has_channel
from app.errors import FieldProblem, TemplateRefused

_CACHE_SIZE = 1000
_CHECKED_SECONDS = 60.0


class ClaimTemplates:
    """Caches of one process. Most claims repeat an earlier one, and expanding a template takes as long as a warm claim."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._expanded: dict[bytes, VmTemplate] = {}
        self._checked: dict[str, float] = {}

    def expand(self, request: DescribedClaimRequest) -> VmTemplate:
        """Raises TemplateRefused, with the fields of the claim."""
        diskless, placement = request.start_from is not None, request.placement
        channel = has_channel(request.guest)
        key = orjson.dumps((request.vm, request.warm_when, placement and placement.model_dump(), diskless, channel))
        template = self._expanded.get(key)
        if template is None:
            try:
                template = self._gateway.expand(
                    request.vm, request.warm_when, placement, diskless=diskless, channel=channel
                )
            except TemplateRefused as error:
                raise as_vm(error) from error
            if len(self._expanded) >= _CACHE_SIZE:
                self._expanded.clear()
            self._expanded[key] = template
        return template

    async def dry_run(self, template: VmTemplate) -> None:
        """Has the cluster check the template; call it with no transaction open.

        A template that passed is not checked again for a minute, so that a claim that is decided anew, or a manifest that is
        checked and then applied, costs one dry run. Raises TemplateRefused, ClusterUnavailable, ClusterError.
        """
        now = time.monotonic()
        if now < self._checked.get(template.fingerprint, 0.0):
            return
        try:
            await self._gateway.check(template)
        except TemplateRefused as error:
            raise as_vm(error) from error
        if len(self._checked) >= _CACHE_SIZE:
            self._checked.clear()
        self._checked[template.fingerprint] = now + _CHECKED_SECONDS


def as_vm(error: TemplateRefused) -> TemplateRefused:
    """A refusal of a pool's template, reworded for the claim's field `vm`."""
    problems = [FieldProblem(re.sub(r"^template\b", "vm", each.field), each.message) for each in error.problems]
    return TemplateRefused(re.sub(r"\btemplate(?=\.\w|:|\[)", "vm", error.detail), problems=problems)
