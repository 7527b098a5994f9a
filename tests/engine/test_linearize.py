"""The stages of a loop's derivative, one by one."""

import jax
import jax.numpy as jnp
import pytest

from jaxrnn.engine import linearize, taps
from jaxrnn.engine.evaluate import run
from jaxrnn.engine.ir import is_float, read
from jaxrnn.engine.linearize import differentiate
from jaxrnn.engine.step import traced
from tests.reference import assert_close

H, B = 4, 3
KEYS = jax.random.split(jax.random.key(0), 6)
W, U = jax.random.normal(KEYS[0], (H, 4 * H)) / 2, jax.random.normal(KEYS[1], (H, 4 * H)) / 2
BIAS = jax.random.normal(KEYS[2], (4 * H,))


def lstm(carry, x):
    h, c = carry
    i, f, g, o = jnp.split(h @ W + (x @ U + BIAS[None]), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(c), c), h


def elman(h, x):
    h = jnp.tanh(h @ W[:, :H] + x @ U[:, :H])
    return h, h


def loop_of(step, carry):
    (stage,) = traced(step, carry, jnp.zeros((B, H))).parts().stages
    return stage.loop


def derivative(loop, free=False):
    floats = lambda side: [is_float(v) for v in side]
    return differentiate(loop, floats(loop.invariant), floats(loop.stacked), [free] * len(loop.stacked))


STATE = jnp.zeros((B, H))
LOOPS = {"elman": (elman, STATE), "lstm": (lstm, (STATE, STATE))}


@pytest.mark.parametrize("step, carry", LOOPS.values(), ids=list(LOOPS))
def test_the_pieces_together_are_jax_s_derivative(step, carry):
    """forward, redo, outer, taps and inner, run one after the other for one step, against `jax.jvp`."""
    loop = loop_of(step, carry)
    found = derivative(loop)
    values = [
        jax.random.normal(k, v.aval.shape) for k, v in zip(jax.random.split(KEYS[3], 99), loop.inputs, strict=False)
    ]
    moved = [*found.d_invariant, *found.d_carry, *found.d_stacked]
    tangents = [jnp.cos(v) for v in values]

    env = run(found.forward.equations, found.forward.held | dict(zip(found.forward.inputs, values, strict=True)))
    env = run([*found.redo, *found.tangents.outer], env | dict(zip(moved, tangents, strict=True)))
    for each in found.tangents.entered:
        assert each.inner and each.from_outside
    env = run(found.tangents.inner, env, {id(each.equation): summed(each) for each in found.tangents.sums})
    got = [read(env, a) for a in [*found.d_carry_out, *found.d_emitted]]

    def whole(*args):
        n = len(loop.invariant)
        end, emitted = loop.at(args[:n])(args[n : n + len(loop.carry)], args[n + len(loop.carry) :])
        return [*end, *emitted]

    assert_close(got, jax.jvp(whole, values, tangents)[1], 1e-5)


def summed(each):
    """A sum with its outside terms, for a single step: what a tap of one step adds up."""

    def total(env):
        tap = each.tap(lambda v: env[v][None], 1)[0] if each.from_outside else None
        inside = taps.added([env[v] for v in each.inner])
        return [inside if tap is None else inside + tap]

    return total


def test_an_lstm_has_one_tap_for_all_gates():
    found = derivative(loop_of(lstm, (STATE, STATE)))
    assert len(found.tangents.entered) == 1
    assert found.tangents.entered[0].equation.outvars[0].aval.shape == (B, 4 * H)


def test_the_least_is_kept():
    """Elman: the state, under its name after the step, which is emitted anyway; an LSTM: 7 H numbers."""
    found = derivative(loop_of(elman, STATE))
    assert [k.carry for k in found.kept if k.carry is not None] == [0]
    assert all(k.stacked is None for k in found.kept)
    kept = derivative(loop_of(lstm, (STATE, STATE))).kept
    assert sum(k.var.aval.size for k in kept) == 7 * B * H


def test_what_is_there_anyway_is_kept_for_nothing():
    step = lambda h, x: (h * jnp.sin(x), ())
    loop = loop_of(lambda h, x: (jnp.tanh(h @ W[:, :H]) * x, ()), STATE)
    assert any(k.stacked is not None for k in derivative(loop, free=True).kept)
    assert not traced(step, STATE, STATE).parts().pays


def test_a_carry_is_read_a_step_later():
    kept = linearize.Kept(None, emitted=0, carry=0)
    first, after = jnp.array([9.0]), jnp.arange(3.0)[:, None]
    assert kept.at_all_steps([first], [], [after], False)[:, 0].tolist() == [9, 0, 1]
    assert kept.at_all_steps([first], [], [after], True)[:, 0].tolist() == [1, 2, 9]
