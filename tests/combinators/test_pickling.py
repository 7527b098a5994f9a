"""Cells are values: they survive pickle, compare by what they are, and serve as keys."""

import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxrnn as rnn
from tests.zoo import CELLS, D, H, sequence

# Initialisers, masks and functions of these cells were made inside a function: pickle has no name for them.
NAMELESS = {"flax_lstm", "flax_gru", "masked", "resettable", "running_mean", "graph"}


def branching():
    return rnn.graph(
        {"h": (rnn.stack(rnn.layer(nn.Dense(H)), rnn.lift(jnp.tanh)), ["x", rnn.prev("h")]), "y": (jnp.sin, "h")},
        output="y",
    )


NETS = {name: lambda name=name: CELLS[name](jnp.dtype("float32")) for name in CELLS if name not in NAMELESS} | {
    "issue": lambda: rnn.stack(rnn.lstm(8), rnn.layer(nn.Dense(3))),
    "flax": lambda: rnn.recurrent(nn.OptimizedLSTMCell(H)),
    "modules in modules": lambda: rnn.layer(nn.Sequential([nn.Dense(H), nn.relu, nn.LayerNorm(use_bias=False)])),
    "options": lambda: rnn.layer(nn.Dropout(0.5), deterministic=False),
    "zoned": lambda: rnn.zoneout(rnn.lstm(H), rnn.LSTMState(h=0.5, c=0.25)),
    "relu": lambda: rnn.residual(rnn.elman(D, activation=jax.nn.relu)),
    "branching": branching,
}


@pytest.mark.parametrize("name", NETS)
def test_a_pickled_net_computes_the_same(name):
    net, x = NETS[name](), sequence(0, (2,), jnp.float32)
    again = pickle.loads(pickle.dumps(net))
    params = net.init(jax.random.key(0), x)
    chex.assert_trees_all_equal(again.init(jax.random.key(0), x), params)
    key = jax.random.key(1)

    def once(net):
        begun = net.begin(params, key)
        return net.step(begun, net.initial_state(begun, (2,)), x, key=key)

    chex.assert_trees_all_equal(once(again), once(net))


@pytest.mark.parametrize("name", [name for name in NETS if name != "branching"])
def test_cells_that_are_stated_alike_are_the_same(name):
    net, again = NETS[name](), NETS[name]()
    assert net == again and not net != again and hash(net) == hash(again)
    assert pickle.loads(pickle.dumps(net)) == net


def test_cells_that_differ_in_anything_are_different():
    nets = [
        rnn.lstm(3),
        rnn.lstm(4),
        rnn.gru(3),
        rnn.gru(3, reset="before"),
        rnn.gru(3, learn_initial_state=True),
        rnn.stack(rnn.gru(3)),
        rnn.residual(rnn.gru(3)),
        rnn.lift(jnp.tanh),
        rnn.lift(jnp.sin),
        rnn.layer(nn.Dense(3)),
        rnn.layer(nn.Dense(3, use_bias=False)),
        rnn.dropout(rnn.gru(3), 0.1),
        rnn.dropout(rnn.gru(3), 0.2),
        rnn.masked(rnn.gru(3)),
        rnn.resettable(rnn.gru(3)),
        branching(),
        branching(),
        tuple(rnn.lstm(3)),
    ]
    assert all((a == b) == (a is b) and (a != b) == (a is not b) for a in nets for b in nets)
    assert len(set(nets)) == len(nets)


def test_a_cell_is_a_static_argument():
    """jit traces a step once for all cells that are stated alike."""
    x, params = jnp.ones((2, D)), rnn.gru(H).init(jax.random.key(0), jnp.ones(D))
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def step(cell, params, x):
        return cell.step(params, cell.initial_state(params, (2,)), x)

    run = jax.jit(step, static_argnums=0)
    chex.assert_trees_all_equal(run(rnn.gru(H), params, x), run(rnn.gru(H), params, x))


def test_a_net_with_its_loss_is_pickled_by_name():
    net = rnn.with_loss(rnn.gru(3), optax.softmax_cross_entropy_with_integer_labels)
    assert pickle.loads(pickle.dumps(net)) == net


def test_a_lambda_is_named_in_the_complaint():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(rnn.stack(rnn.lstm(3), rnn.lift(lambda x: x)))
