"""The unrolled graph: equal to the scan in values and gradients, for nets drawn at random too."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jaxrnn as rnn
from jaxrnn import prev
from tests.reference import assert_close, scalar
from tests.zoo import CELLS, sequence

T, B = 5, 2
F64 = jnp.float64
FEW = settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])


def dense(size):
    return nn.Dense(size, dtype=F64, param_dtype=F64)


def squashed(size):
    return rnn.stack(rnn.layer(dense(size)), rnn.lift(jnp.tanh))


def nested():
    return rnn.graph(
        {"a": (squashed(3), ["x", prev("b", steps=2)]), "b": (squashed(2), ["a", prev("a")])}, output=("a", "b")
    )


WHATS = {
    "layer": lambda: squashed(2),
    "gru": lambda: rnn.gru(3, dtype=F64),
    "lstm": lambda: rnn.lstm(2, dtype=F64, learn_initial_state=True),
    "jordan": lambda: rnn.jordan(3, 2, dtype=F64),
    "graph": lambda: rnn.stack(nested(), rnn.lift(lambda pair: jnp.concatenate(pair, axis=-1))),
    "function": lambda: total,
}


def total(*values):
    """A function of any number of arrays of any size: [..., 2]."""
    sums = [jnp.sum(jnp.sin(value), axis=-1, keepdims=True) for value in values]
    return jnp.concatenate([sum(sums), sums[0]], axis=-1)


@st.composite
def drawings(draw):
    """Up to 8 vertices (name, what, sources); each reads some of those before it, and any with a delay of 1 to 3."""
    names = [f"v{n}" for n in range(draw(st.integers(1, 8)))]
    drawing = []
    for n, name in enumerate(names):
        now = draw(st.lists(st.sampled_from(["x", *names[:n]]), max_size=2, unique=True))
        late = draw(st.lists(st.tuples(st.sampled_from(["x", *names]), st.integers(1, 3)), max_size=2, unique=True))
        sources = [*now, *(prev(source, steps=d) for source, d in late)] or ["x"]
        drawing.append((name, draw(st.sampled_from(sorted(WHATS))), draw(st.permutations(sources))))
    return drawing


@pytest.mark.slow
@given(drawing=drawings(), scan=st.sampled_from([jax.lax.scan, rnn.scan, rnn.checkpointed(2)]), seed=st.integers(0, 99))
@FEW
def test_a_random_graph_equals_its_unrolled_graph(drawing, scan, seed):
    with jax.enable_x64(True):
        vertices = {name: (WHATS[what](), sources) for name, what, sources in drawing}
        net = rnn.graph(vertices, output=tuple(vertices))
        xs = sequence(seed, (T, B), F64)
        params = net.init(jax.random.key(seed), xs[0])
        state = jax.tree.map(lambda a: a + 0.1, net.initial_state(params, (B,)))

        def by_scan(params, xs, state):
            out = rnn.unroll(net, params, xs, state, scan=scan)
            return scalar(*out), out

        def by_copies(params, xs, state):
            out = rnn.graphs.unrolled(net, T).evaluate(params, xs, state)
            return scalar(*out), out

        gradients = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(params, xs, state)
        assert_close(gradients(by_scan), gradients(by_copies), 1e-10)


def elman():
    return rnn.graph({"h": (squashed(3), ["x", prev("h")]), "y": (dense(2), "h")}, output="y")


def test_the_copies_of_elman(x64):
    net = rnn.graphs.unrolled(elman(), 3)
    assert net.vertices == (("h", 0), ("y", 0), ("h", 1), ("y", 1), ("h", 2), ("y", 2))
    assert [(e.source, e.target, e.delay) for e in net.edges] == [
        (("x", 0), ("h", 0), 0),
        (("h", -1), ("h", 0), 1),
        (("h", 0), ("y", 0), 0),
        (("x", 1), ("h", 1), 0),
        (("h", 0), ("h", 1), 1),
        (("h", 1), ("y", 1), 0),
        (("x", 2), ("h", 2), 0),
        (("h", 1), ("h", 2), 1),
        (("h", 2), ("y", 2), 0),
    ]
    assert net.critical_path == (("h", 0), ("h", 1), ("h", 2), ("y", 2)) and net.depth == 4
    assert not any(e.is_state or e.is_cut for e in net.edges)


@pytest.mark.parametrize("steps, depth", [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_a_longer_delay_makes_a_shallower_net(steps, depth):
    net = rnn.graph({"h": (dense(2), ["x", prev("h", steps=3)])}, output="h")
    assert rnn.graphs.unrolled(net, steps).depth == depth


def test_vertices_with_a_state_read_themselves():
    vertices = {
        "e": (nn.Embed(5, 3), "x"),
        "gru": (rnn.gru(3), "e"),
        "flax": (nn.OptimizedLSTMCell(3), "gru"),
        "stack": (rnn.stack(rnn.layer(nn.Dense(2)), rnn.lift(jnp.tanh)), "flax"),
        "deep": (rnn.stack(rnn.layer(nn.Dense(2)), rnn.lstm(2)), "stack"),
        "graph": (rnn.graph({"a": (nn.Dense(2), ["x", prev("a")])}, "a"), "deep"),
        "plain": (rnn.graph({"a": (nn.Dense(2), "x")}, "a"), "graph"),
        "add": (jnp.add, ["plain", "plain"]),
    }
    net = rnn.graphs.unrolled(rnn.graph(vertices, output="add"), 2)
    assert [e.target for e in net.edges if e.is_state] == [(name, t) for t in (0, 1) for name in RECURRENT]


RECURRENT = ("gru", "flax", "deep", "graph")


@given(drawing=drawings())
@FEW
def test_the_order_is_topological_and_the_critical_path_a_path(drawing):
    vertices = {name: (jnp.add, sources) for name, _, sources in drawing}
    net = rnn.graphs.unrolled(rnn.graph(vertices, output=tuple(vertices)), 4)
    place = {copy: n for n, copy in enumerate(net.vertices)}
    inner = [e for e in net.edges if e.source in place]
    assert all(place[e.source] < place[e.target] for e in inner)
    links = {(e.source, e.target) for e in inner}
    assert all(link in links for link in zip(net.critical_path, net.critical_path[1:], strict=False))
    # Longest paths by brute force: so many times as it takes, relax every edge.
    length = dict.fromkeys(place, 1)
    for _ in place:
        for e in inner:
            length[e.target] = max(length[e.target], length[e.source] + 1)
    assert net.depth == max(length.values())


def both_ways(cell, scan, evaluate, params, xs, **options):
    def loss(run):
        def total(params, xs):
            out = run(cell, params, xs, **options)
            return scalar(*out), out

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, xs)

    return loss(lambda cell, *args, **options: rnn.unroll(cell, *args, scan=scan, **options)), loss(evaluate)


def with_everything():
    return CELLS["graph"](jnp.dtype("float64"))


@pytest.mark.parametrize("key", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_with_and_without_randomness_it_equals_unroll(key, x64):
    cell, xs = with_everything(), sequence(0, (T, B), F64)
    params = cell.init(jax.random.key(0), xs[0])
    evaluate = lambda cell, *args, **options: rnn.graphs.unrolled(cell, T).evaluate(*args, **options)
    options = {} if key is None else {"key": jax.random.key(key)}
    assert_close(*both_ways(cell, rnn.scan, evaluate, params, xs, **options), 1e-10)


@functools.cache
def never_cut():
    cell, xs = with_everything(), sequence(0, (T, B), F64)
    params = cell.init(jax.random.key(0), xs[0])
    loss = lambda params, xs: scalar(*rnn.unroll(cell, params, xs, scan=jax.lax.scan))
    return cell, xs, params, jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, xs)


@pytest.mark.parametrize("segment", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4, 5))])
def test_cut_edges_are_those_over_which_truncated_lets_no_gradient_pass(segment, x64):
    cell, xs, params, uncut = never_cut()
    net = rnn.graphs.unrolled(cell, T).truncated(segment)
    evaluate = lambda cell, *args: net.evaluate(*args)
    cut, by_copies = both_ways(cell, rnn.truncated(segment), evaluate, params, xs)
    assert_close(cut, by_copies, 1e-10)
    crosses = lambda e: any(max(e.source[1], 0) < start <= e.target[1] for start in range(segment, T, segment))
    assert [e.is_cut for e in net.edges] == [crosses(e) for e in net.edges]
    differs = float(jnp.max(jnp.abs(uncut[1][0]["h"][0]["kernel"] - cut[1][0]["h"][0]["kernel"])))
    assert (differs > 1e-6) == (segment < T)


def test_weights_are_shared_and_copies_have_gradients_of_their_own(x64):
    cell, xs = elman(), sequence(0, (T, B), F64)
    params = cell.init(jax.random.key(0), xs[0])
    net = rnn.graphs.unrolled(cell, T)
    weights = net.weights(params)
    assert list(weights) == list(net.vertices) and all(w is params[name] for (name, _), w in weights.items())

    loss = jax.jit(lambda copies: scalar(*net.evaluate(params, xs, copies=copies)))
    by_copy = jax.jit(jax.grad(loss))(weights)
    shared = jax.jit(jax.grad(lambda p: scalar(*rnn.unroll(cell, p, xs))))(params)
    for name in ("h", "y"):
        summed = jax.tree.map(lambda *copies: sum(copies), *[by_copy[name, t] for t in range(T)])
        assert_close(summed, shared[name], 1e-10)
    # One entry of one copy alone, by finite differences.
    nudge = lambda step: jax.tree.map(lambda a: a.at[0].add(step), weights["h", 1])
    slope = (loss(weights | {("h", 1): nudge(1e-6)}) - loss(weights | {("h", 1): nudge(-1e-6)})) / 2e-6
    assert_close(slope, sum(jnp.sum(a[0]) for a in jax.tree.leaves(by_copy["h", 1])), 1e-7)


def test_errors():
    with pytest.raises(TypeError, match=r"unrolled: net must be a cell made by graph\(...\), as it came, got Cell"):
        rnn.graphs.unrolled(rnn.residual(elman()), 3)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        rnn.graphs.unrolled(elman(), 0)
    with pytest.raises(ValueError, match="segment must be a whole number of at least 1, got 0"):
        rnn.graphs.unrolled(elman(), 3).truncated(0)
    with pytest.raises(ValueError, match="xs should have the 3 steps of the unrolled graph, got 5"):
        rnn.graphs.unrolled(elman(), 3).evaluate({}, jnp.zeros((5, 1, 3)))
