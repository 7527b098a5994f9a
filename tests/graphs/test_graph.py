"""Graphs as cells: what they equal, how they fission, and what is said of wrong ones."""

import functools
import itertools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from jaxrnn import prev
from tests import reference
from tests.engine.test_fission import equations_of
from tests.reference import assert_close, scalar
from tests.zoo import SCANS, D, H, sequence

T, B = 5, 2
F64 = jnp.float64
THREE = ("lax.scan", "fissioned", "checkpointed(2)")


def dense(size, bias=True):
    return nn.Dense(size, use_bias=bias, dtype=F64, param_dtype=F64)


def elman_graph():
    """Drawn with the two products apart, as in the formula."""
    net = rnn.graph(
        {
            "from_x": (dense(H), "x"),
            "from_h": (dense(H, bias=False), prev("h")),
            "h": (lambda a, b: jnp.tanh(a + b), ["from_x", "from_h"]),
        },
        output="h",
    )
    weights = lambda p: {
        "from_x": {"kernel": p["U"], "bias": p["b"]},
        "from_h": {"kernel": p["W"]},
        "h": (),
        "start": {"h": jnp.zeros(H, F64)},
    }
    state = lambda h: rnn.graphs.GraphState({"h": (h,)}, {"from_x": (), "from_h": (), "h": ()})
    return net, weights, state


def elman_concatenated():
    """The same with one product of the concatenated sources."""
    net = rnn.graph(
        {"h": (rnn.stack(rnn.layer(dense(H)), rnn.lift(jnp.tanh)), ["x", prev("h", start="learned")])}, output="h"
    )
    weights = lambda p: {
        "h": ({"kernel": jnp.concatenate([p["U"], p["W"]]), "bias": p["b"]}, ()),
        "start": {"h": p["initial_state"]},
    }
    return net, weights, lambda h: rnn.graphs.GraphState({"h": (h,)}, {"h": ((), ())})


def jordan_graph():
    net = rnn.graph(
        {
            "h": (rnn.stack(rnn.layer(dense(H)), rnn.lift(jnp.tanh)), ["x", prev("y")]),
            "y": (rnn.stack(rnn.layer(dense(2)), rnn.lift(jnp.tanh)), "h"),
        },
        output="y",
    )
    weights = lambda p: {
        "h": ({"kernel": jnp.concatenate([p["U"], p["W"]]), "bias": p["b"]}, ()),
        "y": ({"kernel": p["V"], "bias": p["c"]}, ()),
        "start": {"y": jnp.zeros(2, F64)},
    }
    return net, weights, lambda y: rnn.graphs.GraphState({"y": (y,)}, {"h": ((), ()), "y": ((), ())})


def lstm_graph():
    gate = lambda fn: (rnn.stack(rnn.layer(dense(H)), rnn.lift(fn)), ["x", prev("h")])
    net = rnn.graph(
        {
            "i": gate(jax.nn.sigmoid),
            "f": gate(jax.nn.sigmoid),
            "g": gate(jnp.tanh),
            "o": gate(jax.nn.sigmoid),
            "c": (lambda i, f, g, c_tm1: f * c_tm1 + i * g, ["i", "f", "g", prev("c")]),
            "h": (lambda o, c: o * jnp.tanh(c), ["o", "c"]),
        },
        output="h",
    )

    def weights(p):
        kernels = jnp.split(jnp.concatenate([p["U"], p["W"]]), 4, axis=-1)
        gates = zip("ifgo", kernels, jnp.split(p["b"], 4), strict=True)
        start = {"c": jnp.zeros(H, F64), "h": jnp.zeros(H, F64)}
        return {name: ({"kernel": k, "bias": b}, ()) for name, k, b in gates} | {"c": (), "h": (), "start": start}

    inner = {name: ((), ()) for name in "ifgo"} | {"c": (), "h": ()}
    return net, weights, lambda s: rnn.graphs.GraphState({"c": (s.c,), "h": (s.h,)}, inner)


def lstm_in_one_product():
    net = rnn.graph(
        {
            "gates": (dense(4 * H), ["x", prev("h")]),
            "c": (_next_memory, ["gates", prev("c")]),
            "h": (lambda gates, c: jax.nn.sigmoid(gates[..., 3 * H :]) * jnp.tanh(c), ["gates", "c"]),
        },
        output="h",
    )
    weights = lambda p: {
        "gates": {"kernel": jnp.concatenate([p["U"], p["W"]]), "bias": p["b"]},
        "c": (),
        "h": (),
        "start": {"c": jnp.zeros(H, F64), "h": jnp.zeros(H, F64)},
    }
    inner = {"gates": (), "c": (), "h": ()}
    return net, weights, lambda s: rnn.graphs.GraphState({"c": (s.c,), "h": (s.h,)}, inner)


def _next_memory(gates, c_tm1):
    i, f, g, _ = jnp.split(gates, 4, axis=-1)
    return jax.nn.sigmoid(f) * c_tm1 + jax.nn.sigmoid(i) * jnp.tanh(g)


def gru_graph():
    net = rnn.graph(
        {
            "x3": (dense(3 * H), "x"),
            "h2": (dense(2 * H, bias=False), prev("h")),
            "r": (lambda x, h: jax.nn.sigmoid(x[..., :H] + h[..., :H]), ["x3", "h2"]),
            "z": (lambda x, h: jax.nn.sigmoid(x[..., H : 2 * H] + h[..., H:]), ["x3", "h2"]),
            "reset": (jnp.multiply, ["r", prev("h")]),
            "past": (dense(H, bias=False), "reset"),
            "n": (lambda x, past: jnp.tanh(x[..., 2 * H :] + past), ["x3", "past"]),
            "h": (lambda z, n, h_tm1: (1 - z) * n + z * h_tm1, ["z", "n", prev("h")]),
        },
        output="h",
    )
    weights = lambda p: {
        "x3": {"kernel": p["U"], "bias": p["b"]},
        "h2": {"kernel": p["W"]},
        "past": {"kernel": p["W_n"]},
        "start": {"h": jnp.zeros(H, F64)},
        **{name: () for name in ("r", "z", "reset", "n", "h")},
    }
    inner = {name: () for name in ("x3", "h2", "r", "z", "reset", "past", "n", "h")}
    return net, weights, lambda h: rnn.graphs.GraphState({"h": (h,)}, inner)


# A cell of ours; the same as a graph: the net, its parameters from the cell's, its state from the cell's.
SAME = {
    "elman": (lambda: rnn.elman(H, dtype=F64), elman_graph),
    "elman, concatenated": (lambda: rnn.elman(H, dtype=F64, learn_initial_state=True), elman_concatenated),
    "jordan": (lambda: rnn.jordan(H, 2, dtype=F64), jordan_graph),
    "lstm": (lambda: rnn.lstm(H, dtype=F64), lstm_graph),
    "lstm, one product": (lambda: rnn.lstm(H, dtype=F64), lstm_in_one_product),
    "gru": (lambda: rnn.gru(H, reset="before", dtype=F64), gru_graph),
}


def same(name):
    cell, (net, weights, state) = SAME[name][0](), SAME[name][1]()
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((B, D), F64))
    params = jax.tree.map(lambda a: a + 0.1, params)
    return cell, params, net, weights, state, sequence(1, (T, B), F64)


def gradients(run, params, xs):
    return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(params, xs)


@functools.cache
def by_cell(name):
    cell, params, _, _, as_state, xs = same(name)

    def run(params, xs):
        state, ys = reference.unroll(cell, params, xs, cell.initial_state(params, (B,)), batch=(B,))
        return scalar(as_state(state), ys), (as_state(state), ys)

    return gradients(run, params, xs)


# Every drawing under three scans, one under all of them (and the graph of tests/zoo.py under all in test_matrix.py).
# Fast are one scan for each drawing, and three for that one.
DRAWN = [
    pytest.param(
        name, scan, marks=() if scan == "fissioned" or (name, scan in THREE) == ("gru", True) else pytest.mark.slow
    )
    for name in SAME
    for scan in SCANS
    if name == "gru" or scan in THREE
]


@pytest.mark.parametrize(("name", "scan"), DRAWN)
def test_a_graph_equals_the_cell_it_draws(name, scan, x64):
    """Values, last states, and gradients with respect to the cell's own parameters and the input."""
    _, params, net, weights, _, xs = same(name)

    def by_graph(params, xs):
        state, ys = rnn.unroll(net, weights(params), xs, scan=SCANS[scan])
        return scalar(state, ys), (state, ys)

    assert_close(gradients(by_graph, params, xs), by_cell(name), 1e-10)


@pytest.mark.parametrize("name", SAME)
def test_init_makes_the_parameters_of_the_drawing(name, x64):
    cell, params, net, weights, as_state, xs = same(name)
    for x in (xs[0], xs[0, 0], jax.ShapeDtypeStruct((3, 4, D), F64)):
        made = net.init(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, weights(params))
    state = net.initial_state(weights(params), (7, 2))
    assert_close(state, as_state(cell.initial_state(params, (7, 2))), 0)


# --- the loop engine ------------------------------------------------------------------------------


def work(operations):
    """Multiplications in products, from explain's words, `dot_general float64[2,4] x float64[4,8] -> float64[2,8]`."""
    total = 0
    for text in operations:
        left, right, out = (list(map(int, dims.split(","))) for dims in re.findall(r"float64\[([\d,]*)\]", text))
        assert text.startswith("dot_general") and left[-1] == right[0]
        total += math.prod(out) * right[0]
    return total


@pytest.mark.parametrize("name", SAME)
def test_a_graph_fissions_as_the_cell_does(name, x64):
    """The same products before and in the loop, the same carry and kept bytes; every weight's gradient is deferred."""
    cell, params, net, weights, _, xs = same(name)
    by_cell, by_graph = rnn.analysis.explain(cell, params, xs[0]), rnn.analysis.explain(net, weights(params), xs[0])
    (cell_loop,), (graph_loop,) = by_cell.loops, by_graph.loops
    assert work(by_graph.before) == work(by_cell.before) > 0
    assert work(graph_loop.operations) == work(cell_loop.operations) > 0
    if name != "lstm":  # which is drawn with a product for each gate
        assert len(by_graph.before) == len(by_cell.before) == 1
        assert len(graph_loop.operations) == len(cell_loop.operations)
    assert (by_graph.kept, by_graph.carry, by_graph.after) == (by_cell.kept, by_cell.carry, ())
    assert len(graph_loop.carry) == len(cell_loop.carry) and not graph_loop.accumulated
    kernels = [path for path in map(jax.tree_util.keystr, _paths(weights(params))) if "kernel" in path]
    assert {f"params{path}" for path in kernels} <= {*graph_loop.deferred, *by_graph.batched}


def _paths(tree):
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize("name", SAME)
def test_the_traced_gradient_has_no_more_work_in_its_loops(name, x64):
    cell, params, net, weights, _, xs = same(name)

    def in_loops(net, params):
        loss = lambda p: jnp.sum(jnp.sin(rnn.unroll(net, p, xs, scan=rnn.fissioned(segment=T))[1]))
        made = [
            math.prod(e.outvars[0].aval.shape) * e.invars[0].aval.shape[e.params["dimension_numbers"][0][0][0]]
            for depth, e in equations_of(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
            if depth and e.primitive.name == "dot_general"
        ]
        return sum(made), len(made)

    by_cell, by_graph = in_loops(cell, params), in_loops(net, weights(params))
    assert by_graph[0] == by_cell[0] > 0
    assert name == "lstm" or by_graph[1] == by_cell[1]


# --- nets that are a few lines ---------------------------------------------------------------------


def _affine(p):
    """W and b, which broadcasts over a batch."""
    return p["kernel"], p["bias"][None]


def run(net, params, xs):
    """Under the default scan, the state left out; and the same under lax.scan, to be sure."""
    under = lambda scan: rnn.unroll(net, params, xs, scan=scan)[1]
    ys, plain = jax.jit(lambda: (under(rnn.scan), under(jax.lax.scan)))()
    assert_close(plain, ys, 1e-10)
    return ys


def test_output_and_state_fed_back_together(x64):
    net = rnn.graph(
        {
            "h": (rnn.stack(rnn.layer(dense(H)), rnn.lift(jnp.tanh)), ["x", prev("h"), prev("y")]),
            "y": (dense(2), "h"),
        },
        output="y",
    )
    xs = sequence(0, (T, B), F64)
    params = net.init(jax.random.key(1), xs[0])
    W, b, V, c = map(np.asarray, (*_affine(params["h"][0]), *_affine(params["y"])))
    h, y, expected = np.zeros((B, H)), np.zeros((B, 2)), []
    for x in np.asarray(xs):
        h = np.tanh(np.concatenate([x, h, y], axis=-1) @ W + b)
        y = h @ V + c
        expected.append(jnp.asarray(y))
    assert_close(run(net, params, xs), jnp.stack(expected), 1e-10)


def test_a_skip_connection_through_time(x64):
    """h_t = tanh(U x_t + W h_{t-1} + V h_{t-3} + b)"""
    net = rnn.graph(
        {"h": (rnn.stack(rnn.layer(dense(H)), rnn.lift(jnp.tanh)), ["x", prev("h"), prev("h", steps=3)])}, output="h"
    )
    xs = sequence(0, (T, B), F64)
    params = net.init(jax.random.key(1), xs[0])
    W, b = map(np.asarray, _affine(params["h"][0]))
    hs = [np.zeros((B, H))] * 3
    for x in np.asarray(xs):
        hs.append(np.tanh(np.concatenate([x, hs[-1], hs[-3]], axis=-1) @ W + b))
    assert_close(run(net, params, xs), jnp.asarray(hs[3:]), 1e-10)
    assert len(net.initial_state(params, (B,)).delayed["h"]) == 3  # and one line serves both delays


def clockwork(periods, size):
    """Modules that stand still but for every n-th step; each reads those that are slower (Koutnik et al. 2014)."""
    ticks = lambda n: lambda t, new, old: jnp.where((t % n == 0)[..., None], new, old)
    vertices = {"t": (lambda t: t + 1, prev("t", start=jnp.int32(-1)))}
    for k, n in enumerate(periods):
        slower = [prev(f"m{j}") for j in range(k, len(periods))]
        vertices[f"new{k}"] = (rnn.stack(rnn.layer(dense(size)), rnn.lift(jnp.tanh)), ["x", *slower])
        vertices[f"m{k}"] = (ticks(n), ["t", f"new{k}", prev(f"m{k}")])
    return rnn.graph(vertices, output=tuple(f"m{k}" for k in range(len(periods))))


def test_a_clockwork_net(x64):
    periods = (1, 2, 4)
    net = clockwork(periods, H)
    xs = sequence(0, (9, B), F64)
    params = net.init(jax.random.key(1), xs[0])
    modules, expected = [np.zeros((B, H))] * 3, []
    for t, x in enumerate(np.asarray(xs)):
        before = modules[:]
        for k, n in enumerate(periods):
            if t % n == 0:
                W, b = map(np.asarray, _affine(params[f"new{k}"][0]))
                modules[k] = np.tanh(np.concatenate([x, *before[k:]], axis=-1) @ W + b)
        expected.append(tuple(map(jnp.asarray, modules)))
    assert_close(run(net, params, xs), jax.tree.map(lambda *a: jnp.stack(a), *expected), 1e-10)


def test_tokens_fed_back(x64):
    """A decoder that reads its own choices: what `generate` does with the same cells."""
    decoder = rnn.stack(rnn.layer(nn.Embed(7, 3)), rnn.gru(H), rnn.layer(nn.Dense(7)))
    net = rnn.graph(
        {
            "logits": (decoder, prev("token", start=jnp.int32(2))),
            "token": (lambda logits, x: jnp.argmax(logits, axis=-1).astype(jnp.int32) + 0 * x, ["logits", "x"]),
        },
        output="token",
    )
    clock = jnp.zeros((T, B), jnp.int32)  # the input is there to say how many steps
    params = net.init(jax.random.key(3), clock[0])
    assert "start" not in params and all(a.dtype == jnp.float32 for a in jax.tree.leaves(params))
    own = params["logits"]
    first = jnp.full((B,), 2, jnp.int32)
    tokens = rnn.generate(decoder, own, decoder.initial_state(own, (B,)), first, T, rnn.greedy())[1]
    assert_close(rnn.unroll(net, params, clock)[1], tokens, 0)
    assert len(np.unique(tokens)) > 1


def test_a_delayed_input(x64):
    net = rnn.graph({"d": (lambda now, late: now - late, ["x", prev("x", steps=2)])}, output="d")
    xs = sequence(0, (T, B), F64)
    params = net.init(None, xs[0])
    assert_close(run(net, params, xs), xs - jnp.concatenate([jnp.zeros_like(xs[:2]), xs[:-2]]), 1e-12)


def test_named_inputs_and_outputs(x64):
    """A net with its loss, which takes (x, target), and gives a dict."""
    net = rnn.graph(
        {
            "h": (rnn.gru(H, dtype=F64), "x"),
            "y": (dense(2), "h"),
            "loss": (lambda y, target: jnp.sum((y - target) ** 2, axis=-1), ["y", "target"]),
        },
        inputs=("x", "target"),
        output={"loss": "loss", "prediction": "y"},
    )
    xs, targets = sequence(0, (T, B), F64), sequence(1, (T, B), F64)[..., :2]
    params = net.init(jax.random.key(0), (xs[0], targets[0]))
    out = run(net, params, (xs, targets))
    plain = rnn.stack(rnn.gru(H, dtype=F64), rnn.layer(dense(2)))
    ys = rnn.unroll(plain, (params["h"], params["y"]), xs)[1]
    assert_close(out, {"loss": jnp.sum((ys - targets) ** 2, axis=-1), "prediction": ys}, 1e-10)
    with pytest.raises(ValueError, match=r"x must be a tuple \(x, target\), as stated by inputs, got float64\[2,3\]"):
        net.step(params, net.initial_state(params, (B,)), xs[0])


def test_combining_by_a_function(x64):
    """The third entry makes one input of the sources: here a sum, and a pair for a cell that takes pairs."""
    masked = rnn.masked(rnn.gru(H, dtype=F64))
    net = rnn.graph(
        {
            "sum": (dense(H), ["x", prev("m")], lambda x, m: x + m[..., :D]),
            "m": (masked, ["sum", "keep"], lambda x, keep: (x, keep)),
            "keep": (lambda x: x[..., 0] > 0, "x"),
        },
        output="m",
    )
    xs = sequence(0, (T, B), F64)
    params = net.init(jax.random.key(0), xs[0])
    W, b = _affine(params["sum"])
    m, state, expected = jnp.zeros((B, H)), jnp.zeros((B, H)), []
    for x in xs:
        z = (x + m[:, :D]) @ W + b
        state, m = masked.step(params["m"], state, (z, x[:, 0] > 0))
        expected.append(m)
    assert_close(run(net, params, xs), jnp.stack(expected), 1e-10)


def test_a_graph_and_a_flax_cell_as_vertices(x64):
    inner, weights, _ = lstm_in_one_product()
    flax = nn.OptimizedLSTMCell(H, dtype=F64, param_dtype=F64)
    net = rnn.graph({"a": (inner, "x"), "b": (flax, "a"), "y": (dense(2), ["a", "b"])}, output="y")
    xs = sequence(0, (T, B), F64)
    params = net.init(jax.random.key(0), xs[0])
    a = rnn.unroll(inner, params["a"], xs)[1]
    b = rnn.unroll(rnn.recurrent(flax), params["b"], a)[1]
    expected = rnn.unroll(rnn.layer(dense(2)), params["y"], jnp.concatenate([a, b], axis=-1))[1]
    assert_close(run(net, params, xs), expected, 1e-10)


def test_inferred_delays_are_those_that_point_backwards(x64):
    stated = {"h": (dense(H), ["x", "h", "y"]), "y": (dense(2), ["h"])}
    drawn = {"h": (dense(H), ["x", prev("h"), prev("y")]), "y": (dense(2), ["h"])}
    inferred, explicit = rnn.graph(stated, "y", infer_delays=True), rnn.graph(drawn, "y")
    xs = sequence(0, (T, B), F64)
    params = explicit.init(jax.random.key(0), xs[0])
    assert_close(inferred.init(jax.random.key(0), xs[0]), params, 0)
    assert_close(run(inferred, params, xs), run(explicit, params, xs), 0)


def test_vertices_draw_for_themselves():
    """Two vertices of one cell have weights and dropout masks of their own; the same key gives the same draws."""
    drop = lambda: rnn.dropout(rnn.layer(nn.Dense(64)), 0.5, mask="sequence")
    net = rnn.graph({"a": (drop(), "x"), "b": (drop(), "x")}, output=("a", "b"))
    xs = jnp.ones((3, 1, D))
    params = net.init(jax.random.key(0), xs[0])
    assert not jnp.array_equal(params["a"]["kernel"], params["b"]["kernel"])
    a, b = rnn.unroll(net, params, xs, key=jax.random.key(1))[1]
    assert not jnp.array_equal(a == 0, b == 0)
    assert jnp.array_equal(a[0] == 0, a[1] == 0) and 0 < jnp.mean(a == 0) < 1
    assert_close(rnn.unroll(net, params, xs, key=jax.random.key(1))[1], (a, b), 0)
    assert not jnp.any(rnn.unroll(net, params, xs)[1][0] == 0)


# --- starts and shapes -------------------------------------------------------------------------------


def fed_back(**options):
    return rnn.graph({"h": (dense(H), ["x", prev("h", **options)])}, output="h")


def test_zero_starts_are_no_parameters(x64):
    """Their array only tells the shape: its values count for nothing, it gets no gradient, and stays as it is."""
    net = fed_back()
    xs = sequence(0, (T, B), F64)
    params = net.init(jax.random.key(0), xs[0])
    loss = jax.jit(lambda p: jnp.sum(jnp.sin(rnn.unroll(net, p, xs)[1])))
    moved = params | {"start": {"h": jnp.full(H, 3.0)}}
    assert_close(loss(moved), loss(params), 0)
    gradient = jax.grad(loss)(params)
    assert not jnp.any(gradient["start"]["h"]) and jnp.any(gradient["h"]["kernel"])
    optimizer = optax.adamw(0.1)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    assert not jnp.any(optax.apply_updates(params, updates)["start"]["h"])


def test_learned_and_stated_starts(x64):
    learned, stated = fed_back(start="learned"), fed_back(start=jnp.arange(H, dtype=F64))
    xs = sequence(0, (T, B), F64)
    params = stated.init(jax.random.key(0), xs[0])
    assert "start" not in params
    as_learned = params | {"start": {"h": jnp.arange(H, dtype=F64)}}
    assert_close(run(learned, as_learned, xs), run(stated, params, xs), 1e-10)
    assert_close(stated.initial_state(params, (B,)).delayed["h"], (jnp.tile(jnp.arange(H, dtype=F64), (B, 1)),), 0)
    gradient = jax.grad(lambda p: jnp.sum(rnn.unroll(learned, p, xs)[1]))(as_learned)
    through = jax.grad(lambda s: jnp.sum(rnn.unroll(stated, params, xs, s)[1]))(stated.initial_state(params, (B,)))
    assert_close(gradient["start"]["h"], jnp.sum(through.delayed["h"][0], axis=0), 1e-10)
    assert_close(learned.init(jax.random.key(0), xs[0])["start"]["h"], jnp.zeros(H), 0)


def test_a_start_serves_all_steps_before_the_first(x64):
    net = rnn.graph(
        {"h": (lambda x, a, b: x + a + 10 * b, ["x", prev("h", start=jnp.ones(D)), prev("h", steps=2)])}, output="h"
    )
    ys = run(net, {"h": ()}, jnp.zeros((4, 1, D)))
    assert ys[:, 0, 0].tolist() == [11.0, 21.0, 131.0, 341.0]


def test_parameters_alone_tell_the_first_state(x64):
    """As after restoring them in another process: a net stated anew, and arrays and nothing else."""
    net, _, _ = lstm_graph()
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((B, D), F64))
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(params))
    restored = jax.tree.map(np.asarray, params)
    assert_close(lstm_graph()[0].initial_state(restored, (3, B)), net.initial_state(params, (3, B)), 0)


def test_cast_parameters_cast_the_state():
    net = rnn.graph({"h": (rnn.elman(H), ["x", prev("h", steps=2)])}, output="h")
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), net.init(jax.random.key(0), jnp.zeros((B, D))))
    state, ys = rnn.unroll(net, params, jnp.zeros((T, B, D), jnp.bfloat16))
    assert {a.dtype for a in jax.tree.leaves((state, ys))} == {jnp.dtype(jnp.bfloat16)}


SHAPES = {
    "no batch": ({"h": (nn.Dense(4), ["x", prev("h")])}, jnp.zeros(3), (), (4,)),
    "two batch dimensions": ({"h": (nn.Dense(4), ["x", prev("h")])}, jnp.zeros((5, 2, 3)), (5, 2), (4,)),
    "tokens": ({"e": (nn.Embed(9, 3), "x"), "h": (nn.Dense(4), ["e", prev("h")])}, jnp.zeros(2, int), (2,), (4,)),
    "one token": ({"e": (nn.Embed(9, 3), "x"), "h": (nn.Dense(4), ["e", prev("h")])}, jnp.int32(0), (), (4,)),
    "numbers, one per example": (
        {"h": (lambda x, h: x + h, ["x", prev("h", start=jnp.zeros(()))])},
        jnp.zeros((3,)),
        (3,),
        (),
    ),
    "images": (
        {
            "flat": (lambda x: x.reshape(*x.shape[:-3], -1), "x"),
            "h": (nn.Dense(4), ["flat", prev("h")]),
        },
        jnp.zeros((2, 6, 6, 1)),
        (2,),
        (4,),
    ),
    "images fed back": (
        {"h": (nn.Conv(5, (3, 3)), ["x", prev("h")])},
        jnp.zeros((2, 6, 7, 1)),
        (2,),
        (6, 7, 5),
    ),
    "delays only": (
        {"a": (nn.Dense(4), prev("h")), "h": (nn.Dense(5), ["x", prev("a")])},
        jnp.zeros((2, 3)),
        (2,),
        (5,),
    ),
    "alone": ({"h": (nn.Dense(4), prev("h")), "y": (nn.Dense(2), ["h", "x"])}, jnp.zeros((2, 3)), (2,), (4,)),
    "a gate of one number": (
        {"f": (nn.Dense(1), "x"), "g": (nn.Dense(4), "x"), "h": (lambda f, h, g: f * h + g, ["f", prev("h"), "g"])},
        jnp.zeros((2, 3)),
        (2,),
        (4,),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_delayed_values_are_found(name):
    vertices, x, batch, feature = SHAPES[name]
    net = rnn.graph(vertices, output=tuple(vertices))
    with jax.numpy_rank_promotion("allow"):
        params = net.init(jax.random.key(0), x)
        for dims in (batch, (3, *batch)):
            state = net.initial_state(params, dims)
            assert state.delayed["h"][0].shape == (*dims, *feature)
            out, _ = net.step(params, state, jnp.broadcast_to(x, (*dims, *x.shape[len(batch) :])))
            assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, state)


def test_graphs_in_graphs_are_not_traced_over_and_over():
    """Each level costs three traces of what is within: one with a guess, one without, one for the parameters."""
    calls = []

    def nested(depth):
        if depth == 0:
            return rnn.stack(rnn.lift(lambda x: calls.append(1) or jnp.tanh(x)), rnn.layer(nn.Dense(4)))
        return rnn.graph({"h": (nn.Dense(4), ["x", prev("h")]), "in": (nested(depth - 1), ["h", prev("in")])}, "in")

    counts = []
    for depth in (1, 2, 3, 4):
        calls.clear()
        jax.eval_shape(nested(depth).init, jax.random.key(0), jnp.zeros((2, 3)))
        counts.append(len(calls))
    assert all(after <= 3.5 * before for before, after in itertools.pairwise(counts)), counts


# --- errors -------------------------------------------------------------------------------------------

h = (jnp.tanh, "x")
STATED_WRONG = {
    "a cycle": (
        {"a": (jnp.add, ["x", "c"]), "b": (jnp.tanh, "a"), "c": (jnp.tanh, "b")},
        "    a -> b -> c\n    ^         |\n    +---------+\n\n"
        'Delay one of its edges: in the sources of "a" write prev("c") for "c"',
    ),
    "a cycle off the first vertex": (
        {"in": h, "p": (jnp.add, ["in", "q"]), "q": (jnp.tanh, "p"), "out": (jnp.tanh, "q")},
        '    p -> q\n    ^    |\n    +----+\n\nDelay one of its edges: in the sources of "p" write prev("q") for "q"',
    ),
    "a vertex that reads itself": (
        {"h": (jnp.add, ["x", "h"])},
        '    h -> h\n\nDelay one of its edges: in the sources of "h"',
    ),
    "an unknown name": (
        {"hidden": h, "y": (jnp.tanh, "hiden")},
        'vertex "y" reads "hiden", which is neither a vertex nor an input; did you mean "hidden"?',
    ),
    "an unknown delayed name": (
        {"h": (jnp.add, ["x", prev("zzz")])},
        'reads "zzz", which is neither .*; there are h, x',
    ),
    "unreachable": ({"h": h, "lost": h, "y": (jnp.tanh, "h")}, "the output does not depend on 'lost'; leave such"),
    "a vertex named as the input": ({"x": h}, '"x" is both a vertex and an input; rename one'),
    "a reserved name": ({"start": h}, 'must be strings, not empty, not "start"'),
    "no sources": ({"h": rnn.elman(3)}, r'vertex "h": expected \(cell, sources\) or .*, got Cell; name what it reads'),
    "a number as source": ({"h": (jnp.tanh, [3])}, r"sources must be names and prev\(...\), at least one, got \(3,\)"),
    "a class": ({"h": (nn.Dense, "x")}, "expected a Cell, a Flax module or a function, got <class"),
    "no function": (
        {"h": (jnp.tanh, ["x", "x"], "sum")},
        "combine must be a function of the sources' values, got 'sum'",
    ),
    "two starts": (
        {"h": (jnp.add, [prev("h", start="learned"), prev("h", steps=2, start=jnp.zeros(3))])},
        'two different starts for "h"',
    ),
    "nothing": ({}, "needs at least one vertex"),
}


@pytest.mark.parametrize("name", STATED_WRONG)
def test_errors_in_the_statement(name):
    vertices, message = STATED_WRONG[name]
    with pytest.raises((ValueError, TypeError), match=message if "\n" not in message else re.escape(message)):
        rnn.graph(vertices, output=list(vertices)[-1] if vertices else "h")


def test_an_unknown_output():
    with pytest.raises(ValueError, match='output is "z", which is neither a vertex nor an input; there are h, x'):
        rnn.graph({"h": h}, output=("h", "z"))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_a_delay_is_at_least_one_step(steps):
    with pytest.raises(
        ValueError, match=r'prev: steps must be .* at least 1, got .* \(the delay of "h"\); for the value of'
    ):
        prev("h", steps=steps)


INIT_WRONG = {
    "shapes that do not meet": (
        {"a": (nn.Dense(4), "x"), "h": (jnp.add, ["a", "x"])},
        r'vertex "h", reading a of type float32\[2,4\], x of type float32\[2,3\]: .*incompatible shapes',
    ),
    "dtypes that do not meet": (
        {"a": (lambda x: x.astype(jnp.bfloat16), "x"), "h": (nn.Dense(2), ["a", "x"])},
        r'vertex "h", reading a of type bfloat16\[2,3\], x of type float32\[2,3\]',
    ),
    "a structure to concatenate": (
        {"a": (lambda x: (x, x), "x"), "h": (nn.Dense(2), ["a", "x"])},
        "only arrays can be concatenated; give a function of the sources",
    ),
    "integers fed back": (
        {"t": (lambda x: jnp.argmax(x, axis=-1), "x"), "h": (nn.Embed(3, 2), prev("t"))},
        r'prev\("t"\) is int32\[\]; .*state its start: prev\("t", start=jnp.zeros\(\(\), jnp.int32\)\)',
    ),
    "a size out of nothing": (
        {"c": (lambda c: c + 1, prev("c")), "h": (jnp.add, ["x", "c"])},
        r'cannot find the type of prev\("c"\) by tracing; state it: prev\(name, start=...\)',
    ),
    "a size that grows": (
        {"h": (lambda *read: jnp.concatenate(read, axis=-1), ["x", prev("h")])},
        r'prev\("h"\) \(float32\[2,\d+\]\) changes its type from step to step',
    ),
    "a start of another size": (
        {"h": (nn.Dense(4), ["x", prev("h", start=jnp.zeros(3))])},
        r'start of prev\("h"\) should be float32\[2,4\], got float32\[2,3\]; give one example\'s value',
    ),
}


@pytest.mark.parametrize("name", INIT_WRONG)
def test_errors_at_init(name):
    vertices, message = INIT_WRONG[name]
    with pytest.raises(ValueError, match=message):
        rnn.graph(vertices, output=list(vertices)[-1]).init(jax.random.key(0), jnp.zeros((2, 3)))


def test_errors_at_the_step():
    net = rnn.graph({"a": (nn.Dense(4), "x"), "h": (rnn.elman(H), ["a", prev("h")])}, output="h")
    params = net.init(jax.random.key(0), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r'graph: vertex "a", reading x of type float32\[2,5\]'):
        rnn.unroll(net, params, jnp.zeros((T, 2, 5)))
    with pytest.raises(
        ValueError, match="params should be a dict with an entry for each of a, h, start; h, start missing"
    ):
        net.initial_state({"a": params["a"]}, (2,))
