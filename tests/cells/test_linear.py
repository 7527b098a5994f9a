"""min_gru, min_lstm and sru against loops in numpy, written from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from jaxrnn.analysis import explain
from tests.cells.by_hand import F64, parts, problem, run, same, sigmoid
from tests.zoo import D, H, sequence


def positive(a):
    return np.where(a >= 0, a + 0.5, sigmoid(a))


@pytest.mark.parametrize("g", [None, positive])
def test_min_gru_equals_numpy(g, x64):
    _, p, xs, ys, last = problem(cells.min_gru(H, positive=g is not None, dtype=F64))
    h, (U_z, U_n), (b_z, b_n) = np.zeros((2, H)), parts(p["U"], 2), parts(p["b"], 2)
    for x, y in zip(xs, ys, strict=True):
        z, n = sigmoid(x @ U_z + b_z), x @ U_n + b_n
        h = (1 - z) * h + z * (g(n) if g else n)
        same(y, h)
    same(last, h)


@pytest.mark.parametrize("g", [None, positive])
def test_min_lstm_equals_numpy(g, x64):
    _, p, xs, ys, last = problem(cells.min_lstm(H, positive=g is not None, dtype=F64))
    h, U, b = np.zeros((2, H)), parts(p["U"], 3), parts(p["b"], 3)
    for x, y in zip(xs, ys, strict=True):
        f, i, n = sigmoid(x @ U[0] + b[0]), sigmoid(x @ U[1] + b[1]), x @ U[2] + b[2]
        h = f / (f + i) * h + i / (f + i) * (g(n) if g else n)
        same(y, h)
    same(last, h)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("features", [D, H])
def test_sru_equals_numpy(features, peephole, x64):
    cell = cells.sru(H, peephole=peephole, highway_bias=-1.5, dtype=F64)
    _, p, xs, ys, last = problem(cell, features=features)
    assert ("P" in p) == (features != H) and ("v" in p) == peephole
    c, (W, W_f, W_r), (b_f, b_r) = np.zeros((2, H)), parts(p["U"], 3), parts(p["b"], 2)
    v_f, v_r = parts(p["v"], 2) if peephole else (0, 0)
    alpha = np.sqrt(1 + 2 * np.exp(-1.5))
    for x, y in zip(xs, ys, strict=True):
        f, r = sigmoid(x @ W_f + v_f * c + b_f), sigmoid(x @ W_r + v_r * c + b_r)
        c = f * c + (1 - f) * (x @ W)
        same(y, r * c + (1 - r) * alpha * (x @ p["P"] if features != H else x))
    same(last, c)


def test_the_highway_keeps_the_variance_of_the_input():
    """At first, over many examples, for an input of variance one and whatever the bias: what its root is for."""
    for bias in (-3.0, 0.0, 2.0):
        cell = cells.sru(64, highway_bias=bias)
        xs = jax.random.normal(jax.random.key(0), (1, 2000, 64))
        ys = jax.jit(lambda xs, cell=cell: rnn.unroll(cell, cell.init(jax.random.key(1), xs[0]), xs)[1])(xs)
        assert 0.5 < np.var(ys) < 1.5


def test_the_first_weights_of_sru_are_uniform_of_variance_one_by_features():
    params = cells.sru(200, peephole=True).init(jax.random.key(0), jnp.zeros(50))
    for name, variance in (("U", 1 / 50), ("P", 1 / 50), ("v", 1 / 200)):
        assert np.abs(params[name]).max() <= (3 * variance) ** 0.5
        np.testing.assert_allclose(np.var(params[name]), variance, rtol=0.15)


def test_two_closed_gates_divide_the_state_evenly():
    """s(-200) is 0 in float32, and 0 / 0 no number; the quotient of the two is 1 / 2."""
    cell = cells.min_lstm(1)
    params = {"U": jnp.zeros((1, 3)), "b": jnp.array([-200.0, -200.0, 3.0])}
    grad = jax.jit(jax.grad(lambda p, h: cell.step(p, h, jnp.zeros(1))[0].sum(), argnums=(0, 1)))(params, jnp.ones(1))
    np.testing.assert_allclose(cell.step(params, jnp.ones(1), jnp.zeros(1))[0], [2.0])
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(grad))


@pytest.mark.parametrize("make", [cells.min_gru, cells.min_lstm])
def test_positive_states_stay_positive(make):
    cell = make(H, positive=True)
    xs = 5 * sequence(0, (50, 4), jnp.float32)
    assert float(run(cell, cell.init(jax.random.key(0), xs[0]), xs)[1].min()) >= 0


@pytest.mark.parametrize("name", ["min_gru", "min_lstm", "sru"])
def test_the_recurrence_is_elementwise_and_has_no_product_in_the_loop(name):
    cell, x = getattr(cells, name)(H), jnp.zeros((2, D))
    found = explain(cell, cell.init(jax.random.key(0), x), x)
    assert found.recurrences == ("state: elementwise (mul)",)
    assert [loop.operations for loop in found.loops] == [()]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cells.min_gru(0), "min_gru: size must be a whole number of at least 1, got 0"),
        (lambda: cells.min_gru(4, positive=2.5), "min_gru: positive must be one of False, True, got 2.5"),
        (lambda: cells.min_lstm(4, dtype=int), "min_lstm: dtype must be a floating-point dtype"),
        (lambda: cells.min_lstm(4, positive="yes"), "min_lstm: positive must be one of"),
        (lambda: cells.sru(4, highway_bias="low"), "sru: highway_bias must be a number from -20 to 20"),
        (lambda: cells.sru(4, peephole="all"), "sru: peephole must be one of"),
        (lambda: cells.sru(4).init(jax.random.key(0), jnp.zeros(())), r"sru: init needs an x of shape \[\.\.\., D\]"),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()
