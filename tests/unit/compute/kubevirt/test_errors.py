import asyncio

import aiohttp
import pytest
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.config import ConfigException

from app.compute.kubevirt.errors import DEFAULT_RETRY_AFTER, NoRight, find_problems, translate, translating
from app.errors import (
    ClusterConflict,
    ClusterError,
    ClusterForbidden,
    ClusterNotFound,
    ClusterRefused,
    ClusterUnavailable,
    WatchExpired,
)

# Kubernetes 1.36, recorded.
NO_RIGHT = (
    'virtualmachines.kubevirt.io is forbidden: User "system:serviceaccount:rec:norights" cannot create resource '
    '"virtualmachines" in API group "kubevirt.io" in the namespace "rec"'
)
EXCEEDED = (
    'virtualmachines.kubevirt.io "q1" is forbidden: exceeded quota: q, requested: count/virtualmachines.kubevirt.io=1, '
    "used: count/virtualmachines.kubevirt.io=2, limited: count/virtualmachines.kubevirt.io=2"
)


def status(message, *, causes=None, reason="Invalid", **details):
    body = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "details": details}
    if causes is not None:
        body["details"]["causes"] = causes
    return body


@pytest.mark.parametrize(
    ("code", "error", "http"),
    [
        (400, ClusterRefused, 422),
        (401, NoRight, 503),
        (403, ClusterForbidden, 503),
        (404, ClusterNotFound, 404),
        (405, ClusterError, 502),
        (409, ClusterConflict, 409),
        (410, WatchExpired, 502),
        (413, ClusterRefused, 422),
        (415, ClusterError, 502),
        (422, ClusterRefused, 422),
        (429, ClusterUnavailable, 503),
        (500, ClusterUnavailable, 503),
        (503, ClusterUnavailable, 503),
        (504, ClusterUnavailable, 503),
        (0, ClusterError, 502),
    ],
)
def test_each_status_has_its_error_and_the_message_is_kept(code, error, http):
    found = translate(code, status("what the cluster says"), None, "create virtualmachines/a")
    assert type(found) is error
    assert found.status == http
    assert "what the cluster says" in found.detail


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ({"Retry-After": "7"}, {"retryAfterSeconds": 3}, 7),
        ({}, {"retryAfterSeconds": 3}, 3),
        (None, {}, DEFAULT_RETRY_AFTER),
        ({"Retry-After": "Mon, 23 Nov 2026 04:06:22 GMT"}, {}, DEFAULT_RETRY_AFTER),
        ({"Retry-After": "-1"}, {}, DEFAULT_RETRY_AFTER),
        ({"Retry-After": "inf"}, {}, DEFAULT_RETRY_AFTER),
    ],
)
def test_when_to_try_again(headers, details, seconds):
    assert translate(503, status("wait", **details), headers, "list").retry_after == seconds


def denied(message):
    return f'admission webhook "virtualmachine-validator.kubevirt.io" denied the request: {message}'


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (
            status(
                denied("spec.template.spec.domain.devices.disks[0].Name 'root' not found."),
                causes=[{"message": "not found", "field": "spec.template.spec.domain.devices.disks[0].name"}],
            ),
            ["spec.template.spec.domain.devices.disks[0].name"],
        ),
        (
            status(
                "two",
                causes=[
                    {"message": "a", "field": "spec.a"},
                    {"message": "b", "field": "spec.b"},
                    {"message": "a", "field": "spec.a"},
                ],
            ),
            ["spec.a", "spec.b"],
        ),
        (
            status(
                'VirtualMachine in version "v1" cannot be handled as a VirtualMachine: strict decoding error: '
                'unknown field "spec.foo", unknown field "spec.template.spec.domain.bar"',
                reason="BadRequest",
            ),
            ["spec.foo", "spec.template.spec.domain.bar"],
        ),
        (status('strict decoding error: duplicate field "spec.runStrategy"'), ["spec.runStrategy"]),
        (
            status(
                denied("spec.template in body is required"), causes=[{"message": "spec.template in body is required"}]
            ),
            ["spec.template"],
        ),
        (
            status(denied("spec.template.spec.volumes[1].cloudInitNoCloud userdata exceeds 2048 byte limit.")),
            ["spec.template.spec.volumes[1].cloudInitNoCloud"],
        ),
        (
            status(
                'VirtualMachine.kubevirt.io "c" is invalid: metadata.labels: Invalid value: "a/b/c"',
                causes=[{"message": "Invalid value", "field": "metadata.labels"}],
            ),
            ["metadata.labels"],
        ),
        (status("invalid", causes=[{"message": "Invalid value: null", "field": "<nil>"}]), [""]),
        (status(denied("quantities must match the regular expression '^([+-]?[0-9.]+)$'")), [""]),
        ({"message": "text"}, [""]),
    ],
)
def test_the_fields_of_a_refusal(body, fields):
    problems = find_problems(body)
    assert [problem.field for problem in problems] == fields
    assert all(problem.message for problem in problems)


def test_each_unknown_field_is_told_by_itself():
    text = 'strict decoding error: unknown field "spec.foo", duplicate field "spec.bar"'
    assert [each.message for each in find_problems(status(text))] == [
        'unknown field "spec.foo"',
        'duplicate field "spec.bar"',
    ]


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (TimeoutError(), ClusterUnavailable),
        (aiohttp.ServerTimeoutError("slow"), ClusterUnavailable),
        (aiohttp.ServerDisconnectedError(), ClusterUnavailable),
        (aiohttp.ClientPayloadError("cut"), ClusterUnavailable),
        (ConnectionResetError("reset"), ClusterUnavailable),
        (ConfigException("exec plugin failed"), ClusterUnavailable),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ClusterError),
    ],
)
def test_what_is_no_answer_is_translated_with_its_cause(raised, error):
    with pytest.raises(error) as found, translating("read virtualmachines/a"):
        raise raised
    assert type(found.value) is error
    assert found.value.__cause__ is raised
    assert "read virtualmachines/a" in found.value.detail


@pytest.mark.parametrize("body", [None, "", b"\xff\xfe", "<html>bad gateway</html>", "[]", "null"])
def test_an_answer_that_is_no_status_is_translated_by_its_code(body):
    answer = ApiException(status=502, reason="Bad Gateway")
    answer.body = body
    with pytest.raises(ClusterUnavailable) as found, translating("list virtualmachines"):
        raise answer
    assert found.value.retry_after == DEFAULT_RETRY_AFTER
    assert found.value.__cause__ is answer


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (NO_RIGHT, NoRight),
        (EXCEEDED, ClusterForbidden),
        # Policy engines deny with 403 (controller-runtime's `admission.Denied`).
        ('admission webhook "validation.gatekeeper.sh" denied the request: every VM needs an owner', ClusterRefused),
    ],
    ids=["authorizer", "quota", "policy"],
)
def test_a_403_of_the_authorizer_of_a_quota_and_of_a_policy_are_told_apart(message, error):
    assert type(translate(403, status(message, reason="Forbidden"), None, "create virtualmachines/a")) is error


def test_a_quotas_message_is_passed_on():
    message = 'virtualmachines.kubevirt.io "q1" is forbidden: exceeded quota: q'
    found = translate(403, status(message, reason="Forbidden"), None, "create virtualmachines/q1")
    assert message in found.detail


def test_a_cancelled_call_stays_cancelled():
    with pytest.raises(asyncio.CancelledError), translating("watch"):
        raise asyncio.CancelledError
