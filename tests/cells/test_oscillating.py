"""co_rnn against numpy and against the differential equation; clockwork against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from tests.cells.by_hand import F64, made, problem, run, same
from tests.zoo import D, H, sequence


def test_co_rnn_equals_numpy(x64):
    _, p, xs, ys, last = problem(cells.co_rnn(H, step=0.1, stiffness=1.5, damping=0.7, dtype=F64))
    position, speed = np.zeros((2, H)), np.zeros((2, H))
    for x, y in zip(xs, ys, strict=True):
        force = np.tanh(x @ p["U"] + position @ p["W"] + speed @ p["V"] + p["b"]) - 1.5 * position - 0.7 * speed
        speed = speed + 0.1 * force
        position = position + 0.1 * speed
        same(y, position)
    assert isinstance(last, cells.CoRNNState)
    same((last.y, last.z), (position, speed))


def test_co_rnn_comes_nearer_to_its_differential_equation_as_steps_get_smaller(x64):
    """y'' = tanh(U x + W y + V y' + b) - g y - e y' for a constant x, by Runge and Kutta: an error of first order."""
    p = made(cells.co_rnn(H, dtype=F64))
    q, x = jax.tree.map(np.asarray, p), np.array([0.3, -0.8, 0.5])

    def slope(s):
        y, z = s
        return np.stack([z, np.tanh(x @ q["U"] + y @ q["W"] + z @ q["V"] + q["b"]) - 1.2 * y - 0.5 * z])

    s, dt = np.zeros((2, H)), 2.0 / 400
    for _ in range(400):
        a = slope(s)
        b = slope(s + dt / 2 * a)
        c = slope(s + dt / 2 * b)
        s = s + dt / 6 * (a + 2 * b + 2 * c + slope(s + dt * c))
    errors = []
    for steps in (40, 80, 160):
        cell = cells.co_rnn(H, step=2.0 / steps, stiffness=1.2, damping=0.5, dtype=F64)
        ys = run(cell, p, np.broadcast_to(x, (steps, D)))[1]
        errors.append(np.abs(ys[-1] - s[0]).max())
    assert errors[0] < 0.05 and 1.8 < errors[0] / errors[1] < 2.2 and 1.8 < errors[1] / errors[2] < 2.2


def test_co_rnn_stays_bounded_and_its_gradient_lives():
    """Over 2,000 steps |y|^2 + |z|^2 stays below H T step; and the first input still has a gradient after 200."""
    cell = cells.co_rnn(16, stiffness=1.0, damping=1.0)
    xs = 3 * sequence(0, (2000, 2), jnp.float32)
    params = cell.init(jax.random.key(0), xs[0])
    state, ys = run(cell, params, xs)
    energy = np.sum(np.square(state.y) + np.square(state.z), axis=-1)
    assert energy.max() < 16 * 2000 * 0.042 and np.abs(ys).max() < 4
    grad = jax.jit(jax.grad(lambda xs: jnp.sum(rnn.unroll(cell, params, xs)[1][-1])))(np.asarray(xs)[:200])
    assert np.abs(grad[0]).max() > 1e-4


def test_clockwork_equals_numpy(x64):
    """Every unit's row of the equations, as the paper has them: it waits, or reads its own part and the slower ones."""
    periods, per_part = (1, 2, 5), 2
    cell = cells.clockwork(6, periods=periods, dtype=F64)
    _, p, xs, ys, last = problem(cell, steps=12)
    h = np.zeros((2, 6))
    for t, (x, y) in enumerate(zip(xs, ys, strict=True)):
        new = h.copy()
        for part, period in enumerate(periods):
            if t % period == 0:
                own, slower = slice(part * per_part, (part + 1) * per_part), slice(part * per_part, None)
                new[:, own] = np.tanh(x @ p["U"][:, own] + h[:, slower] @ p["W"][slower, own] + p["b"][own])
        h = new
        same(y, h)
    same(last.h, h)
    assert isinstance(last, cells.ClockworkState)
    assert last.t.tolist() == [12, 12] and last.t.dtype == np.int32


def test_slow_units_stand_still_between_their_ticks():
    cell = cells.clockwork(8, periods=(1, 2, 4, 8))
    xs = sequence(0, (17, 2), jnp.float32)
    ys = np.asarray(run(cell, cell.init(jax.random.key(0), xs[0]), xs)[1])
    moved = np.any(ys[1:] != ys[:-1], axis=1).reshape(16, 4, 2).all(-1)  # [t, part]
    for part, period in enumerate((1, 2, 4, 8)):
        assert moved[:, part].tolist() == [t % period == 0 for t in range(1, 17)]


def test_one_period_is_the_simple_net(x64):
    cell = cells.clockwork(H, periods=(1,), dtype=F64)
    params, xs = made(cell), sequence(1, (6, 2), F64)
    same(run(cell, params, xs)[1], run(rnn.elman(H, dtype=F64), params, xs)[1])


def test_weights_that_are_not_read_have_no_gradient_and_are_zero_at_first():
    cell = cells.clockwork(4, periods=(1, 3))
    params, xs = cell.init(jax.random.key(0), jnp.zeros(D)), sequence(1, (7, 2), jnp.float32)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(rnn.unroll(cell, p, xs)[1])))(params)["W"]
    for matrix in (np.asarray(params["W"]), np.asarray(grad)):
        assert not np.any(matrix[:2, 2:]) and np.all(matrix[2:] != 0) and np.all(matrix[:2, :2] != 0)


def test_a_reset_starts_the_clock_anew():
    cell = cells.clockwork(2, periods=(1, 3))
    xs = sequence(1, (5, 1), jnp.float32)
    params = cell.init(jax.random.key(0), xs[0])
    resets = jnp.array([[False], [False], [True], [False], [False]])
    state, ys = jax.jit(lambda xs: rnn.unroll(cell, params, xs, resets=resets))(xs)
    alone, later = run(cell, params, xs[2:])
    np.testing.assert_allclose(ys[2:], later, rtol=1e-6)
    assert state.t.tolist() == alone.t.tolist() == [3]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cells.co_rnn(4, step=0), "co_rnn: step must be a number above 0, got 0"),
        (lambda: cells.co_rnn(4, damping=-1.0), "co_rnn: damping must be a number above 0, got -1.0"),
        (lambda: cells.co_rnn(4, stiffness="hard"), "co_rnn: stiffness must be a number above 0, got 'hard'"),
        (lambda: cells.clockwork(4, periods=3), r"clockwork: periods must be whole numbers such as \(1, 2, 4, 8\)"),
        (lambda: cells.clockwork(4, periods=(4, 1)), r"clockwork: periods must rise, the fastest part first"),
        (lambda: cells.clockwork(4, periods=(1, 0)), "clockwork: periods must be a whole number of at least 1"),
        (lambda: cells.clockwork(5, periods=(1, 2)), "clockwork: size must be a multiple of the number of periods"),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()
