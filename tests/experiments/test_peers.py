"""Other people's layers with our weights compute the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.rnn import lstm_ref, unpack_lstm_weights

import jaxrnn as rnn
from experiments import harness, peers

T, B, D, H = 5, 2, 3, 6


@functools.cache
def problem(cell):
    """(our layer, its parameters, none of them zero, and inputs)"""
    layer, xs = harness.CELLS[cell](H), jax.random.normal(jax.random.key(0), (T, B, D))
    moved = lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape)
    return layer, jax.jit(lambda x: jax.tree.map(moved, layer.init(jax.random.key(1), x)))(xs[0]), xs


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_peers_compute_the_same_function(cell, name):
    layer, params, xs = problem(cell)
    with jax.numpy_rank_promotion("allow"):  # not everyone is as strict with ranks as these tests
        try:
            theirs, forward = peers.PEERS[name](cell, params)
        except peers.Absent as why:
            pytest.skip(str(why))
        got, expected = jax.jit(lambda p, q, xs: (forward(p, xs), rnn.unroll(layer, q, xs)[1]))(theirs, params, xs)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_our_lstm_in_cudnn_s_weights():
    """JAX's own reference of cuDNN's LSTM, which runs anywhere, has the same outputs and gradients with our weights."""
    layer, params, xs = problem("lstm")
    weights = jax.random.normal(jax.random.key(3), (T, B, H))

    def theirs(params, xs):
        unpacked = unpack_lstm_weights(peers.cudnn_weights(params), D, H, 1, False)
        zero, lengths = jnp.zeros((1, B, H)), jnp.full((B,), T, jnp.int32)
        ys = lstm_ref(xs.swapaxes(0, 1), zero, zero, *unpacked, lengths, D, H, 1, 0.0, False)[0]
        return jnp.sum(ys.swapaxes(0, 1) * weights), ys.swapaxes(0, 1)

    def ours(params, xs):
        ys = rnn.unroll(layer, params, xs)[1]
        return jnp.sum(ys * weights), ys

    with jax.numpy_rank_promotion("allow"):
        both = jax.jit(lambda *given: [jax.grad(f, argnums=(0, 1), has_aux=True)(*given) for f in (theirs, ours)])
        got, expected = both(params, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, expected)


def test_cudnn_says_why_it_is_absent():
    with pytest.raises(peers.Absent, match="needs a GPU"):
        peers.cudnn("gru", problem("gru")[1])
