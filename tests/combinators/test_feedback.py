"""Scheduled sampling: a net that is fed its own predictions now and then."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from jaxrnn.combinators import scheduled_sampling

V, T, B = 5, 12, 3
NET = rnn.stack(rnn.layer(nn.Embed(V, 4)), rnn.gru(6), rnn.layer(nn.Dense(V)))
XS = jax.random.randint(jax.random.key(0), (T, B), 0, V)
PARAMS = NET.init(jax.random.key(1), XS[0])
SAMPLED = {rate: scheduled_sampling(NET, rate, sample=rnn.greedy()) for rate in (0.0, 0.5, 1.0)}


def inputs_read(cell, key, scan=jax.lax.scan, **options):
    """Which inputs the net read: its own outputs give them away, as a plain loop over the recorded ones shows."""
    both = NET._replace(
        step=lambda p, s, x, key=None: (lambda s_out, y: (s_out, (x, y)))(*NET.step(p, s, x, key=key)),
    )
    around = scheduled_sampling(both, cell, sample=lambda key, y: rnn.greedy()(key, y[1]))
    return rnn.unroll(around, PARAMS, XS, key=key, scan=scan, **options)[1]


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_each_step_reads_the_input_or_the_last_prediction(rate):
    xs, ys = inputs_read(rate, jax.random.key(3))
    predicted = jnp.argmax(ys, axis=-1)
    assert (xs[0] == XS[0]).all()
    own, given = xs[1:] == predicted[:-1], xs[1:] == XS[1:]
    assert (own | given).all()
    chosen = ~np.asarray(given)
    differ = np.asarray(predicted[:-1] != XS[1:])
    share = chosen[differ].mean()  # where the two are the same nobody can tell
    assert share == rate if rate in (0.0, 1.0) else 0.2 < share < 0.8
    state = NET.initial_state(PARAMS, (B,))
    for t in range(T):
        state, y = NET.step(PARAMS, state, xs[t])
        np.testing.assert_allclose(ys[t], y, rtol=1e-5, atol=1e-6)


def test_the_share_of_own_predictions_is_the_rate():
    """With predictions that are never the input: one net that always says class 4, inputs that never are."""
    always = rnn.lift(lambda x: (x, jnp.zeros((*x.shape, V)).at[..., 4].set(1.0)))
    cell = scheduled_sampling(always, 0.3, sample=lambda key, y: rnn.greedy()(key, y[1]))
    (xs, _) = rnn.unroll(cell, (), jnp.zeros((200, 50), jnp.int32), key=jax.random.key(0))[1]
    assert abs(float((xs[1:] == 4).mean()) - 0.3) < 4 * np.sqrt(0.21 / (199 * 50))


def test_without_a_key_it_is_the_net_itself():
    for key, rate in ((None, 1.0), (jax.random.key(0), 0.0)):
        got = rnn.unroll(SAMPLED[rate], PARAMS, XS, key=key)[1]
        np.testing.assert_allclose(got, rnn.unroll(NET, PARAMS, XS)[1], rtol=1e-5, atol=1e-6)


def test_at_rate_one_it_generates():
    got = jnp.argmax(rnn.unroll(SAMPLED[1.0], PARAMS, XS, key=jax.random.key(0))[1], axis=-1)
    _, expected = rnn.generate(NET, PARAMS, NET.initial_state(PARAMS, (B,)), XS[0], T, sample=rnn.greedy())
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("scan", [rnn.scan, rnn.checkpointed(5)])
def test_every_scan_and_a_new_document_begins_with_its_own_input(scan):
    resets = jnp.zeros((T, B), bool).at[6].set(True)
    options = {"resets": resets, "lengths": jnp.array([T, 9, 4])}
    xs, ys = inputs_read(1.0, jax.random.key(3), scan=scan, **options)
    assert (xs[6, :2] == XS[6, :2]).all() and (xs[0] == XS[0]).all()
    expected = inputs_read(1.0, jax.random.key(3), scan=rnn.python_loop(), **options)
    np.testing.assert_array_equal(xs, expected[0])
    np.testing.assert_allclose(ys, expected[1], rtol=1e-5, atol=1e-6)


def test_the_rate_depends_on_the_update():
    """As in `fit`: a traced rate, from a schedule of the number that the batch brings along; its gradient is finite."""
    rates = optax.linear_schedule(0.0, 1.0, 10)

    @jax.jit
    def loss(params, update):
        cell = scheduled_sampling(NET, rates(update), sample=rnn.temperature())
        return rnn.cross_entropy(rnn.unroll(cell, params, XS, key=jax.random.key(5))[1], XS)

    at_start, later = loss(PARAMS, jnp.int32(0)), loss(PARAMS, jnp.int32(10))
    assert at_start == pytest.approx(float(rnn.cross_entropy(rnn.unroll(NET, PARAMS, XS)[1], XS)), rel=1e-5) != later
    grads = jax.grad(loss)(PARAMS, jnp.int32(5))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_a_prediction_that_is_an_input_of_numbers():
    """Each step reads what the last one said: half of what it read, so powers of a half of the first input."""
    cell = scheduled_sampling(rnn.lift(lambda x: x / 2), 1.0, sample=lambda key, y: y, like=jnp.zeros(2))
    xs = jnp.ones((4, B, 2))
    ys = rnn.unroll(cell, (), xs, key=jax.random.key(0))[1]
    np.testing.assert_allclose(ys[:, 0, 0], [0.5, 0.25, 0.125, 0.0625])


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: scheduled_sampling(NET, 1.5, sample=rnn.greedy()), r"rate must be a number from 0 to 1, got 1.5"),
        (lambda: scheduled_sampling(NET, 0.5, sample=None), r"sample must be a function \(key, y\) -> next input"),
        (
            lambda: scheduled_sampling(NET, 0.5, sample=rnn.greedy(), like=0.0),
            r"x should be float32\[3\], got int32\[3\]; give `like` the type of one input",
        ),
        (
            lambda: scheduled_sampling(NET, 0.5, sample=lambda key, y: y),
            r"sample's result should be int32\[3\], got float32\[3,5\]; give `like` the type .* `sample` return such",
        ),
    ],
)
def test_bad_schedules_are_refused(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        cell = make()
        cell.step(PARAMS, cell.initial_state(PARAMS, (B,)), XS[0], key=jax.random.key(0))
