"""Rules between pods, held against their definitions written out naively, on random nodes and pods."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.devcluster.scheduling.pod_terms import PodTerms
from app.devcluster.scheduling.spreading import Spread

KEYS = ("zone", "rack")
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
LABELS = st.fixed_dictionaries({}, optional={"app": st.sampled_from("ab"), "rev": st.sampled_from("12")})
SELECTORS = st.one_of(
    st.builds(lambda app: {"matchLabels": {"app": app}}, st.sampled_from("ab")),
    st.just({}),
    st.just({"matchExpressions": [{"key": "rev", "operator": "NotIn", "values": ["1"]}]}),
)
TERMS = st.lists(
    st.builds(lambda selector, key: {"labelSelector": selector, "topologyKey": key}, SELECTORS, st.sampled_from(KEYS)),
    max_size=2,
)
RULES = st.lists(
    st.builds(
        lambda selector, key, skew, domains: {
            "labelSelector": selector,
            "topologyKey": key,
            "maxSkew": skew,
            "minDomains": domains,
            "whenUnsatisfiable": "DoNotSchedule",
        },
        SELECTORS,
        st.sampled_from(KEYS),
        st.integers(1, 2),
        st.integers(1, 3),
    ),
    max_size=2,
)


@st.composite
def pods(draw):
    metadata = {"namespace": draw(st.sampled_from(["n1", "n1", "n2"])), "labels": draw(LABELS)}
    if draw(st.integers(0, 4)) == 0:
        metadata["deletionTimestamp"] = "2026-11-23T00:00:00Z"
    affinity = {"podAffinity": {REQUIRED: draw(TERMS)}, "podAntiAffinity": {REQUIRED: draw(TERMS)}}
    return {"metadata": metadata, "spec": {"affinity": affinity, "topologySpreadConstraints": draw(RULES)}}


@st.composite
def clusters(draw):
    """Nodes, each with the pods on it."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        labels = draw(st.fixed_dictionaries({}, optional={key: st.sampled_from("xyz") for key in KEYS}))
        node = {"metadata": {"name": f"node{number}", "labels": labels}, "spec": {}}
        found.append((node, draw(st.lists(pods(), max_size=3))))
    return found


def selected(selector, labels):
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(labels.get(rule["key"]) not in rule["values"] for rule in selector.get("matchExpressions", ()))


def about(term, owner, other):
    same = owner["metadata"]["namespace"] == other["metadata"]["namespace"]
    return same and selected(term["labelSelector"], other["metadata"]["labels"])


def terms_of(pod, kind):
    return pod["spec"]["affinity"][kind][REQUIRED]


def domain(node, key):
    return node["metadata"]["labels"].get(key)


def together(one, other, key):
    return domain(one, key) is not None and domain(one, key) == domain(other, key)


def may_join(pod, node, cluster):
    """By the affinity of the pod, and the anti-affinity of all."""
    placed = [(other, place) for place, found in cluster for other in found]
    wanted = terms_of(pod, "podAffinity")
    fellows = [(other, place) for other, place in placed if all(about(term, pod, other) for term in wanted)]
    near = all(any(together(node, place, term["topologyKey"]) for _, place in fellows) for term in wanted)
    # Fellows count only where their nodes have one of the labels that the terms name.
    anywhere = any(domain(place, term["topologyKey"]) is not None for _, place in fellows for term in wanted)
    first = not anywhere and all(about(term, pod, pod) for term in wanted)
    labelled = all(domain(node, term["topologyKey"]) is not None for term in wanted)
    apart = not any(
        about(term, pod, other) and together(node, place, term["topologyKey"])
        for term in terms_of(pod, "podAntiAffinity")
        for other, place in placed
    )
    welcome = not any(
        about(term, other, pod) and together(node, place, term["topologyKey"])
        for other, place in placed
        for term in terms_of(other, "podAntiAffinity")
    )
    return labelled and (near or first) and apart and welcome


def is_even(pod, node, cluster):
    rules = pod["spec"]["topologySpreadConstraints"]
    counted = [pair for pair in cluster if all(domain(pair[0], rule["topologyKey"]) is not None for rule in rules)]
    for rule in rules:
        key = rule["topologyKey"]
        if domain(node, key) is None:
            return False
        counts = {domain(place, key): 0 for place, _ in counted}
        for place, found in counted:
            counts[domain(place, key)] += sum(
                1 for other in found if "deletionTimestamp" not in other["metadata"] and about(rule, pod, other)
            )
        least = min(counts.values(), default=0) if len(counts) >= rule["minDomains"] else 0
        own = 1 if selected(rule["labelSelector"], pod["metadata"]["labels"]) else 0
        if counts.get(domain(node, key), 0) + own - least > rule["maxSkew"]:
            return False
    return True


@settings(max_examples=300, deadline=None)
@given(pod=pods(), cluster=clusters())
def test_affinity_between_pods(pod, cluster):
    terms = PodTerms(pod, [(other, node) for node, found in cluster for other in found], lambda _: {})

    for node, _ in cluster:
        assert (terms.refuse(node) is None) is may_join(pod, node, cluster)


@settings(max_examples=300, deadline=None)
@given(pod=pods(), cluster=clusters())
def test_spreading(pod, cluster):
    on = {node["metadata"]["name"]: found for node, found in cluster}
    spread = Spread(pod, "DoNotSchedule", [node for node, _ in cluster], on.__getitem__)

    for node, _ in cluster:
        assert (spread.refuse(node) is None) is is_even(pod, node, cluster)
