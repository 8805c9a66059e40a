"""Which files are wanted, which are garbage, and which names a lost file takes along."""

import pytest

from app.devcluster.guests.disks.chains import Chains, DiskFile


def chains():
    """A volume on a layer, another volume on the same base, and a volume of its own."""
    files = {"base": DiskFile(10), "mid": DiskFile(10, "base"), "top": DiskFile(20, "mid"), "own": DiskFile(5)}
    files["other"] = DiskFile(10, "base")
    return Chains({"a": "top", "b": "other", "c": "own"}, {"frozen": "mid"}, files)


def test_a_chain_is_told_from_the_top_down():
    assert list(chains().chain("top")) == ["top", "mid", "base"]
    assert chains().depth("top") == 3


def test_nothing_that_a_volume_or_a_layer_leads_to_is_garbage():
    assert chains().take_garbage() == []


@pytest.mark.parametrize(
    ("forgotten", "garbage"),
    [
        (["c"], {"own"}),
        (["a"], {"top"}),
        (["a", "frozen"], {"top", "mid"}),
        (["b"], {"other"}),
        (["a", "frozen", "b"], {"top", "mid", "other", "base"}),
        (["unknown"], set()),
    ],
)
def test_a_file_is_garbage_once_the_last_name_that_leads_to_it_is_gone(forgotten, garbage):
    known = chains()
    for name in forgotten:
        known.forget(name)

    assert set(known.take_garbage()) == garbage
    assert garbage.isdisjoint(known.files)


@pytest.mark.parametrize(
    ("lost", "broken"), [("top", {"a"}), ("mid", {"a", "frozen"}), ("base", {"a", "b", "frozen"}), ("own", {"c"})]
)
def test_a_lost_file_takes_along_the_names_that_lead_to_it_and_no_others(lost, broken):
    known = chains()
    every = known.names()

    assert set(known.take_broken(set(known.files) - {lost})) == broken
    assert known.names() == every - broken


def test_what_is_written_down_is_read_again():
    assert Chains.from_json(chains().to_json()) == chains()


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"volumes": {}, "layers": {}},
        {"volumes": {"a": "gone"}, "layers": {}, "files": {}},
        {"volumes": {}, "layers": {}, "files": {"x": {"colour": 3}}},
        {"volumes": {"a": "x"}, "layers": {}, "files": {"x": {"size": 1, "backing": "gone"}}},
    ],
)
def test_a_list_of_disks_that_makes_no_sense_is_refused(told):
    with pytest.raises((LookupError, TypeError, AttributeError)):
        Chains.from_json(told)
