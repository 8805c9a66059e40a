"""A list and a watch side by side: what is older never replaces what is newer, and what a list lacks was deleted."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from app.compute.kubevirt.versions import Versions, version_of


def test_an_older_object_of_a_list_does_not_replace_a_newer_one_of_the_watch():
    versions = Versions()
    versions.begin_list()
    assert versions.take("a", 7)
    assert not versions.take("a", 5)
    assert not versions.take("a", 7)
    assert versions.take("a", 8)


def test_what_a_list_lacks_was_deleted_unless_it_is_newer_than_the_list():
    versions = Versions()
    versions.take("deleted", 3)
    versions.take("stays", 4)
    versions.take("changes", 4)
    versions.begin_list()
    versions.take("stays", 4)
    versions.take("changes", 12)
    versions.take("young", 11)
    assert versions.end_list(10) == ["deleted"]
    assert versions.take("deleted", 3), "nothing is known of it any more"


def test_an_object_that_was_changed_after_the_list_and_is_not_in_it_stays():
    """It got our label after the list's version, which the watch told before the list began."""
    versions = Versions()
    versions.take("a", 12)
    versions.begin_list()
    assert versions.end_list(10) == []


def test_a_page_does_not_bring_back_what_was_deleted_meanwhile():
    versions = Versions()
    versions.take("a", 3)
    versions.begin_list()
    assert versions.drop("a", 9)
    assert not versions.take("a", 3)
    assert versions.take("a", 10), "it was made again"
    assert versions.end_list(8) == []


def test_the_deletion_of_an_earlier_object_of_the_name_does_not_count():
    versions = Versions()
    versions.take("a", 9)
    assert not versions.drop("a", 8)
    assert versions.drop("a", 10)


def test_after_versions_went_back_everything_is_taken():
    """GIVEN a cluster that was restored from a backup THEN its older versions replace what is known, and what it lacks goes."""
    versions = Versions()
    for key in ("kept", "lost"):
        versions.take(key, 50)
    versions.restart(20)
    versions.begin_list()
    assert versions.take("kept", 15)
    assert versions.end_list(20) == ["lost"]


def test_an_object_without_a_version_is_taken_as_it_comes():
    versions = Versions()
    assert version_of({"metadata": {"resourceVersion": "opaque"}}) == version_of({}) == 0
    assert versions.take("a", 0)
    assert versions.take("a", 0)
    assert versions.drop("a", 0)


@dataclass
class Follower:
    """Keeps what `Versions` lets through."""

    versions: Versions = field(default_factory=Versions)
    known: dict = field(default_factory=dict)

    def list(self, name, version):
        if self.versions.take(name, version):
            self.known[name] = version

    def hear(self, version, name, exists):
        if exists:
            self.list(name, version)
        elif self.versions.drop(name, version):
            self.known.pop(name, None)

    def end(self, version):
        for name in self.versions.end_list(version):
            del self.known[name]


def state_after(history):
    state = {}
    for version, name, exists in history:
        state.pop(name, None)
        if exists:
            state[name] = version
    return state


CHANGES = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12)


@given(CHANGES, st.data())
def test_whatever_the_order_of_list_and_watch_the_end_is_the_clusters(changes, data):
    """GIVEN a history, and a watch that missed a part of it WHEN a list of a later moment comes page by page between the events of
    all that happened after it began THEN the end is what the cluster has.
    """
    history = [(number, name, exists) for number, (name, exists) in enumerate(changes, 1)]
    began = data.draw(st.integers(0, len(history)))
    at = data.draw(st.integers(began, len(history)))
    follower = Follower()
    for change in history[: data.draw(st.integers(0, began))]:
        follower.hear(*change)
    follower.versions.begin_list()
    pages, events = list(state_after(history[:at]).items()), history[began:]
    while pages or events:
        if pages and (not events or data.draw(st.booleans())):
            follower.list(*pages.pop(0))
        else:
            follower.hear(*events.pop(0))
    follower.end(at)
    assert follower.known == state_after(history)
