"""A pool's spec after a merge patch: GIVEN the spec, WHEN it is patched, THEN it is this, or is refused for these fields."""

import pytest
from pydantic import ValidationError

from app.domain.pools import PoolSpec, patched

LONG = {
    "spec": {"domain": {"cpu": {"cores": 2}, "memory": {"guest": "2Gi"}}, "volumes": [{"name": "a"}, {"name": "b"}]}
}


def spec(**given):
    return PoolSpec.model_validate({"size": 4, "template": {"image": "a", "memory": "1Gi"}, **given})


CHANGES = {
    "nothing": ({}, {}, {}),
    "the size alone": ({"min_available": 2}, {"size": 9}, {"size": 9, "min_available": 2}),
    "null is the default": (
        {"min_available": 2, "max_vms": 9, "warm_when": "ready", "auto_replenish": False},
        {"min_available": None, "max_vms": None, "warm_when": None, "auto_replenish": None},
        {"min_available": 0, "max_vms": None, "warm_when": "agent", "auto_replenish": True},
    ),
    "null where there is nothing": ({}, {"placement": None, "max_vms": None}, {}),
    "a field of the template": ({}, {"template": {"memory": "2Gi"}}, {"template": {"image": "a", "memory": "2Gi"}}),
    "a field is removed from the template": (
        {"template": {"image": "a", "memory": "1Gi", "cpu": 2}},
        {"template": {"cpu": None, "disk": None}},
        {"template": {"image": "a", "memory": "1Gi"}},
    ),
    "deep in the template": (
        {"template": LONG},
        {"template": {"spec": {"domain": {"memory": {"guest": "4Gi"}}}}},
        {
            "template": {
                "spec": {
                    "domain": {"cpu": {"cores": 2}, "memory": {"guest": "4Gi"}},
                    "volumes": [{"name": "a"}, {"name": "b"}],
                }
            }
        },
    ),
    "a list is replaced as a whole": (
        {"template": LONG},
        {"template": {"spec": {"volumes": [{"name": "c"}], "domain": None}}},
        {"template": {"spec": {"volumes": [{"name": "c"}]}}},
    ),
    "one form of the template for the other": (
        {},
        {"template": {"image": None, "memory": None, "spec": {"domain": {"memory": {"guest": "1Gi"}}}}},
        {"template": {"spec": {"domain": {"memory": {"guest": "1Gi"}}}}},
    ),
    "an object for a value, without its nulls": (
        {"template": {"image": "a"}},
        {"template": {"image": {"a": None, "b": {"c": None, "d": 1}}}},
        {"template": {"image": {"b": {"d": 1}}}},
    ),
    "nulls that the template had before stay": (
        {"template": {"image": None, "memory": "1Gi"}},
        {"template": {"memory": "2Gi"}},
        {"template": {"image": None, "memory": "2Gi"}},
    ),
    "another source": (
        {"start_from": {"snapshot": "a"}},
        {"start_from": {"snapshot": None, "preload": "b"}},
        {"start_from": {"preload": "b"}},
    ),
    "no source": ({"start_from": {"snapshot": "a"}}, {"start_from": None}, {"start_from": None}),
    "a part of the placement": (
        {"placement": {"dedicated_cpus": True, "node_selector": {"a": "1", "b": "2"}}},
        {"placement": {"hugepages": "2Mi", "dedicated_cpus": None, "node_selector": {"a": None}}},
        {"placement": {"hugepages": "2Mi", "node_selector": {"b": "2"}}},
    ),
    "a placement where there was none": (
        {},
        {"placement": {"spread": "zones", "hugepages": None}},
        {"placement": {"spread": "zones"}},
    ),
}


@pytest.mark.parametrize(("given", "patch", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_patch_changes_what_it_names_and_keeps_the_rest(given, patch, expected):
    before = spec(**given)
    written = before.model_dump(mode="json")
    assert patched(before, patch) == PoolSpec.model_validate({**written, **expected})
    assert before.model_dump(mode="json") == written


REFUSED = {
    "below the floor": ({"min_available": 2}, {"size": 1}, ["min_available"]),
    "a field that must be there": ({}, {"size": None}, ["size"]),
    "no template": ({}, {"template": None}, ["template"]),
    "an unknown field": ({}, {"sise": 3}, ["sise"]),
    "an unknown field that is null": ({}, {"sise": None}, ["sise"]),
    "an unknown field of a part": ({}, {"placement": {"hugepage": "2Mi"}}, ["placement.hugepage"]),
    "likewise, null": ({}, {"placement": {"hugepage": None}}, ["placement.hugepage"]),
    "both sources": ({"start_from": {"snapshot": "a"}}, {"start_from": {"preload": "b"}}, ["start_from"]),
    "another type": ({}, {"size": "3"}, ["size"]),
    "an object where there is none": ({}, {"size": {"a": 1}}, ["size"]),
}


@pytest.mark.parametrize(("given", "patch", "fields"), REFUSED.values(), ids=REFUSED)
def test_a_patch_is_validated_as_the_whole_that_it_makes(given, patch, fields):
    with pytest.raises(ValidationError) as refused:
        patched(spec(**given), patch)
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == fields
