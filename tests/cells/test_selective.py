"""rg_lru and selective_ssm against loops in numpy, written from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells
from jaxrnn.cells.selective import bounded_sqrt
from tests.cells.by_hand import F64, parts, problem, run, same, sigmoid, softplus
from tests.zoo import D


def test_rg_lru_equals_numpy(x64):
    _, p, xs, ys, last = problem(cells.rg_lru(D, dtype=F64))
    h, (W_a, W_x), (b_a, b_x) = np.zeros((2, D)), parts(p["U"], 2), parts(p["b"], 2)
    for x, y in zip(xs, ys, strict=True):
        r, i = sigmoid(x @ W_a + b_a), sigmoid(x @ W_x + b_x)
        a = sigmoid(-p["l"]) ** (8 * r)  # the paper's a = s(Lambda), its Lambda being -l
        h = a * h + np.sqrt(1 - a**2) * (i * x)
        same(y, h)
    same(last, h)


def test_the_first_decays_of_rg_lru_are_between_0_9_and_0_999():
    params = cells.rg_lru(300).init(jax.random.key(0), jnp.zeros(300))
    decay = np.sort(np.exp(-8 * softplus(np.asarray(params["l"], np.float64))))
    np.testing.assert_allclose(decay, np.linspace(0.9, 0.999, 300), atol=0.012)


def test_the_state_of_rg_lru_is_float32_and_forgets_in_bfloat16():
    """A decay of 0.9995 is 1 in bfloat16: a state in that dtype would never fade."""
    cell = cells.rg_lru(1, dtype=jnp.bfloat16)
    params = {"U": jnp.zeros((1, 2)), "b": jnp.array([40.0, 40.0]), "l": jnp.log(jnp.expm1(jnp.array([0.0005 / 8])))}
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    state = jnp.ones(1, jnp.float32)
    last, ys = run(cell, params, jnp.zeros((2000, 1), jnp.bfloat16), state)
    assert last.dtype == jnp.float32 and ys.dtype == jnp.bfloat16
    np.testing.assert_allclose(last, np.exp(-1.0), rtol=2e-2)


def test_the_gradient_of_rg_lru_is_bounded_where_a_gate_is_shut():
    """r = 0 makes a = 1: the slope of sqrt(1 - a^2) is infinite there, and 1000 in a gradient."""
    cell = cells.rg_lru(1)
    params = {"U": jnp.zeros((1, 2)), "b": jnp.array([-200.0, 200.0]), "l": jnp.array([20.0])}
    step = lambda p: cell.step(p, jnp.ones(1), jnp.ones(1))[0].sum()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(jax.jit(jax.grad(step))(params)))
    hessian = jax.jit(jax.hessian(lambda b: step({**params, "b": b})))(params["b"])
    assert bool(jnp.all(jnp.isfinite(hessian)))


def test_the_root_is_the_root_and_its_slope_is_the_true_one_up_to_1000(x64):
    a = jnp.array([0.0, 1e-12, 2.5e-7, 1e-6, 0.3, 1.0])
    np.testing.assert_allclose(bounded_sqrt(a), np.sqrt(a), rtol=1e-15)
    slope = jax.jit(jax.vmap(jax.grad(bounded_sqrt)))(a)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(slope, np.minimum(0.5 / np.sqrt(np.asarray(a)), 1000), rtol=1e-12)
    np.testing.assert_allclose(jax.jvp(bounded_sqrt, (a,), (jnp.ones(6),))[1], slope, rtol=1e-15)


def test_selective_ssm_equals_numpy(x64):
    """Per example, feature and state, as the paper's algorithm 2 has them, with A by zero-order hold and B by Euler."""
    N, R = 3, 2
    _, p, xs, ys, last = problem(cells.selective_ssm(D, states=N, rank=R, dtype=F64))
    h = np.zeros((2, D, N))
    for x, y in zip(xs, ys, strict=True):
        for b in range(2):
            low, B, C = np.split(x[b] @ p["U"], [R, R + N])
            delta = softplus(low @ p["V"] + p["b"])
            for d in range(D):
                for n in range(N):
                    A = -np.exp(p["a"][d, n])
                    h[b, d, n] = np.exp(delta[d] * A) * h[b, d, n] + delta[d] * B[n] * x[b, d]
                same(y[b, d], C @ h[b, d] + p["d"][d] * x[b, d])
    same(last, h)


def test_the_first_parameters_of_selective_ssm():
    params = cells.selective_ssm(400, states=5).init(jax.random.key(0), jnp.zeros(400))
    assert params["V"].shape == (25, 400) and float(jnp.abs(params["V"]).max()) <= 0.2
    np.testing.assert_allclose(jnp.exp(params["a"]), np.tile(np.arange(1.0, 6.0), (400, 1)), rtol=1e-6)
    steps = np.log(np.sort(softplus(np.asarray(params["b"], np.float64))))
    np.testing.assert_allclose(steps, np.linspace(np.log(0.001), np.log(0.1), 400), atol=0.4)
    np.testing.assert_array_equal(params["d"], np.ones(400))


def test_selective_ssm_in_bfloat16_is_near_float32():
    wide, narrow = (cells.selective_ssm(16, dtype=t) for t in (jnp.float32, jnp.bfloat16))
    xs = jax.random.normal(jax.random.key(0), (300, 16)).astype(jnp.bfloat16)
    params = narrow.init(jax.random.key(1), xs[0])
    state, ys = run(narrow, params, xs)
    assert state.dtype == jnp.float32 and ys.dtype == jnp.bfloat16
    as32 = jax.tree.map(lambda a: np.asarray(a).astype(np.float32), params)
    expected = np.asarray(run(wide, as32, np.asarray(xs).astype(np.float32))[1])
    assert np.abs(np.asarray(ys).astype(np.float32) - expected).max() / np.abs(expected).max() < 2e-2


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cells.rg_lru(2.5), "rg_lru: size must be a whole number of at least 1, got 2.5"),
        (lambda: cells.rg_lru(4).init(jax.random.key(0), jnp.zeros(3)), "rg_lru: x must have as many features as"),
        (lambda: cells.selective_ssm(4, states=0), "selective_ssm: states must be a whole number"),
        (lambda: cells.selective_ssm(4, rank=-1), "selective_ssm: rank must be a whole number"),
        (lambda: cells.selective_ssm(4, steps=(1, 0.1)), "selective_ssm: steps must be two step sizes"),
        (lambda: cells.selective_ssm(4, steps=None), "selective_ssm: steps must be two step sizes"),
        (lambda: cells.selective_ssm(4).init(jax.random.key(0), jnp.zeros((2, 5))), r"4, got float32\[2,5\]"),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()
