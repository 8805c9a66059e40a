"""SelfSubjectAccessReviews: what the caller may do. Whoever has a valid token may ask (Kubernetes' `system:basic-user`)."""

import orjson

from app.devcluster.apiserver.access import Subject, may
from app.devcluster.apiserver.requests import Target
from app.devcluster.apiserver.status import Json, bad_request
from app.devcluster.faults.disruptions import Disruptions

GROUP = "authorization.k8s.io"


def is_review(target: Target) -> bool:
    return (target.group, target.version, target.plural) == (GROUP, "v1", "selfsubjectaccessreviews")


def answer(body: bytes, subject: Subject, disruptions: Disruptions) -> Json:
    """The review with its status. Raises ApiError 400 if the body asks for nothing."""
    try:
        review: Json = orjson.loads(body)
        asked: dict[str, str] = review["spec"]["resourceAttributes"]
        verb, resource = asked["verb"], asked["resource"]
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        raise bad_request("a SelfSubjectAccessReview needs spec.resourceAttributes with verb and resource") from error
    namespace, group = asked.get("namespace", ""), asked.get("group", "")
    named = f"{resource}/{asked['subresource']}" if asked.get("subresource") else resource
    allowed = may(subject, verb, group, named, namespace)
    if disruptions.forbids(verb, resource, namespace, asked.get("name", ""), asks=True):
        allowed = False
    return {**review, "status": {"allowed": allowed}}
