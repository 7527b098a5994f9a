"""layer_norm_lstm against a loop in numpy, and what normalisation makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from jaxrnn.cells.normalisation import normalised
from tests.cells.by_hand import F64, made, parts, problem, run, same, sigmoid
from tests.zoo import D, H, sequence


def norm(a):
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)


def test_it_equals_numpy(x64):
    _, p, xs, ys, last = problem(cells.layer_norm_lstm(H, dtype=F64))
    h, c = np.zeros((2, H)), np.zeros((2, H))
    for x, y in zip(xs, ys, strict=True):
        i, f, g, o = parts(p["g_x"] * norm(x @ p["U"]) + p["g_h"] * norm(h @ p["W"]) + p["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(p["g_c"] * norm(c) + p["b_c"])
        same(y, h)
    same((last.h, last.c), (h, c))


def test_the_scale_of_weights_does_not_matter(x64):
    cell = cells.layer_norm_lstm(H, dtype=F64)
    params, xs = made(cell), 100 * np.asarray(sequence(1, (6, 2), F64))
    larger = {**params, "U": 10 * params["U"]}
    np.testing.assert_allclose(run(cell, larger, xs)[1], run(cell, params, xs)[1], rtol=1e-4, atol=1e-6)


def test_equal_sums_are_no_number_divided_by_zero():
    """The first step has h = 0, so W h is the same for all units."""
    cell = cells.layer_norm_lstm(H)
    params = cell.init(jax.random.key(0), jnp.zeros(D))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(rnn.unroll(cell, p, jnp.zeros((3, D)))[1])))(params)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(grads))


def test_statistics_are_float32_in_bfloat16():
    """Numbers of 300 and 301 are neighbours in bfloat16; their mean and variance are not to be made in it."""
    a = jnp.array([300.0, 302, 304, 306], jnp.bfloat16)
    np.testing.assert_allclose(normalised(a).astype(jnp.float32), norm(np.array([300.0, 302, 304, 306])), rtol=1e-2)


def test_bad_construction_is_one_clear_sentence():
    with pytest.raises(ValueError, match="layer_norm_lstm: size must be a whole number of at least 1, got -3"):
        cells.layer_norm_lstm(-3)
