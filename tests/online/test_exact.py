"""Real-time recurrent learning gives BPTT's gradient: every cell, every cut into windows, whatever feeds the state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxrnn as rnn
from jaxrnn.online import rtrl, snap
from tests.choice import slow_but_for
from tests.online.problems import F64, bptt, by_windows, data, error, first, lossy, problem
from tests.zoo import CELLS

KEYED = ("dropout_step", "dropout_sequence", "zoneout", "scheduled_sampling", "graph")
FEW = ("lstm_all", "running_mean", "mlstm")


def assert_exact(name, cell, *methods, cuts=()):
    net, params, xs = problem(cell)
    key = jax.random.key(7) if name in KEYED else None
    expected = bptt(net, params, xs, key=key)
    for method in methods:
        found, _ = by_windows(net, method, params, xs, cuts, key=key)
        assert error(found, expected) < 1e-12, method


LEARNED = [name for name in CELLS if name != "lift"]


@pytest.mark.parametrize("name", slow_but_for(FEW, LEARNED))
def test_every_cell(name, x64):
    assert_exact(name, CELLS[name](jnp.float64), rtrl(block=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_every_cell_in_blocks_and_by_the_whole_pattern(name, x64):
    assert_exact(name, CELLS[name](jnp.float64), rtrl(), snap(99), cuts=(3,))


@pytest.mark.parametrize(
    "cuts", [pytest.param((), marks=pytest.mark.slow), (1, 2, 3, 4, 5), pytest.param((1, 2), marks=pytest.mark.slow)]
)
def test_any_windows_add_up(cuts, x64):
    assert_exact("gru", rnn.gru(4, learn_initial_state=True, **F64), rtrl(), cuts=cuts)


@pytest.mark.parametrize("batch", [(4,), *(pytest.param(b, marks=pytest.mark.slow) for b in ((), (1,), (2, 2)))])
def test_any_batch(batch, x64):
    """Four features and four units too: a batch as large as a layer must not be mistaken for one."""
    cell = rnn.stack(rnn.gru(4, learn_initial_state=True, **F64), rnn.elman(4, **F64))
    net, params, xs = problem(cell, T=4, batch=batch, features=4)
    expected = bptt(net, params, xs)
    for method in (rtrl(block=False), rtrl(block=True)):
        found, _ = by_windows(net, method, params, xs, (2,))
        assert error(found, expected) < 1e-12


def test_resets_and_lengths(x64):
    inputs, targets = data(T=8, batch=(3,))
    cell = rnn.gru(4, learn_initial_state=True, **F64)
    net = rnn.resettable(lossy(cell))
    params = net.init(jax.random.key(2), (first((inputs, targets)), None))
    begins = jnp.zeros((8, 3), bool).at[0].set(True).at[5, 1].set(True).at[2, 0].set(True)
    xs = ((inputs, targets), begins)
    found, _ = by_windows(net, rtrl(), params, xs, (4,))
    assert error(found, bptt(net, params, xs)) < 1e-12
    masked = rnn.masked(lossy(cell))
    live = np.arange(8)[:, None] < np.array([[8, 3, 0]])
    padded = ((np.where(live[..., None], inputs, np.nan), targets), live)
    found, carry = by_windows(masked, rtrl(), params, padded, (4,))
    expected = bptt(masked, params, padded)
    assert error(found, expected) < 1e-12 and jnp.isfinite(carry.memory[0]).all()


def test_an_initial_state_that_is_given_or_learned(x64):
    cell = rnn.gru(4, learn_initial_state=True, **F64)
    net, params, xs = problem(cell)
    state = jax.random.normal(jax.random.key(4), (2, 4))
    found, carry = by_windows(net, rtrl(), params, xs, (3,), state=state)
    assert error(found, bptt(net, params, xs, state=state)) < 1e-12
    assert not jnp.any(found["initial_state"]) and carry.fresh is None
    found, carry = by_windows(net, rtrl(), params, xs, (3,))
    assert jnp.any(found["initial_state"]) and not carry.fresh


def complex_cell(size):
    """A linear recurrence of complex units, as in LRU, with complex parameters too."""

    def init(key, x):
        k = jax.random.split(key, 4)
        draw = lambda n, *shape: jax.random.normal(k[n], shape, x.dtype) / 2
        mixed = jax.lax.complex(draw(0, x.shape[-1], size), draw(1, x.shape[-1], size))
        out = jax.lax.complex(mixed.real.T, mixed.imag.T)
        return {"B": mixed, "nu": draw(2, size), "angle": draw(3, size), "C": out}

    def step(params, h, x, *, key=None):
        decay = jnp.exp(jax.lax.complex(-jnp.exp(params["nu"]), params["angle"]))
        h = jnp.broadcast_to(decay, h.shape) * h + x.astype(h.dtype) @ params["B"]
        return h, (h @ params["C"]).real

    return rnn.Cell(init, lambda p, batch: jnp.zeros((*batch, size), p["B"].dtype), step)


def test_complex_states_and_parameters(x64):
    net, params, xs = problem(complex_cell(3))
    expected = bptt(net, params, xs)
    for method in (rtrl(block=False), rtrl(block=True)):
        found, carry = by_windows(net, method, params, xs, (3,))
        assert error(found, expected) < 1e-12
    assert [m.shape[1] for m in carry.memory] == [2] * len(carry.memory)  # the two parts of its own unit


def strange(size):
    """Weight norm, layer norm and one matrix used twice; a convolution; a table; products written the other way."""
    normal = nn.initializers.normal(0.5)

    def init(key, x):
        k = jax.random.split(key, 5)
        shapes = {"W": (size, size), "U": (size, x.shape[-1]), "table": (3, size), "kernel": (3, 1, 1), "gain": ()}
        return {n: normal(key, shape, x.dtype) for (n, shape), key in zip(shapes.items(), k, strict=True)}

    def step(params, h, x, *, key=None):
        w = params["W"] / jnp.linalg.norm(params["W"], axis=0, keepdims=True)
        a = h @ w + (params["U"] @ x.T).T + params["table"][(x[..., 0] > 0).astype(int)]
        a = (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + 1e-3)
        mixed = jax.lax.conv_general_dilated(a[:, None], params["kernel"].T, (1,), "SAME")[:, 0]
        h = 0.5 * h + jnp.tanh(mixed * params["gain"] + (a * h) @ w)
        return h, h

    return rnn.Cell(init, lambda p, batch: jnp.zeros((*batch, size), p["W"].dtype), step)


def test_a_step_that_nobody_foresaw(x64):
    net, params, xs = problem(strange(4))
    found, _ = by_windows(net, rtrl(), params, xs, (3,))
    assert error(found, bptt(net, params, xs)) < 1e-12


OPERATIONS = {
    "W": lambda h, x, p: jnp.tanh(h @ p["W"] + x @ p["U"]),
    "gate": lambda h, x, p: jax.nn.sigmoid(h @ p["W"]) * h + x @ p["U"],
    "own": lambda h, x, p: h * jnp.broadcast_to(jnp.tanh(p["a"]), h.shape) + jnp.roll(h, 1, -1) / 2,
    "normed": lambda h, x, p: h / jnp.sqrt(1 + jnp.sum(h**2, -1, keepdims=True)) @ jnp.tanh(p["W"]),
    "side": lambda h, x, p: jnp.concatenate([x, h], -1) @ jnp.concatenate([p["U"], p["W"]]),
    "both": lambda h, x, p: jnp.where(x[..., :1] > 0, h @ p["W"].T, h * h - 1) / 3,
    "softmax": lambda h, x, p: jax.nn.softmax(h + jnp.broadcast_to(p["a"], h.shape)),
    "scan": lambda h, x, p: jnp.cumsum(h, -1) / 4 + x @ p["U"],
}


@pytest.mark.slow
@given(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=4), st.integers(1, 2))
def test_random_steps(names, cut):
    with jax.enable_x64(True):
        size = 3

        def step(params, h, x, *, key=None):
            for name, p in zip(names, params, strict=True):
                h = OPERATIONS[name](h, x, p)
            return h, h

        def init(key, x):
            draw = lambda k, *shape: jax.random.normal(k, shape) / 2
            keys = jax.random.split(key, (len(names), 3))
            return [{"W": draw(a, size, size), "U": draw(b, 3, size), "a": draw(c, size)} for a, b, c in keys]

        cell = rnn.Cell(init, lambda p, batch: jnp.full((*batch, size), 0.3), step)
        net, params, xs = problem(cell, T=4, batch=(2,))
        expected = bptt(net, params, xs)
        for method in (rtrl(block=False), rtrl(block=True), snap(99)):
            found, _ = by_windows(net, method, params, xs, (cut,))
            assert error(found, expected) < 1e-12
