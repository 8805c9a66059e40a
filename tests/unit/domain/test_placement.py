from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.domain.placement import Aspect, Placement, Prefer, Terms, contradictions, in_words

GI, MI = 2**30, 2**20
PINNED = Terms(vcpus=4, pod_cpus=4, dedicated=True, guest_memory=Fraction(4 * GI))
PAGED = replace(PINNED, page=Fraction(2 * MI))


def aspects(terms, **knobs):
    return [found.aspect for found in contradictions(terms, **knobs)]


class TestContradictions:
    @pytest.mark.parametrize(
        ("terms", "aspect", "words"),
        [
            (Terms(isolated=True), Aspect.ISOLATED, "needs dedicated CPUs"),
            (Terms(numa=True), Aspect.NUMA, "needs dedicated CPUs and hugepages"),
            (replace(PINNED, numa=True), Aspect.NUMA, "needs hugepages"),
            (Terms(numa=True, page=Fraction(GI)), Aspect.NUMA, "needs dedicated CPUs"),
            (Terms(realtime=True), Aspect.REALTIME, "needs dedicated CPUs and NUMA passthrough"),
            (replace(PAGED, realtime=True), Aspect.REALTIME, "needs NUMA passthrough"),
            (replace(PINNED, threads=4), Aspect.THREADS, "got 4"),
            (replace(PINNED, cpu_request=Fraction(3, 2)), Aspect.CPU_REQUEST, "got 1.5"),
            (replace(PINNED, cpu_limit=Fraction(1, 3)), Aspect.CPU_LIMIT, "whole CPUs"),
            (replace(PINNED, cpu_request=Fraction(4), cpu_limit=Fraction(8)), Aspect.CPU_LIMIT, "it is 8"),
            (replace(PINNED, cpu_request=Fraction(2), cpu_limit=Fraction(2)), Aspect.CPU_REQUEST, "the VM has 4"),
            (
                replace(PINNED, memory_request=Fraction(4 * GI), memory_limit=Fraction(5 * GI)),
                Aspect.MEMORY_LIMIT,
                "must be the request",
            ),
            (
                Terms(page=Fraction(2 * MI), guest_memory=Fraction(1001 * MI)),
                Aspect.GUEST_MEMORY,
                "write 1000Mi or 1002Mi",
            ),
            (Terms(page=Fraction(GI), guest_memory=Fraction(512 * MI)), Aspect.GUEST_MEMORY, "write 1Gi"),
            (
                Terms(page=Fraction(GI), guest_memory=Fraction(GI), memory_request=Fraction(GI + 1)),
                Aspect.MEMORY_REQUEST,
                "multiple of the page of 1Gi",
            ),
            (Terms(page=Fraction(GI), memory_limit=Fraction(GI + 1)), Aspect.MEMORY_LIMIT, "multiple"),
        ],
    )
    def test_each_is_told_of_its_own_aspect(self, terms, aspect, words):
        (found,) = contradictions(terms)
        assert found.aspect is aspect
        assert words in found.message

    @pytest.mark.parametrize(
        "terms",
        [
            Terms(),
            Terms(threads=8),
            Terms(cpu_request=Fraction(1, 10), cpu_limit=Fraction(2)),
            PINNED,
            replace(PINNED, cpu_request=Fraction(4), cpu_limit=Fraction(4)),
            replace(PINNED, threads=2, isolated=True),
            replace(PAGED, numa=True, realtime=True),
            replace(PINNED, vcpus=None, pod_cpus=None, cpu_request=Fraction(2)),
        ],
    )
    def test_what_goes_together_is_left_alone(self, terms):
        assert contradictions(terms) == ()

    def test_odd_numbers_are_refused_where_whole_cores_are_given_out_and_nowhere_else(self):
        odd = replace(PINNED, vcpus=3, pod_cpus=3)
        assert aspects(odd) == []
        assert aspects(odd, full_cores_only=True) == [Aspect.DEDICATED]
        assert aspects(PINNED, full_cores_only=True) == []
        assert aspects(replace(odd, dedicated=False), full_cores_only=True) == []


@given(st.integers(min_value=1, max_value=2**45), st.sampled_from([2 * MI, GI]))
def test_memory_that_is_advised_is_never_refused(amount, page):
    terms = Terms(page=Fraction(page), guest_memory=Fraction(amount))
    if amount % page == 0:
        assert contradictions(terms) == ()
        return
    (found,) = contradictions(terms)
    below = amount // page * page
    assert in_words(below + page) in found.message
    assert contradictions(replace(terms, guest_memory=Fraction(below + page))) == ()


class TestShapes:
    @pytest.mark.parametrize(
        "written",
        [
            {"hugepages": "3Mi"},
            {"dedicated_cpus": "yes"},
            {"node_selector": {"a": "not a value"}},
            {"cpu_model": ""},
            {"spread": "racks"},
            {"pinned": True},
        ],
    )
    def test_what_is_no_placement_is_refused_by_its_field(self, written):
        with pytest.raises(ValidationError) as refused:
            Placement.model_validate(written)
        assert refused.value.errors()[0]["loc"][0] == next(iter(written))

    @pytest.mark.parametrize("word", ["spread", "pack"])
    def test_a_preference_may_be_a_word(self, word):
        assert Prefer.model_validate(word) == Prefer.model_validate({word: True})

    @pytest.mark.parametrize(
        "written", [{}, {"zone": "a", "node": "b"}, {"spread": True, "pack": True}, {"pack": False}]
    )
    def test_a_preference_is_one_thing(self, written):
        with pytest.raises(ValidationError, match="say one of them"):
            Prefer.model_validate(written)
