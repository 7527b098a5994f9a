"""`parallel(newton=newton())`: how many iterations, what the certificate says, and the loop where it is not met."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.engine.parallel_program import way_of
from jaxrnn.engine.step import traced
from jaxrnn.scans import Certificate, newton
from tests.scans.recurrences import D, H, drawn
from tests.scans.test_parallel import difference
from tests.scans.test_parallel_masks import LENGTHS, RESETS, cell_of, spoiling
from tests.scans.test_parallel_masks import drawn as inputs

pytestmark = pytest.mark.usefixtures("lenient")


def bounded():
    params = {"u": drawn(1, D, H), "w": jnp.linspace(-1.1, 1.1, H)}
    return params, lambda p, h, x: (jnp.tanh(x @ p["u"] + p["w"] * h),) * 2, jnp.zeros(H)


def gates():
    """A GRU whose recurrent weights are diagonal."""
    params = {"u": drawn(2, D, 3 * H), "w": drawn(3, 3, H)}

    def step(p, h, x):
        r, z, c = jnp.split(x @ p["u"], 3, -1)
        r, z = jax.nn.sigmoid(r + p["w"][0] * h), jax.nn.sigmoid(z + p["w"][1] * h)
        h = (1 - z) * jnp.tanh(c + p["w"][2] * (r * h)) + z * h
        return h, h

    return params, step, jnp.zeros(H)


def pairs():
    """An LSTM with coupled gates whose recurrent weights are diagonal: 2 x 2 blocks."""
    params = {"u": drawn(4, D, 3 * H), "w": drawn(5, 3, H)}

    def step(p, state, x):
        h, c = state
        f, o, z = jnp.split(x @ p["u"], 3, -1)
        f = jax.nn.sigmoid(f + p["w"][0] * h)
        c = f * c + (1 - f) * jnp.tanh(z + p["w"][1] * h)
        h = jax.nn.sigmoid(o + p["w"][2] * h) * jnp.tanh(c)
        return (h, c), h

    return params, step, (jnp.zeros(H), jnp.zeros(H))


def chaotic():
    """The logistic map at its wildest: errors double at every step."""
    params = {"r": jnp.asarray(3.99)}
    return params, lambda p, h, x: (p["r"] * h * (1 - h),) * 2, jnp.full(2, 0.3)


def given(make, steps):
    params, step, state = make()
    double = lambda a: a.astype(jnp.float64)
    state = jax.tree.map(lambda a: jnp.broadcast_to(double(a), (2, *a.shape)) + 0.05, state)
    xs = double(jax.random.normal(jax.random.key(6), (steps, 2, D), jnp.float32))
    return step, jax.tree.map(double, params), state, xs


def loss(scan, step, params, state, xs):
    return jnp.sum(jnp.sin(scan(partial(step, params), state, xs)[1]) ** 2)


@pytest.mark.parametrize("make", [gates, *(pytest.param(m, marks=pytest.mark.slow) for m in (bounded, pairs))])
def test_ten_thousand_steps_in_13_iterations_to_rounding(make, x64):
    step, *args = given(make, 10_000)
    told = []
    scan = rnn.parallel(newton=newton(report=told.append))
    run = lambda scan: jax.jit(lambda p, h, x: scan(partial(step, p), h, x))(*args)
    got, expected = run(scan), run(lax.scan)
    jax.effects_barrier()
    (found,) = told
    assert isinstance(found, Certificate) and found.met and found.iterations <= 13
    assert found.residual <= 16 * jnp.finfo(jnp.float64).eps
    error = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True))
    # The loop itself is rounded at every step, by as much as a residual, and that grows as the bound does.
    assert error <= 2 * found.bound + 1e-14 and found.bound < 1e-12


@pytest.mark.parametrize("make", [bounded, *(pytest.param(m, marks=pytest.mark.slow) for m in (gates, pairs))])
def test_gradients_first_and_second(make, x64):
    step, *args = given(make, 40)

    def both(scan):
        first = jax.grad(partial(loss, scan, step), (0, 1, 2))
        second = jax.grad(lambda p, h, x: sum(jnp.sum(g**2) for g in jax.tree.leaves(first(p, h, x))))
        return first(*args), second(*args)

    got, expected = jax.jit(partial(both, rnn.parallel(newton=newton())))(), jax.jit(partial(both, lax.scan))()
    assert difference(got, expected) < 1e-12


@pytest.mark.parametrize("steps", [pytest.param(10_000, marks=pytest.mark.slow), 300])
def test_gradient_of_many_steps(steps, x64):
    step, *args = given(gates, steps)
    find = lambda scan: jax.jit(jax.grad(partial(loss, scan, step), (0, 1, 2)))(*args)
    for settings in (newton(), newton(iterations=0)):
        assert difference(find(rnn.parallel(newton=settings)), find(lax.scan)) < 1e-13


@pytest.mark.parametrize("batched", [pytest.param(False, marks=pytest.mark.slow), True])
def test_chaos_falls_back_to_the_loop_and_says_so(batched, x64):
    step, params, state, xs = given(chaotic, 200)
    told = []
    scan = rnn.parallel(newton=newton(iterations=8, report=told.append), inner=lax.scan)

    def run(scan):
        one = lambda h, x: scan(partial(step, params), h, x)
        return jax.jit(jax.vmap(one, (0, 1)) if batched else one)(state, xs)

    got, expected = run(scan), run(lax.scan)
    jax.effects_barrier()
    assert told and not any(each.met for each in told)
    assert difference(got, expected) == 0


def test_under_masks_and_in_reverse():
    """Diagonal gates within `unroll`, still by iteration: the inner scan, which would spoil all, is not run."""
    cell = cell_of(gates)
    params, xs = cell.init(None, None), inputs()
    options = {"lengths": LENGTHS, "resets": RESETS, "reverse": True}
    run = lambda scan: jax.jit(lambda p, xs: rnn.unroll(cell, p, xs, scan=scan, **options))(params, xs)
    assert difference(run(rnn.parallel(newton=newton(), inner=spoiling)), run(lax.scan)) < 1e-5


def test_zero_iterations_go_forward_in_order_and_back_in_parallel(x64):
    step, *args = given(gates, 1000)
    forward = lambda p, h, x: rnn.parallel(newton=newton(0), inner=lax.scan)(partial(step, p), h, x)
    gradient = lambda scan: rnn.analysis.depth(jax.grad(partial(loss, scan, step)), *args)
    value = rnn.analysis.depth(forward, *args)
    assert value > 1000 and gradient(rnn.parallel(newton=newton(0), inner=lax.scan)) < value + 500
    assert gradient(lax.scan) > 2 * value


@pytest.mark.parametrize(
    "cell", [rnn.elman(4), *(pytest.param(c, marks=pytest.mark.slow) for c in (rnn.lstm(4), rnn.gru(4)))]
)
def test_dense_cells_are_refused_with_the_reason(cell):
    x = jnp.ones((5, 2, D))
    params = jax.jit(cell.init)(jax.random.key(0), x[0])
    with pytest.warns(UserWarning, match=r"dot_general of the carry mixes elements, .* work that grows with H\^3"):
        got = rnn.unroll(cell, params, x, scan=rnn.parallel(newton=newton()))
    assert difference(got, rnn.unroll(cell, params, x)) == 0


def test_what_is_iterated_is_told(x64):
    step, params, state, xs = given(pairs, 2)
    (stage,) = traced(partial(step, params), state, xs[0]).parts(separate=True).stages
    assert str(way_of(stage.loop, newton())) == "by iteration (logistic of the carry)"


def test_bad_settings():
    with pytest.raises(ValueError, match="newton: iterations must be a whole number of at least 0, got -1"):
        newton(-1)
    with pytest.raises(ValueError, match="newton: tolerance must be a positive number, or None, got 0"):
        newton(tolerance=0)
    with pytest.raises(TypeError, match="newton: report must be a function of a Certificate, got 3"):
        newton(report=3)
    with pytest.raises(TypeError, match=r"parallel: newton must be newton\(...\) or None, got 5"):
        rnn.parallel(newton=5)
