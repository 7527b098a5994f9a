"""Graphs as cells: what they equal, how they fission, and what is said of wrong ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from jaxrnn import prev
from tests import reference
from tests.reference import assert_close, scalar
from tests.zoo import SCANS, D, H, sequence

T, B = 5, 2
F64 = jnp.float64


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
    state = lambda h: rnn.GraphState({"h": (h,)}, {"from_x": (), "from_h": (), "h": ()})
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
    return net, weights, lambda h: rnn.GraphState({"h": (h,)}, {"h": ((), ())})


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
    return net, weights, lambda y: rnn.GraphState({"y": (y,)}, {"h": ((), ()), "y": ((), ())})


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
    return net, weights, lambda s: rnn.GraphState({"c": (s.c,), "h": (s.h,)}, inner)


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
    return net, weights, lambda h: rnn.GraphState({"h": (h,)}, inner)


# A cell of ours; the same as a graph: the net, its parameters from the cell's, its state from the cell's.
SAME = {
    "elman": (lambda: rnn.elman(H, dtype=F64), elman_graph),
    "elman, concatenated": (lambda: rnn.elman(H, dtype=F64, learn_initial_state=True), elman_concatenated),
    "jordan": (lambda: rnn.jordan(H, 2, dtype=F64), jordan_graph),
    "lstm": (lambda: rnn.lstm(H, dtype=F64), lstm_graph),
    "gru": (lambda: rnn.gru(H, reset="before", dtype=F64), gru_graph),
}


def same(name):
    cell, (net, weights, state) = SAME[name][0](), SAME[name][1]()
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((B, D), F64))
    params = jax.tree.map(lambda a: a + 0.1, params)
    return cell, params, net, weights, state, sequence(1, (T, B), F64)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("name", SAME)
def test_a_graph_equals_the_cell_it_draws(name, scan, x64):
    """Values, last states, and gradients with respect to the cell's own parameters and the input."""
    cell, params, net, weights, as_state, xs = same(name)

    @jax.jit
    def by_cell(params, xs):
        state, ys = reference.unroll(cell, params, xs, cell.initial_state(params, (B,)), batch=(B,))
        return scalar(as_state(state), ys), (as_state(state), ys)

    @jax.jit
    def by_graph(params, xs):
        state, ys = rnn.unroll(net, weights(params), xs, scan=SCANS[scan])
        return scalar(state, ys), (state, ys)

    gradients = lambda f: jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(params, xs)
    assert_close(gradients(by_graph), gradients(by_cell), 1e-10)


@pytest.mark.parametrize("name", SAME)
def test_init_makes_the_parameters_of_the_drawing(name, x64):
    cell, params, net, weights, as_state, xs = same(name)
    for x in (xs[0], xs[0, 0], jax.ShapeDtypeStruct((3, 4, D), F64)):
        made = net.init(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, weights(params))
    state = net.initial_state(weights(params), (7, 2))
    assert_close(state, as_state(cell.initial_state(params, (7, 2))), 0)
