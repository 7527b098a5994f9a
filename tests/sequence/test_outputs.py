"""What unroll makes of the outputs: all, their sum, none."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxrnn as rnn
from tests.reference import assert_close
from tests.zoo import D, H, sequence

WORDS = 500


def language_model():
    return rnn.with_loss(
        rnn.stack(rnn.layer(nn.Embed(WORDS, 8)), rnn.gru(16), rnn.layer(nn.Dense(WORDS))),
        optax.softmax_cross_entropy_with_integer_labels,
    )


def test_the_sum_leaves_no_logits_behind():
    steps = 400
    net = language_model()
    tokens = jax.random.randint(jax.random.key(0), (steps, 4), 0, WORDS)
    params = net.init(jax.random.key(1), (tokens[0], tokens[0]))
    lengths = jnp.array([400, 3, 0, 77])

    def total(params, scan):
        _, nats = rnn.unroll(net, params, (tokens, tokens), lengths=lengths, scan=scan, outputs="sum")
        assert nats.shape == (4,)
        return jnp.sum(nats)

    def all_of_them(params):
        return jnp.sum(rnn.unroll(net, params, (tokens, tokens), lengths=lengths, scan=lax.scan)[1])

    expected = jax.jit(jax.value_and_grad(all_of_them))(params)
    for scan in (rnn.scan, lax.scan, rnn.checkpointed(20, inner=rnn.scan), rnn.revolve(3, 10)):
        got = jax.jit(jax.value_and_grad(total), static_argnums=1)(params, scan)
        assert_close(got, expected, 1e-4)
    streamed = rnn.analysis.temp_bytes(jax.grad(lambda p: total(p, rnn.checkpointed(20, inner=rnn.scan))), params)
    assert streamed < steps * 4 * WORDS * 4 / 4  # a quarter of all logits
    x = jax.ShapeDtypeStruct((4,), jnp.int32)
    told = rnn.analysis.explain(_adding(net), params, (x, x), (4,))
    assert told.totals == ("state[1]",) and not any(
        "dot_general" in op and "500" in op for op in told.loops[0].operations
    )


def _adding(net):
    """The net with its loss added up in the state, as a user may write it."""

    def step(params, state, x, *, key=None):
        inner, nats = net.step(params, state[0], x, key=key)
        return (inner, state[1] + nats), ()

    return rnn.Cell(net.init, lambda p, batch: (net.initial_state(p, batch), jnp.zeros(batch)), step)


def test_the_sum_stays_out_of_the_loop():
    """Under `jaxrnn.scan` neither the readout nor the losses are made step by step: the engine sees a running total."""
    net = language_model()
    tokens = jnp.zeros((6, 2), jnp.int32)
    params = net.init(jax.random.key(1), (tokens[0], tokens[0]))
    run = lambda p, scan: rnn.unroll(net, p, (tokens, tokens), outputs="sum", scan=scan)[1]
    in_loops = lambda scan: _largest_in_loops(jax.make_jaxpr(lambda p: run(p, scan))(params).jaxpr)
    assert in_loops(rnn.fissioned(segment=6)) < WORDS <= in_loops(lax.scan)


def _largest_in_loops(jaxpr, inside=False):
    """The largest last dimension of what is made in a loop."""
    largest = 0
    for e in jaxpr.eqns:
        largest = max([largest, *(v.aval.shape[-1] for v in e.outvars if inside and v.aval.shape)])
        within = inside or e.primitive.name == "scan"
        for value in jax.tree.leaves(list(e.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                largest = max(largest, _largest_in_loops(inner, within))
    return largest


def passing_through():
    return rnn.Cell(lambda key, x: (), lambda p, batch: jnp.zeros(batch), lambda p, s, x, key=None: (s + 1, x))


def test_sums_are_wide():
    """At least 32 bits: 300 twos in bfloat16 are 600, 300 times true is 300."""
    xs = {
        "small": jnp.full(300, 2, jnp.bfloat16), "half": jnp.full(300, 300, jnp.float16), "yes": jnp.ones(300, bool),
        "byte": jnp.full(300, 100, jnp.int8), "wide": jnp.ones(300), "count": jnp.ones(300, jnp.uint32),
    }  # fmt: skip
    state, total = rnn.unroll(passing_through(), (), xs, jnp.zeros(()), outputs="sum", scan=lax.scan)
    types = {"small": "float32", "half": "float32", "yes": "int32", "byte": "int32", "wide": "float32"}
    assert {name: str(a.dtype) for name, a in total.items()} == types | {"count": "uint32"}
    sums = {"small": 600, "half": 90_000, "yes": 300, "byte": 30_000, "wide": 300, "count": 300}
    assert {name: float(a) for name, a in total.items()} == sums and float(state) == 300


def test_what_cannot_be_added_up():
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(TypeError, match=r"unroll: y\['k'\] must be numbers to be added up, got key<fry>; leave it out"):
        rnn.unroll(passing_through(), (), {"k": keys}, jnp.zeros(()), outputs="sum")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 5])
def test_padding_adds_nothing_and_resets_restart_the_state_alone(steps, reverse):
    cell, xs = rnn.gru(H), sequence(0, (steps, 3), jnp.float32)
    params = cell.init(jax.random.key(0), jnp.zeros(D))
    given = {"lengths": jnp.array([min(steps, 5), 0, min(steps, 2)]), "reverse": reverse}
    given["resets"] = jnp.zeros((steps, 3), bool).at[1:2, 0].set(True)
    state, total = rnn.unroll(cell, params, xs.at[2:, 2].set(jnp.nan), outputs="sum", **given)
    expected, ys = rnn.unroll(cell, params, xs, **given)
    assert_close((state, total), (expected, jnp.sum(ys, axis=0)), 1e-6)
    assert not np.any(total[1])


def test_a_state_alone_needs_no_outputs():
    cell = rnn.stack(rnn.lstm(8), rnn.gru(8), rnn.layer(nn.Dense(3)))
    xs = sequence(0, (20, 4), jnp.float32)
    params = cell.init(jax.random.key(1), xs[0])
    lengths = jnp.full((4,), 7)
    state, nothing = rnn.unroll(cell, params, xs, outputs="none", lengths=lengths)
    assert nothing == ()
    assert_close(state, rnn.unroll(cell, params, xs, lengths=lengths)[0], 1e-6)


@pytest.mark.parametrize("outputs", ["no", True, False, None])
def test_any_other_outputs(outputs):
    with pytest.raises(ValueError, match="unroll: outputs must be one of 'all', 'sum', 'none', got"):
        rnn.unroll(passing_through(), (), jnp.ones(3), jnp.zeros(()), outputs=outputs)
