"""What the methods cost, exactly: operations per step in forward steps, and bytes carried in bytes of the weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxrnn as rnn
from jaxrnn import trees
from jaxrnn.online import eprop, online, rtrl, snap, uoro

TANH = {"activation": jnp.tanh}


def priced(cell, method, window=1, features=8):
    """(forward steps per step, bytes remembered per byte of the recurrent layer's weights)"""
    net = rnn.with_loss(rnn.stack(cell, rnn.layer(nn.Dense(4))), optax.softmax_cross_entropy_with_integer_labels)
    x = (jax.ShapeDtypeStruct((1, features), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), x))
    state = jax.eval_shape(lambda p: net.initial_state(p, (1,)), params)
    forward = rnn.analysis.flops(lambda p, s, x: net.step(p, s, x), params, state, x)
    learner = online(net, method)
    carry = jax.eval_shape(lambda p, x: learner.init(p, x, key=jax.random.key(0)), params, x)
    xs = trees.all_steps(x, window)
    operations = rnn.analysis.flops(learner.update, params, carry, xs) / window / forward
    return operations, trees.nbytes(carry.memory) / trees.nbytes(params[0])


def test_exact_learning_of_a_dense_cell():
    for size in (16, 32):
        operations, held = priced(rnn.gru(size), rtrl())
        assert operations <= 1.05 * size**2 and held == size
        assert priced(rnn.gru(size), rtrl(), window=size)[0] <= 3 * size
    assert priced(rnn.lstm(16), rtrl())[0] <= 1.05 * (2 * 16) ** 2


@pytest.mark.parametrize(
    ("make", "method", "most", "held"),
    [
        (rnn.gru, snap(1), 8, 1.0),
        (rnn.gru, eprop(), 8, 1.0),
        pytest.param(rnn.lstm, eprop(), 8, 1.0, marks=pytest.mark.slow),
        (rnn.lstm, snap(1), 15, 2.0),  # two rows, and so four products of rows
        (lambda size: rnn.ind_rnn(size, **TANH), rtrl(), 8, 1.0),
        (rnn.gru, uoro(), 12, 1.0),
    ],
    ids=["gru snap", "gru eprop", "lstm eprop", "lstm snap", "ind_rnn rtrl", "gru uoro"],
)
def test_one_row_costs_the_same_at_any_size(make, method, most, held):
    small, large = priced(make(32), method), priced(make(128), method)
    assert small[0] <= most and large[0] <= most and large[0] <= 1.1 * small[0]
    assert held <= small[1] <= held * 1.02


def test_bytes_do_not_depend_on_how_long_it_takes():
    """The compiled update of 1,000 steps takes no more scratch memory than that of 10, the inputs apart."""
    net = rnn.with_loss(rnn.gru(8), lambda y, t: jnp.sum((y - t) ** 2, -1))
    x = (jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((2, 8), jnp.float32))
    learner, params = online(net, snap(1)), jax.eval_shape(lambda: net.init(jax.random.key(0), x))
    carry = jax.eval_shape(lambda p: learner.init(p, x), params)
    ten, thousand = (
        rnn.analysis.temp_bytes(learner.update, params, carry, trees.all_steps(x, steps)) for steps in (10, 1000)
    )
    assert thousand <= ten + 64
