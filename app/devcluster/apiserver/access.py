"""Bearer tokens and their rights. Where no tokens are configured, everybody may do everything."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.devcluster.apiserver.status import ApiError, describe, qualified


@dataclass(frozen=True, slots=True)
class Rule:
    """Allows verbs on resources of API groups (`*` for any), in one namespace or, where that is empty, everywhere.

    A resource is named as in RBAC: `virtualmachines`, or `virtualmachines/start` for a subresource.
    """

    groups: tuple[str, ...] = ("*",)
    resources: tuple[str, ...] = ("*",)
    verbs: tuple[str, ...] = ("*",)
    namespace: str = ""

    def allows(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        return (
            _has(self.groups, group)
            and _has(self.resources, resource)
            and _has(self.verbs, verb)
            and self.namespace in {"", namespace}
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a token stands for. No rules means no rights beyond discovery."""

    user: str
    rules: tuple[Rule, ...] = ()


ADMINISTRATOR = Subject("system:admin", (Rule(),))


def authenticate(tokens: Mapping[str, Subject], header: str) -> Subject:
    """The subject of the token. Raises ApiError 401 for an unknown token, and for none where tokens are configured."""
    if not tokens:
        return ADMINISTRATOR
    scheme, _, token = header.partition(" ")
    subject = tokens.get(token.strip()) if scheme.lower() == "bearer" else None
    if subject is None:
        raise ApiError(401, "Unauthorized", "Unauthorized")
    return subject


def authorize(
    subject: Subject, verb: str, group: str, plural: str, subresource: str, namespace: str, name: str
) -> None:
    """Raises ApiError 403 if the subject may not do that."""
    if not may(subject, verb, group, f"{plural}/{subresource}" if subresource else plural, namespace):
        raise refusal(subject, verb, group, plural, subresource, namespace, name)


def may(subject: Subject, verb: str, group: str, resource: str, namespace: str) -> bool:
    return any(rule.allows(verb, group, resource, namespace) for rule in subject.rules)


def refusal(
    subject: Subject, verb: str, group: str, plural: str, subresource: str, namespace: str, name: str
) -> ApiError:
    """A 403 in the words of the RBAC authorizer."""
    resource = f"{plural}/{subresource}" if subresource else plural
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    named = f' "{name}"' if name else ""
    message = (
        f'{qualified(plural, group)}{named} is forbidden: User "{subject.user}" cannot {verb} resource "{resource}" '
        f'in API group "{group}" {where}'
    )
    return ApiError(403, "Forbidden", message, details=describe(group, plural, name))


def _has(allowed: tuple[str, ...], value: str) -> bool:
    return "*" in allowed or value in allowed
