"""FLOPs, bytes and times."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxrnn as rnn


def test_flops_of_products_loops_and_branches():
    a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))
    assert rnn.analysis.flops(jnp.dot, a, b) == 2 * 3 * 4 * 5
    assert rnn.analysis.flops(lambda a: lax.scan(lambda c, _: (jnp.tanh(c), None), a, None, length=7)[0], a) == 7 * 12
    assert rnn.analysis.flops(lambda a: lax.cond(True, jnp.sin, lambda a: jnp.sin(jnp.sin(a)), a), a) == 24
    assert rnn.analysis.flops(lambda a: jnp.sum(a), a) == 12
    assert rnn.analysis.flops(lambda a: a.T.reshape(2, 6), a) == 0
    assert rnn.analysis.flops(jax.jit(lambda a: a + a), a) == 12
    conv = nn.Conv(6, (3, 3), use_bias=False, padding="VALID")
    x = jnp.zeros((1, 8, 8, 2))
    variables = conv.init(jax.random.key(0), x)
    assert rnn.analysis.flops(conv.apply, variables, x) == 2 * (6 * 6 * 6) * (3 * 3 * 2)


def test_depth_is_the_longest_chain():
    a = jnp.zeros(4)
    assert rnn.analysis.depth(lambda a: jnp.sin(jnp.cos(a)) * jnp.tanh(a), a) == 3
    assert rnn.analysis.depth(lambda a: lax.scan(lambda c, _: (jnp.tanh(c) + 1, None), a, None, length=7)[0], a) == 14
    assert rnn.analysis.depth(lambda a: lax.cond(a[0] > 0, jnp.sin, lambda a: jnp.sin(jnp.sin(a)), a), a) >= 2
    assert rnn.analysis.depth(jax.jit(lambda a: a + a), a) == 1
    assert rnn.analysis.depth(lambda a: a, a) == 0


def test_a_linear_system_counts_as_what_solves_it():
    """Not with the system itself, nor with what would solve its transpose."""
    system = lambda a: lax.custom_linear_solve(
        lambda x: 2 * x, a, lambda _, b: jnp.sin(jnp.cos(b)), lambda _, b: jnp.sin(jnp.sin(jnp.sin(b)))
    )
    assert rnn.analysis.flops(system, jnp.zeros(5)) == 10 and rnn.analysis.depth(system, jnp.zeros(5)) == 2


def test_flops_of_an_lstm_follow_its_formula():
    cell, B, D, H, T = rnn.lstm(64), 4, 32, 64, 10
    params = cell.init(jax.random.key(0), jnp.zeros(D))
    run = lambda p, xs: rnn.unroll(cell, p, xs)[0].h
    products = 8 * H * (D + H) * B * T
    assert products <= rnn.analysis.flops(run, params, jnp.zeros((T, B, D))) <= 1.1 * products


def test_recomputation_is_counted():
    cell = rnn.lstm(64)
    params = cell.init(jax.random.key(0), jnp.zeros(32))
    grad = lambda scan: jax.grad(lambda p, xs: jnp.sum(rnn.unroll(cell, p, xs, scan=scan)[0].h))
    xs = jnp.zeros((64, 4, 32))
    plain, once, twice = (
        rnn.analysis.flops(grad(s), params, xs) for s in (lax.scan, rnn.checkpointed(8), rnn.checkpointed(4, levels=2))
    )
    forward = rnn.analysis.flops(lambda p, xs: rnn.unroll(cell, p, xs)[0].h, params, xs)
    assert 0.9 * forward < once - plain < 1.1 * forward
    assert 0.9 * forward < twice - once < 1.1 * forward


def test_temp_bytes_needs_no_arrays():
    square = lambda a: jnp.tanh(a @ a) @ a
    assert rnn.analysis.temp_bytes(square, jax.ShapeDtypeStruct((256, 256), jnp.float32)) >= 256 * 256 * 4


def test_interleaved_runs_in_turn_and_orders_by_time():
    order = []

    def waits(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)
            return jnp.zeros(())

        return run

    timings = rnn.analysis.interleaved({"long": waits("long", 0.05), "short": waits("short", 0.0)}, rounds=3)
    rounds = [order[n : n + 2] for n in range(0, 8, 2)]  # the warm-up first
    assert all(sorted(each) == ["long", "short"] for each in rounds)
    assert ["long", "short"] in rounds and ["short", "long"] in rounds[1:], "no one always comes after the same"
    assert timings["long"].runs == 3 and timings["long"].low <= timings["long"].median <= timings["long"].high
    assert timings["long"].median >= 0.05
    with pytest.raises(ValueError, match="rounds must be a whole number"):
        rnn.analysis.interleaved({}, rounds=0)


def test_interleaved_stops_after_its_time():
    timings = rnn.analysis.interleaved({"a": lambda: time.sleep(0.02)}, rounds=1000, seconds=0.05)
    assert 1 <= timings["a"].runs < 1000


def test_kept_per_step_finds_the_batch_or_checks_it():
    cell = rnn.gru(4)
    params, x = cell.init(jax.random.key(0), jnp.zeros(2)), jnp.zeros((16, 2))
    assert rnn.analysis.kept_per_step(cell, params, x) == rnn.analysis.kept_per_step(cell, params, x, (16,))
    with pytest.raises(ValueError, match=r"batch_shape should be \(16,\), as in x, got \(3,\)"):
        rnn.analysis.kept_per_step(cell, params, x, (3,))


def test_memory_free_is_some_of_what_the_machine_has():
    assert 2**20 < rnn.analysis.memory_free() < 2**50
