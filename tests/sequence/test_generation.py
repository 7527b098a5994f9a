"""generate and its samplers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn

V = 6


def language_model():
    net = rnn.stack(rnn.layer(nn.Embed(V, 4)), rnn.gru(5), rnn.layer(nn.Dense(V)))
    return net, net.init(jax.random.key(0), jnp.zeros((), jnp.int32))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_generate_equals_a_python_loop(batch):
    net, params = language_model()
    x, state = jnp.zeros(batch, jnp.int32), net.initial_state(params, batch)
    sample, key = rnn.temperature(0.7), jax.random.key(3)
    end, got = jax.jit(lambda p, s, x: rnn.generate(net, p, s, x, 9, sample, key))(params, state, x)
    for k, token in zip(jax.random.split(key, 9), got, strict=True):
        state, logits = net.step(params, state, x)
        x = sample(k, logits)
        np.testing.assert_array_equal(x, token)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, state)


def test_greedy_needs_no_key_and_goes_on_where_it_stopped():
    net, params = language_model()
    x, state = jnp.int32(1), net.initial_state(params, ())
    _, whole = rnn.generate(net, params, state, x, 8, rnn.greedy())
    state, first = rnn.generate(net, params, state, x, 5, rnn.greedy())
    _, second = rnn.generate(net, params, state, first[-1], 3, rnn.greedy())
    assert whole.tolist() == [*first.tolist(), *second.tolist()]


def test_a_series_is_generated_by_its_own_outputs():
    doubling = rnn.lift(lambda x: 2 * x)
    _, xs = rnn.generate(doubling, (), (), jnp.float32(1), 4, lambda key, y: y)
    assert xs.tolist() == [2, 4, 8, 16]


def test_tokens_of_any_integer_type():
    net, params = language_model()
    _, xs = rnn.generate(net, params, net.initial_state(params, ()), np.uint8(3), 4, rnn.greedy())
    _, same = rnn.generate(net, params, net.initial_state(params, ()), np.int32(3), 4, rnn.greedy())
    assert xs.dtype == jnp.uint8 and xs.tolist() == same.tolist()


def test_no_steps():
    net, params = language_model()
    _, xs = rnn.generate(net, params, net.initial_state(params, (2,)), jnp.zeros(2, jnp.int32), 0, rnn.greedy())
    assert xs.shape == (0, 2)


def test_samplers_draw_from_the_right_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    draws = lambda sample: np.bincount(
        jax.vmap(sample, (0, None))(jax.random.split(jax.random.key(0), 20000), logits), minlength=4
    )
    share = lambda sample: draws(sample) / 20000
    np.testing.assert_allclose(share(rnn.temperature(1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.02)
    squared = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(share(rnn.temperature(0.5)), squared / squared.sum(), atol=0.02)
    np.testing.assert_allclose(share(rnn.top_k(2)), [0.625, 0.375, 0, 0], atol=0.02)
    assert rnn.greedy()(None, logits) == 0 == rnn.top_k(1)(jax.random.key(0), logits)


def go_on(state):
    """From any state, with an LSTM of 4 units and a batch of 2."""
    cell = rnn.lstm(4)
    params = cell.init(jax.random.key(0), jnp.zeros(4))
    return rnn.generate(cell, params, state, jnp.zeros((2, 4)), 3, lambda key, y: y)


def growing():
    return rnn.Cell(lambda key, x: (), jnp.zeros, lambda p, s, x, key=None: (s.astype(jnp.int32), x))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: rnn.temperature(0.0), r"temperature must be a positive number, got 0.0; use greedy\(\)"),
        (lambda: rnn.top_k(0), r"top_k: k must be a whole number"),
        (lambda: rnn.top_k(9)(jax.random.key(0), jnp.zeros(4)), r"k = 9 but there are only 4 classes"),
        (lambda: rnn.temperature()(None, jnp.zeros(4)), r"drawing needs a key"),
        (lambda: rnn.generate(rnn.lift(jnp.tanh), (), (), jnp.zeros(2), -1, rnn.greedy()), r"steps must be"),
        (lambda: rnn.generate(rnn.lift(jnp.tanh), (), (), jnp.zeros(2), 3, "greedy"), r"sample must be a sampler"),
        (
            lambda: rnn.generate(rnn.lift(jnp.tanh), (), (), jnp.zeros(2), 3, rnn.greedy()),
            r"sample\(y\) should be float32\[2\], got int32\[\]; each sample is the next step's x",
        ),
        (
            lambda: go_on(rnn.LSTMState(h=jnp.zeros((2, 4)), c=jnp.zeros((2, 5)))),
            r"generate: state\.c should be float32\[2,4\], got float32\[2,5\]; start from cell.initial_state",
        ),
        (lambda: go_on(jnp.zeros((2, 4))), r"generate: state should have the structure .*LSTMState.*; start from"),
        (
            lambda: go_on(rnn.LSTMState(h=jnp.zeros((2, 4), jnp.bfloat16), c=jnp.zeros((2, 4)))),
            r"generate: state\.h should be float32\[2,4\], got bfloat16\[2,4\]; start from",
        ),
        (
            lambda: rnn.generate(growing(), (), jnp.zeros(2), jnp.zeros(2), 3, rnn.greedy()),
            r"generate: state should be float32\[2\], got int32\[2\]; start from a state of that type",
        ),
    ],
)
def test_bad_input(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        call()
