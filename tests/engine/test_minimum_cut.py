"""The minimum cut against trying every set of nodes."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrnn.engine.minimum_cut import vertex_cut


def separates(chosen, edges, sources, sinks):
    open_nodes = [s for s in sources if s not in chosen]
    seen = set(open_nodes)
    while open_nodes:
        here = open_nodes.pop()
        if here in sinks:
            return False
        for a, b in edges:
            if a == here and b not in chosen and b not in seen:
                seen.add(b)
                open_nodes.append(b)
    return True


nodes = st.integers(0, 6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=7, max_size=7),
    st.lists(st.tuples(nodes, nodes).filter(lambda e: e[0] < e[1]), max_size=14),
    st.sets(nodes, min_size=1, max_size=3),
    st.sets(nodes, min_size=1, max_size=3),
)
def test_it_is_a_cut_and_none_is_cheaper(costs, edges, sources, sinks):
    cost = dict(enumerate(costs))
    found = vertex_cut(cost, edges, sources, sinks)
    assert separates(found, edges, sources, sinks)
    cheapest = min(
        sum(cost[n] for n in chosen)
        for k in range(8)
        for chosen in itertools.combinations(cost, k)
        if separates(set(chosen), edges, sources, sinks)
    )
    assert sum(cost[n] for n in found) == cheapest


def test_of_equals_the_one_nearest_to_the_sinks():
    assert vertex_cut({"a": 1, "b": 1, "c": 1}, [("a", "b"), ("b", "c")], ["a"], ["c"]) == {"c"}
