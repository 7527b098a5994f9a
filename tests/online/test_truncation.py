"""Truncated BPTT as a learner: window by window what `truncated` does to a whole sequence."""

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from jaxrnn.online import immediate, online, tbptt
from tests.online.problems import F64, bptt, error, every, first, problem


def cell():
    return rnn.gru(4, learn_initial_state=True, **F64)


@pytest.mark.parametrize(
    ("method", "scan"),
    [
        pytest.param(tbptt(12), jax.lax.scan, marks=pytest.mark.slow),
        pytest.param(tbptt(12, every=3), jax.lax.scan, marks=pytest.mark.slow),
        pytest.param(tbptt(3, every=3), rnn.truncated(3), marks=pytest.mark.slow),
        (tbptt(6, every=3), rnn.truncated(every=3, reach=6)),
        (tbptt(4), rnn.truncated(every=1, reach=4)),
        (immediate(), rnn.truncated(1)),
    ],
    ids=["all", "all by three", "three", "three of six", "one of four", "immediate"],
)
def test_windows_are_those_of_truncated(method, scan, x64):
    net, params, xs = problem(cell(), T=12)
    found, carry = every(net, method, params, xs, getattr(method, "every", 4))
    assert error(found, bptt(net, params, xs, scan=scan)) < 1e-12
    assert carry.steps == 12


def test_what_draws_draws_the_same_when_it_is_run_again(x64):
    cell = rnn.dropout(rnn.gru(4, **F64), 0.4, on="input")
    net, params, xs = problem(cell, T=8)
    key = jax.random.key(3)
    found, _ = every(net, tbptt(8, every=2), params, xs, 2, key=key)
    assert error(found, bptt(net, params, xs, key=key)) < 1e-12
    learner = online(net, tbptt(4, every=2))
    carry = learner.init(params, first(xs))
    with pytest.raises(ValueError, match=r"run again with their own keys; give the key to init"):
        learner.update(params, carry, jax.tree.map(lambda a: a[:2], xs), key=key)


def test_earlier_steps_that_were_not_there_are_not_run(x64):
    """A cell to which zeros are poison: the steps before the first one must not run, nor leave a NaN in a gradient."""

    def step(params, h, x, *, key=None):
        h = h / 2 + params["a"] * jnp.log(x**2)
        return h, h

    cell = rnn.Cell(lambda key, x: {"a": jnp.ones(())}, lambda p, batch: jnp.zeros((*batch, 3)), step)
    net, params, xs = problem(cell, T=4)
    found, _ = every(net, tbptt(4), params, xs, 1)
    assert error(found, bptt(net, params, xs)) < 1e-12


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tbptt(0), "reach must be a whole number of at least 1, got 0"),
        (lambda: tbptt(3, every=2.5), "every must be a whole number"),
        (lambda: tbptt(2, every=3), r"reach must be at least every \(3\), got 2"),
    ],
)
def test_what_cannot_be(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_window_of_another_length_is_refused():
    net, params, xs = problem(rnn.gru(4), dtype=jnp.float32)
    learner = online(net, tbptt(4, every=2))
    with pytest.raises(ValueError, match=r"every = 2 steps, got 6; say tbptt\(reach, every=6\)"):
        learner.update(params, learner.init(params, first(xs)), xs)
