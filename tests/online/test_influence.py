"""Which rows of the state are remembered, where weights enter, and what is seen to depend on what: all of it exact."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn.engine.dependence import Seen, reached_from
from jaxrnn.engine.evaluate import trace
from jaxrnn.online import eprop, layerwise, online, rtrl, snap
from tests.online.problems import data, first, lossy, problem

H = 4
F32 = {"dtype": jnp.float32}
TANH = {"activation": jnp.tanh}


def remembered(cell, method, batch=(3,)):
    """Rows kept of each tap, and for how many weights."""
    net, xs = lossy(cell), data(dtype=jnp.float32, batch=batch)
    params = jax.eval_shape(lambda: net.init(jax.random.key(2), first(xs)))
    carry = jax.eval_shape(lambda p: online(net, method).init(p, first(xs)), params)
    shapes = [m.shape[len(batch) :] for m in carry.memory]
    return [rows for rows, _, _ in shapes], sum(units * depth for _, units, depth in shapes)


@pytest.mark.parametrize(
    ("cell", "method", "rows"),
    [
        (rnn.ind_rnn(H, **TANH), rtrl(), 1),
        (rnn.cells.min_gru(H), rtrl(), 1),
        (rnn.cells.rg_lru(3), rtrl(), 1),
        (rnn.cells.lru(3, states=H), rtrl(), 2),  # of a complex number
        (rnn.gru(H), rtrl(), H),
        (rnn.gru(H), snap(1), 1),
        (rnn.lstm(H), rtrl(), 2 * H),
        (rnn.lstm(H), snap(1), 2),
        (rnn.lstm(H), eprop(), 1),
    ],
    ids=["ind_rnn", "min_gru", "rg_lru", "lru", "gru", "gru snap", "lstm", "lstm snap", "lstm eprop"],
)
def test_rows(cell, method, rows):
    kept, weights = remembered(cell, method)
    assert set(kept) == {rows}
    params = jax.eval_shape(lambda: cell.init(jax.random.key(2), jnp.zeros((3, 3))))
    if isinstance(method, rtrl):
        assert weights == sum(leaf.size for name, leaf in params.items() if name not in "Cd")  # an LRU's readout


def test_a_stack_keeps_what_the_layers_above_become_and_layerwise_does_not():
    cell = rnn.stack(rnn.ind_rnn(H, **TANH), rnn.ind_rnn(H, **TANH))
    lower, upper = [2 * H] * 2, [1] * 2  # more than half of all rows are held as all of them
    assert remembered(cell, rtrl())[0] == [*lower, *upper]
    assert remembered(cell, layerwise())[0] == [1] * 4


@pytest.mark.parametrize("batch", [(), (1,), (2,), (5,), (2, 3)])
def test_the_batch_changes_nothing(batch):
    assert set(remembered(rnn.stack(rnn.lstm(H), rnn.layer(nn.Dense(2))), snap(1), batch)[0]) == {2}


def test_a_readout_is_not_remembered():
    """What does not reach the state: the readout's weights, and a parameter that only the loss reads."""
    alone, weights = remembered(rnn.gru(H), rtrl())
    assert remembered(rnn.stack(rnn.gru(H), rnn.layer(nn.Dense(9))), rtrl()) == (alone, weights)


def test_biases_are_repeated_however_they_are_written():
    """As Flax writes them, as NumPy would repeat them, and as scalars: never a tap that the examples share."""

    def step(params, h, x, *, key=None):
        with jax.numpy_rank_promotion("allow"):
            h = jnp.tanh(h @ params["W"] + params["b"]) * params["gain"] - x * params["row"][None]
        return h, h

    shapes = {"W": (3, 3), "b": (3,), "gain": (), "row": (3,)}
    cell = rnn.Cell(
        lambda key, x: {n: jax.random.normal(key, s, x.dtype) for n, s in shapes.items()},
        lambda p, batch: jnp.zeros((*batch, 3), p["W"].dtype),
        step,
    )
    for each in (cell, rnn.stack(rnn.layer(nn.Dense(3)), rnn.ind_rnn(3, **TANH)), rnn.recurrent(nn.GRUCell(3))):
        net, params, xs = problem(each, dtype=jnp.float32)
        look = online(net, rtrl()).init.__self__
        found = look.step(params, net.initial_state(params, (2,)), first(xs), None, (2,), None, None)
        assert not any(tap.is_shared for tap in found.structure.core.taps)


def test_an_embedding_is_a_product():
    cell = rnn.with_loss(rnn.stack(rnn.layer(nn.Embed(50, 3)), rnn.ind_rnn(3, **TANH)), lambda y, t: jnp.sum(y, -1))
    x = (jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32))
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), x))
    carry = jax.eval_shape(lambda p: online(cell, rtrl()).init(p, x), params)
    assert (2, 3, 3, 50) in [m.shape for m in carry.memory]


# --- what depends on what, against derivatives at a point in general position -------------------------------------

CASES = {
    "product": lambda a: jnp.tanh(a @ (jnp.arange(12.0).reshape(4, 3) - 5.5) / 9),
    "halves": lambda a: jnp.concatenate([a[..., 2:] * 2, jnp.flip(a[..., :2], -1)], -1),
    "sums": lambda a: a - 2 * jnp.sum(a[..., :2], -1, keepdims=True),
    "chosen": lambda a: jnp.where(a[..., :1] > 0, a[..., 1:], a[..., :3] ** 2),
    "added up": lambda a: jnp.cumsum(a, -1),
    "held": lambda a: jax.lax.stop_gradient(a) * a[..., ::-1],
    "reshaped": lambda a: jnp.max(a.reshape(*a.shape[:-1], 2, 2).swapaxes(-1, -2), -1),
    "softmax": lambda a: jax.nn.softmax(a[..., 1:]),
    "branches": lambda a: jax.lax.cond(True, lambda b: b * 2, lambda b: b[..., ::-1], a),
    "sorted": lambda a: jnp.sort(a, -1),
    "pairs": lambda a: jnp.einsum("...i,...j->...ij", a[..., :2], a[..., 2:]),
    "attention": lambda a: jnp.einsum("bij,bj->bi", a.reshape(2, 2, 2), a[:, 2:]),
}
EXACT = set(CASES) - {"branches", "sorted"}


@pytest.mark.parametrize("name", CASES)
def test_dependence_covers_every_derivative(name):
    fn, a = CASES[name], jax.random.normal(jax.random.key(1), (2, 4))
    flat = trace(lambda a: [fn(a)], a)
    seeds = {flat.inputs[0]: np.eye(8, dtype=bool).reshape(8, 2, 4)}
    found = reached_from(flat.equations, seeds, Seen((2,)))[flat.outputs[0]]
    derivative = (
        np.moveaxis(np.asarray(jax.jit(jax.jacobian(fn))(a)), (-2, -1), (0, 1)).reshape(8, *found.shape[1:]) != 0
    )
    assert not (derivative & ~found).any(), "something that depends is not seen to"
    if name in EXACT - {"chosen", "added up", "reshaped"}:
        np.testing.assert_array_equal(found, derivative)
    assert not found[:4, 1].any() and not found[4:, 0].any(), "examples are kept apart"


def test_a_batch_whose_examples_meet_is_refused():
    def step(params, h, x, *, key=None):
        h = jnp.tanh(params["a"] * (h - jnp.mean(h, 0, keepdims=True)) + x)
        return h, h

    cell = rnn.Cell(lambda key, x: {"a": jnp.ones(())}, lambda p, batch: jnp.zeros((*batch, 3)), step)
    net, params, xs = problem(cell, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"one example of the batch .* depends on another .* each by itself"):
        online(net, rtrl()).init(params, first(xs))
