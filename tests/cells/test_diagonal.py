"""lru and s5 against loops in numpy, in complex numbers, written from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from jaxrnn.cells.diagonal import hippo_eigenvalues
from tests.cells.by_hand import F64, problem, run, same
from tests.zoo import D, sequence

N = 4  # states


def as_complex(matrix, axis=-1):
    real, imaginary = np.split(matrix, 2, axis=axis)
    return real + 1j * imaginary


def test_lru_equals_numpy(x64):
    _, p, xs, ys, last = problem(cells.lru(D, states=N, dtype=F64))
    a = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    B, C = as_complex(p["U"]), as_complex(p["C"], 0)
    h = np.zeros((2, N), complex)
    for x, y in zip(xs, ys, strict=True):
        h = a * h + np.exp(p["gamma"]) * (x @ B)
        same(y, (h @ C).real + p["d"] * x)
    assert isinstance(last, cells.ComplexState)
    same(last.re + 1j * last.im, h)


def test_s5_equals_numpy(x64):
    _, p, xs, ys, last = problem(cells.s5(D, states=N, dtype=F64))
    rate = np.minimum(p["lambda"][0], -1e-4) + 1j * p["lambda"][1]
    a = np.exp(rate * np.exp(p["log_step"]))
    B, C = as_complex(p["U"]), as_complex(p["C"], 0)
    h = np.zeros((2, N), complex)
    for x, y in zip(xs, ys, strict=True):
        h = a * h + (a - 1) / rate * (x @ B)
        same(y, 2 * (h @ C).real + p["d"] * x)
    assert isinstance(last, cells.ComplexState)
    same(last.re + 1j * last.im, h)


def test_s5_starts_as_the_state_space_that_it_makes_diagonal(x64):
    """HiPPO's normal part as a real matrix of 2N x 2N, held over each step, has the same outputs."""
    cell = cells.s5(D, states=N, steps=(0.05, 0.05), dtype=F64)
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((D,), F64))
    root = np.sqrt(np.arange(2 * N) + 0.5)
    upper = np.triu(np.outer(root, root), 1)
    A = upper - upper.T - 0.5 * np.eye(2 * N)
    values, V = hippo_eigenvalues(N)
    same(A @ V, V * values, 1e-10)  # eigenvectors as they should be, and each pair's other half is the conjugate
    B = 2 * np.real(V @ (as_complex(np.asarray(params["U"])).T))
    C = 2 * np.real(as_complex(np.asarray(params["C"]), 0).T @ np.conj(V).T)
    exponential = np.linalg.matrix_power(np.eye(2 * N) + 0.05 * A / 2**30, 2**30)
    held = np.linalg.solve(A, exponential - np.eye(2 * N)) @ B
    xs = np.asarray(sequence(0, (9,), F64))
    ys, h = run(cell, params, jnp.asarray(xs))[1], np.zeros(2 * N)
    for x, y in zip(xs, ys, strict=True):
        h = exponential @ h + held @ x
        np.testing.assert_allclose(y, C @ h + np.asarray(params["d"]) * x, rtol=1e-6, atol=1e-6)


def test_the_first_eigenvalues_lie_in_the_ring_that_was_asked_for():
    params = cells.lru(3, states=4000, ring=(0.6, 0.9), max_phase=0.5).init(jax.random.key(0), jnp.zeros(3))
    radius, phase = np.exp(-np.exp(params["nu"])), np.exp(params["theta"])
    assert radius.min() >= 0.6 - 1e-6 and radius.max() <= 0.9 + 1e-6 and phase.min() > 0 and phase.max() <= 0.5 + 1e-6
    # Uniform in area: the squares are uniform; so are the phases.
    np.testing.assert_allclose(np.sort(radius**2), np.linspace(0.36, 0.81, 4000), atol=0.02)
    np.testing.assert_allclose(np.sort(phase), np.linspace(0, 0.5, 4000), atol=0.02)
    np.testing.assert_allclose(np.exp(2 * params["gamma"]), 1 - radius**2, rtol=1e-4)


@pytest.mark.parametrize("name", ["lru", "s5"])
def test_no_parameters_make_the_state_grow(name):
    """Impulses fade, however the parameters that make the eigenvalues are moved."""
    cell = getattr(cells, name)(D, states=N)
    params = cell.init(jax.random.key(0), jnp.zeros(D))
    for name in {"nu", "theta", "lambda", "log_step"} & set(params):
        params[name] = params[name] + np.float32(2) * jax.random.normal(jax.random.key(1), params[name].shape)
    state = jax.tree.map(lambda a: np.asarray(a) + np.float32(1), cell.initial_state(params, ()))
    step = jax.jit(lambda state: cell.step(params, state, jnp.zeros(D))[0])
    for _ in range(3):
        after = step(state)
        assert np.all(np.hypot(*after) <= np.hypot(*state) * (1 + 1e-6))
        state = after


def test_the_size_of_the_state_is_that_of_the_input():
    """exp(gamma) makes the variance of a long run of white noise one per state, also near the circle."""
    cell = cells.lru(8, states=200, ring=(0.9, 0.99))
    xs = jax.random.normal(jax.random.key(0), (2000, 8))
    last = jax.jit(lambda xs: rnn.unroll(cell, cell.init(jax.random.key(1), xs[0]), xs, outputs="none")[0])
    re, im = map(np.asarray, last(xs))
    np.testing.assert_allclose(np.mean(re**2 + im**2), 1, rtol=0.2)


@pytest.mark.parametrize("name", ["lru", "s5"])
def test_the_state_is_float32_in_16_bits_and_near_what_it_is_in_32(name):
    wide, narrow = (getattr(cells, name)(16, dtype=t) for t in (jnp.float32, jnp.bfloat16))
    xs = np.asarray(jax.random.normal(jax.random.key(0), (300, 16))).astype(jnp.bfloat16)
    params = jax.jit(wide.init)(jax.random.key(1), jnp.zeros(16))
    params = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), params)
    as32 = jax.tree.map(lambda a: a.astype(np.float32), params)
    state, ys = run(narrow, params, xs)
    assert state.re.dtype == state.im.dtype == jnp.float32 and ys.dtype == jnp.bfloat16
    expected = np.asarray(run(wide, as32, xs.astype(np.float32))[1])
    error = np.abs(np.asarray(ys).astype(np.float32) - expected).max() / np.abs(expected).max()
    assert error < 2e-2


@pytest.mark.parametrize("name", ["lru", "s5"])
@pytest.mark.parametrize("scan", [pytest.param(jax.lax.scan, marks=pytest.mark.slow), rnn.scan, rnn.checkpointed(2)])
def test_resets_have_a_gradient_under_every_kind_of_scan(name, scan):
    """A state of complex numbers would have none: JAX's checkpoints refuse them."""
    cell, xs = getattr(cells, name)(D, states=2), sequence(0, (5, 2), jnp.float32)
    params, resets = cell.init(jax.random.key(0), xs[0]), jnp.zeros((5, 2), bool).at[2, 0].set(True)
    loss = lambda p: jnp.sum(rnn.unroll(cell, p, xs, resets=resets, scan=scan)[1])
    grads = jax.eval_shape(jax.grad(loss), params)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cells.lru(4, ring=(0.9, 0.5)), r"lru: ring must be two radii with 0 <= inner < outer <= 1"),
        (lambda: cells.lru(4, ring=0.9), r"lru: ring must be a pair of numbers, got 0.9"),
        (lambda: cells.lru(4, max_phase=7.0), r"lru: max_phase must be an angle above 0, up to 2 pi, got 7.0"),
        (lambda: cells.lru(4, states=0), r"lru: states must be a whole number of at least 1"),
        (lambda: cells.s5(4, steps=(0.0, 0.1)), r"s5: steps must be two step sizes with 0 < least <= largest"),
        (lambda: cells.s5(4, steps="auto"), r"s5: steps must be a pair of numbers"),
        (
            lambda: cells.lru(4).init(jax.random.key(0), jnp.zeros((2, 3))),
            r"lru: x must have as many features as the cell has units, 4, got float32\[2,3\]; .*nn.Dense\(4\)",
        ),
        (lambda: cells.s5(4).init(jax.random.key(0), jnp.zeros(3)), r"s5: x must have as many features as .* units, 4"),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()
