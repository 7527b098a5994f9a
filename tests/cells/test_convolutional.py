"""conv_lstm against Flax and numpy, conv_gru against numpy, both against dense cells."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from tests.cells.by_hand import F64, moved, parts, run, same, sigmoid
from tests.reference import assert_close

SPACE, D, H = (3, 4), 2, 3


def problem(cell, space=SPACE, steps=4):
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((*space, D), F64))
    return moved(jax.tree.map(np.asarray, params)), jnp.asarray(
        np.random.default_rng(2).normal(size=(steps, 2, *space, D))
    )


def convolved(x, weights):
    """[B, h, w, I] and [3, 3, I, O], zeros around: the sum that a convolution is."""
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(padded[:, i : i + height, j : j + width] @ np.asarray(weights)[i, j] for i in range(3) for j in range(3))


def test_conv_lstm_equals_flax(x64):
    """Flax has the order i, g, f, o, adds 1 to the sum of f, and has a bias on either side."""
    cell = cells.conv_lstm(H, SPACE, dtype=F64)
    params, xs = problem(cell)
    module = nn.ConvLSTMCell(H, (3, 3), dtype=F64, param_dtype=F64)
    reordered = lambda a: np.concatenate([np.split(np.asarray(a), 4, axis=-1)[n] for n in (0, 2, 1, 3)], axis=-1)
    bias = reordered(np.asarray(params["b"]) - (np.arange(4 * H) // H == 1))
    theirs = {
        "ih": {"kernel": reordered(params["U"]), "bias": bias},
        "hh": {"kernel": reordered(params["W"]), "bias": 0 * bias},
    }
    zero = np.zeros((2, *SPACE, H))
    net = nn.RNN(module, time_major=True, return_carry=True)
    apply = lambda theirs, xs, zero: net.apply({"params": {"cell": theirs}}, xs, initial_carry=(zero, zero))
    (c, h), ys = jax.jit(apply)(theirs, xs, zero)
    state, got = run(cell, params, xs)
    assert_close((state.c, state.h, got), (c, h, ys), 1e-12)


def test_conv_lstm_with_peepholes_equals_numpy(x64):
    cell = cells.conv_lstm(H, SPACE, peephole=True, dtype=F64)
    params, xs = problem(cell)
    got, p = np.asarray(run(cell, params, xs)[1]), jax.tree.map(np.asarray, params)
    h = c = np.zeros((2, *SPACE, H))
    for x, y in zip(xs, got, strict=True):
        i, f, g, o = parts(convolved(x, p["U"]) + convolved(h, p["W"]) + p["b"], 4)
        c = sigmoid(f + p["p"][1] * c) * c + sigmoid(i + p["p"][0] * c) * np.tanh(g)
        h = sigmoid(o + p["p"][2] * c) * np.tanh(c)
        same(y, h)


def test_conv_gru_equals_numpy(x64):
    cell = cells.conv_gru(H, SPACE, dtype=F64)
    params, xs = problem(cell)
    got, p, h = np.asarray(run(cell, params, xs)[1]), jax.tree.map(np.asarray, params), np.zeros((2, *SPACE, H))
    for x, y in zip(xs, got, strict=True):
        (r_x, z_x, n_x), (r_h, z_h) = parts(convolved(x, p["U"]) + p["b"], 3), parts(convolved(h, p["W"]), 2)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        h = (1 - z) * np.tanh(n_x + convolved(r * h, p["W_n"])) + z * h
        same(y, h)


def gru_before(size, dtype):
    return rnn.gru(size, reset="before", dtype=dtype)


@pytest.mark.parametrize("space", [(3,), (2, 3, 2)])
def test_a_window_of_one_is_the_dense_cell_at_every_place(space, x64):
    for conv, dense in ((cells.conv_lstm, rnn.lstm), (cells.conv_gru, gru_before)):
        cell, plain = conv(H, space, window=1, dtype=F64), dense(H, dtype=F64)
        params, xs = problem(cell, space)
        flat = {name: w if name == "b" else w.reshape(w.shape[-2:]) for name, w in params.items()}
        assert_close(run(cell, params, xs)[1], run(plain, flat, xs)[1], 1e-13)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_dimensions(batch, x64):
    cell = cells.conv_lstm(H, SPACE, window=(3, 1), dtype=F64)
    params, _ = problem(cell)
    x = np.random.default_rng(5).normal(size=(*batch, *SPACE, D))
    state = jax.tree.map(lambda a: np.asarray(a) + 0.2, cell.initial_state(params, batch))
    flat = lambda a: a.reshape(-1, *SPACE, a.shape[-1])
    step = jax.jit(lambda state, x: cell.step(params, state, x)[1])
    got = step(state, x)
    states, inputs = jax.tree.map(flat, state), flat(x)
    one_by_one = [step(jax.tree.map(lambda a, b=b: a[b], states), inputs[b]) for b in range(len(inputs))]
    assert got.shape == (*batch, *SPACE, H)
    assert_close(flat(got), np.stack(one_by_one), 1e-13)


def test_recurrent_weights_are_orthonormal_per_gate(x64):
    W = cells.conv_lstm(H, SPACE, dtype=F64).init(jax.random.key(0), jnp.zeros((*SPACE, D)))["W"]
    for gate in parts(W.reshape(-1, 4 * H), 4):
        same(gate.T @ gate, np.eye(H))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda: cells.conv_lstm(4, 8),
            r"conv_lstm: space must be one to three sizes such as \(height, width\), got 8",
        ),
        (lambda: cells.conv_gru(4, (8, 0)), "conv_gru: space must be a whole number of at least 1, got 0"),
        (lambda: cells.conv_gru(4, (8, 8), window=(3,)), r"conv_gru: window must be one size or 2, .* got \(3,\)"),
        (lambda: cells.conv_lstm(4, (8,), window=0), "conv_lstm: window must be a whole number of at least 1"),
        (
            lambda: cells.conv_lstm(4, (8, 8)).init(jax.random.key(0), jnp.zeros((2, 8, 1))),
            r"conv_lstm: x must be \[\*B, 8, 8, D\], got float32\[2,8,1\]; fix the input, or make the cell",
        ),
        (
            lambda: cells.conv_lstm(4, (8, 8)).step(
                cells.conv_lstm(3, (8, 8)).init(jax.random.key(0), jnp.zeros((8, 8, 1))), None, jnp.zeros((8, 8, 1))
            ),
            r"conv_lstm: params\['U'\] should be \[3, 3, D, 16\], got float32\[3,3,1,12\]",
        ),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()
