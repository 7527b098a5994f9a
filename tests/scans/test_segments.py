"""Scans are drop-ins for lax.scan on any step, not only on cells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxrnn as rnn
from jaxrnn.engine.memory import StepBytes
from jaxrnn.scans.checkpointing import branches, kept_bytes, nested_sizes, segment_keeping_least
from tests.choice import slow_but_for
from tests.reference import assert_close
from tests.zoo import SCANS

OURS = [name for name in SCANS if name != "lax.scan"]
FEW = ("checkpointed(2)", "fissioned(2, separate)", "revolve(2, 1, kept=1)", "parallel")
FEW_FAST = slow_but_for(FEW, OURS)


def busy_step(carry, x):
    """Every kind of leaf: float, integer, key, nested; one output that is the carry, one that is nothing."""
    (a, n), key = carry["pair"], carry["key"]
    noise = jax.random.normal(jax.random.fold_in(key, n), a.shape)
    a = jnp.tanh(a + x["u"] * noise) + x["k"].astype(a.dtype)
    return {"pair": (a, n + x["k"]), "key": key}, {"a": a, "none": None, "n": n}


@functools.cache
def busy(scan, reverse):
    """What every kind of leaf becomes, and the gradient in those that have one."""
    integers = jnp.arange(7, dtype=jnp.int32) % 2

    def run(a, u):
        start = {"pair": (a, jnp.int32(0)), "key": jax.random.key(0)}
        carry, ys = SCANS[scan](busy_step, start, {"u": u, "k": integers}, reverse=reverse)
        return jnp.sum(carry["pair"][0]), (carry["pair"], jax.random.key_data(carry["key"]), ys)

    return jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(jnp.ones(3), jnp.linspace(0, 1, 21).reshape(7, 3))


@pytest.mark.parametrize("reverse", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("scan", FEW_FAST)
def test_pytrees_integers_and_keys(scan, reverse):
    assert_close(busy(scan, reverse), busy("lax.scan", reverse), 1e-6)


@pytest.mark.parametrize("scan", FEW_FAST)
def test_no_inputs_only_a_length(scan):
    step = lambda c, _: (c * 1.1 + 1, c)
    assert_close(SCANS[scan](step, 0.5, None, length=7), lax.scan(step, 0.5, None, length=7), 1e-6)
    assert_close(SCANS[scan](step, 0.5, None, length=0), lax.scan(step, 0.5, None, length=0), 0)


@pytest.mark.parametrize("scan", FEW_FAST)
def test_weak_types_are_promoted_as_lax_scan_does(scan):
    step = lambda c, x: (c * 0.5 + x, c)
    xs = jnp.arange(5, dtype=jnp.bfloat16)
    got, expected = SCANS[scan](step, 0.0, xs), lax.scan(step, 0.0, xs)
    assert got[0].dtype == jnp.bfloat16
    assert_close(got, expected, 1e-6)


@functools.cache
def nested_in_itself(scan):
    """A scan within itself: its value and derivatives of first and second order, in one program."""

    def inner(c, x):
        return SCANS[scan](lambda d, k: (jnp.sin(d * k), d), c, jnp.full(3, x))[0], c

    def f(x):
        return jnp.sum(jnp.asarray(SCANS[scan](inner, x, jnp.linspace(0.5, 1.0, 5))[1]))

    orders = jax.value_and_grad(f), jax.grad(jax.grad(f)), jax.hessian(f)  # reverse over reverse, forward over reverse
    return jax.jit(lambda x: [leaf for each in orders for leaf in jax.tree.leaves(each(x))])(jnp.float64(0.7))


NESTED = ("checkpointed", "fissioned(2, separate)", "revolve(2, 1, kept=1)", "parallel(2)")


@pytest.mark.parametrize("scan", slow_but_for(NESTED, OURS))
def test_nested_and_second_derivatives(scan, x64):
    np.testing.assert_allclose(nested_in_itself(scan), nested_in_itself("lax.scan"), rtol=1e-10)


@pytest.mark.parametrize("scan", OURS)
@pytest.mark.parametrize(
    ("step", "init", "complaint"),
    [
        (lambda c, x: (c.astype(jnp.bfloat16), x), jnp.zeros(2), "carry"),
        (lambda c, x: ((c, c), x), jnp.zeros(2), "carry"),
        (lambda c, x: c, jnp.zeros(2), None),
    ],
)
def test_a_bad_step_is_refused_as_lax_scan_refuses_it(scan, step, init, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        lax.scan(step, init, jnp.zeros((5, 2)))
    with pytest.raises((TypeError, ValueError), match=complaint):
        SCANS[scan](step, init, jnp.zeros((5, 2)))


@pytest.mark.parametrize("scan", OURS)
def test_unequal_inputs_are_named(scan):
    with pytest.raises(ValueError, match=r"xs\[1\] has 4 time steps but xs\[0\] has 5"):
        SCANS[scan](lambda c, x: (c, x), 0.0, (jnp.zeros(5), jnp.zeros(4)))
    with pytest.raises(ValueError, match=r"length is 3 but xs has 5"):
        SCANS[scan](lambda c, x: (c, x), 0.0, jnp.zeros(5), length=3)
    with pytest.raises(ValueError, match=r"xs has no arrays, so length must be given"):
        SCANS[scan](lambda c, x: (c, x), 0.0, None)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: rnn.checkpointed(0), r"checkpointed: segment must be a whole number of at least 1, got 0"),
        (lambda: rnn.checkpointed(2.0), r"segment must be a whole number"),
        (lambda: rnn.checkpointed(levels=0), r"levels must be a whole number"),
        (lambda: rnn.checkpointed(inner=3), r"inner must be a scan"),
        (lambda: rnn.checkpointed(inner=rnn.python_loop), r"make a value of it: python_loop\(...\)"),
        (lambda: rnn.checkpointed(sgment=3), r"sgment"),
        (lambda: rnn.truncated(-1), r"truncated: segment must be a whole number"),
        (lambda: rnn.truncated(), r"segment"),
    ],
)
def test_bad_strategies_are_refused_at_once(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()


def test_strategies_are_values():
    assert rnn.checkpointed(3) == rnn.checkpointed(3) != rnn.checkpointed(4)
    assert hash(rnn.truncated(3)) == hash(rnn.truncated(3))
    assert repr(rnn.checkpointed(3)).startswith("checkpointed(segment=3, levels=1")


def count(primitive, jaxpr):
    """How often a primitive runs in a program, loops counted in full."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [getattr(v, "jaxpr", v) for v in equation.params.values() if hasattr(v, "eqns")]
        total += (equation.primitive.name == primitive) + times * sum(count(primitive, j) for j in inner)
    return total


def evaluations(scan, steps):
    """How many times the step's tanh is computed for one gradient."""
    step = lambda c, x: (jnp.tanh(c * x), None)
    grad = jax.grad(lambda c, xs: scan(step, c, xs)[0])
    return count("tanh", jax.make_jaxpr(grad)(0.3, jnp.ones(steps)).jaxpr)


@pytest.mark.parametrize(
    ("scan", "forward_passes"),
    [
        (lax.scan, 1),
        (rnn.checkpointed(1), 2),
        (rnn.checkpointed(4), 2),
        (rnn.checkpointed(5), 2),
        (rnn.checkpointed(2, levels=2), 3),
        (rnn.checkpointed(2, levels=3), 4),
        (rnn.truncated(4), 1),
    ],
)
def test_each_level_costs_one_forward_pass(scan, forward_passes):
    assert evaluations(scan, 16) == 16 * forward_passes


@settings(max_examples=200, deadline=None)
@given(steps=st.integers(1, 5000), segment=st.integers(1, 60), levels=st.integers(1, 4))
def test_nested_sizes_shrink_to_the_segment(steps, segment, levels):
    sizes = nested_sizes(steps, segment, levels)
    assert sizes == sorted(set(sizes), reverse=True) and all(s % segment == 0 and s < steps for s in sizes)
    assert (sizes[-1] == segment) if steps > segment else sizes == []
    assert np.prod(branches(-(-steps // segment), levels)) >= -(-steps // segment)


def test_exact_factorisations_are_preferred():
    assert nested_sizes(1000, 10, 2) == [100, 10]
    assert nested_sizes(100_000, 50, 2) in ([2000, 50], [2500, 50])
    assert branches(36, 2) == [6, 6] and sorted(branches(1000, 3)) == [10, 10, 10]


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 400), carry=st.integers(1, 20), kept=st.integers(1, 60))
def test_the_chosen_segment_keeps_least(steps, carry, kept):
    cost = StepBytes(carry, kept, 0)
    brute = min(kept_bytes(steps, nested_sizes(steps, k, 1), cost) for k in range(1, steps + 1))
    chosen = segment_keeping_least(steps, 1, cost)
    assert kept_bytes(steps, nested_sizes(steps, chosen, 1), cost) <= 1.05 * brute


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("inner", [lax.scan, rnn.checkpointed(2), rnn.python_loop()])
def test_truncation_reaches_back_to_the_segment_start_only(inner, reverse):
    """d carry_out / d x_t is one within the last segment, and zero before it."""
    step = lambda c, x: (c + x, c)
    run = lambda c, xs: rnn.truncated(4, inner)(step, c, xs, reverse=reverse)
    both = jax.grad(lambda c, xs: run(c, xs)[0], 1), jax.grad(lambda c, xs: jnp.sum(run(c, xs)[1]))
    grad, first = jax.jit(lambda c, xs: [gradient(c, xs) for gradient in both])(0.0, jnp.ones(10))
    assert grad.tolist() == ([1.0] * 4 + [0.0] * 6 if reverse else [0.0] * 8 + [1.0] * 2)
    assert first == (2.0 if reverse else 4.0)
