"""When a refusal for lack of a right is believed."""

import pytest

from app.compute.kubevirt.access import Access, AccessJudge
from app.compute.kubevirt.errors import NoRight
from app.errors import ClusterForbidden, ClusterUnavailable

CREATE = Access("create", "kubevirt.io", "virtualmachines", "vms")
REFUSED = NoRight("The cluster forbids to create a VM", retry_after=30)
NOT_READY = NoRight("The cluster forbids to ask")


class Scene:
    """A judge whose review answers what the test says, at a time that the test sets."""

    def __init__(self, seconds=5.0):
        self.allowed: bool | Exception = False
        self.now = 0.0
        self.reviewed: list[Access] = []
        self.judge = AccessJudge(self._review, believe_seconds=seconds, clock=lambda: self.now)

    async def _review(self, access):
        self.reviewed.append(access)
        if isinstance(self.allowed, Exception):
            raise self.allowed
        return self.allowed

    async def refused(self, after=0.0):
        self.now += after
        return await self.judge.judge(CREATE, REFUSED)


@pytest.fixture
def scene():
    return Scene()


async def test_a_right_that_is_really_missing_is_believed_once_it_was_repeated_for_a_while(scene):
    first = await scene.refused()
    assert isinstance(first, ClusterUnavailable)
    assert (first.retry_after, scene.reviewed) == (1, [CREATE])
    assert isinstance(await scene.refused(after=4.9), ClusterUnavailable)
    believed = await scene.refused(after=0.1)
    assert isinstance(believed, ClusterForbidden)
    assert (believed.detail, believed.retry_after) == (REFUSED.detail, 30)


async def test_a_right_that_the_cluster_says_we_have_was_refused_by_a_server_that_starts(scene):
    scene.allowed = True
    for _ in range(3):
        assert isinstance(await scene.refused(after=100), ClusterUnavailable)


@pytest.mark.parametrize("error", [NOT_READY, ClusterUnavailable("it is away")])
async def test_a_refusal_is_believed_later_where_the_cluster_does_not_say_what_rights_we_have(scene, error):
    scene.allowed = error
    await scene.refused()
    assert isinstance(await scene.refused(after=29), ClusterUnavailable)
    assert isinstance(await scene.refused(after=1), ClusterForbidden)


async def test_a_success_in_between_begins_the_while_anew(scene):
    await scene.refused()
    scene.judge.granted(CREATE)
    assert isinstance(await scene.refused(after=60), ClusterUnavailable)


async def test_a_refusal_of_long_ago_does_not_count(scene):
    await scene.refused()
    assert isinstance(await scene.refused(after=3600), ClusterUnavailable)


async def test_each_right_is_judged_by_itself(scene):
    await scene.refused()
    scene.now += 60
    other = Access("list", "", "nodes")
    assert isinstance(await scene.judge.judge(other, REFUSED), ClusterUnavailable)
    assert isinstance(await scene.refused(), ClusterForbidden)


def test_a_review_names_what_is_asked_and_leaves_out_what_is_not():
    assert CREATE.review()["spec"] == {
        "resourceAttributes": {
            "verb": "create",
            "group": "kubevirt.io",
            "resource": "virtualmachines",
            "namespace": "vms",
        }
    }
    log = Access("get", "", "pods/log").review()["spec"]["resourceAttributes"]
    assert log == {"verb": "get", "resource": "pods", "subresource": "log"}
    assert Access("list", "", "nodes").review()["spec"] == {"resourceAttributes": {"verb": "list", "resource": "nodes"}}
