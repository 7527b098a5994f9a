"""elementwise_gru and elementwise_lstm against the dense cells with diagonal matrices, and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from tests.cells.by_hand import F64, made, parts, problem, run, same, sigmoid
from tests.reference import assert_close
from tests.zoo import D, H, sequence


def diagonal(vectors, n):
    return np.concatenate([np.diag(w) for w in np.split(np.asarray(vectors), n)], axis=-1)


def test_the_gru_is_the_dense_one_with_diagonal_matrices(x64):
    cell, dense = cells.elementwise_gru(H, dtype=F64), rnn.gru(H, reset="before", dtype=F64)
    p, xs = made(cell), sequence(3, (7, 2), F64)
    W = diagonal(p["w"], 3)
    same_weights = {"U": p["U"], "b": p["b"], "W": W[:, : 2 * H], "W_n": W[:, 2 * H :]}
    assert_close(run(cell, p, xs), run(dense, same_weights, xs), 1e-13)


@pytest.mark.parametrize("peephole", [False, True])
def test_the_lstm_is_the_dense_one_with_diagonal_matrices(peephole, x64):
    cell, dense = (make(H, peephole=peephole, dtype=F64) for make in (cells.elementwise_lstm, rnn.lstm))
    p, xs = made(cell), sequence(3, (7, 2), F64)
    same_weights = {"U": p["U"], "b": p["b"], "W": diagonal(p["w"], 4)}
    if peephole:
        same_weights["p"] = p["p"].reshape(3, H)
    assert_close(run(cell, p, xs), run(dense, same_weights, xs), 1e-13)


def test_the_coupled_lstm_equals_numpy(x64):
    _, p, xs, ys, last = problem(cells.elementwise_lstm(H, peephole=True, coupled=True, dtype=F64))
    (U_f, U_g, U_o), (w_f, w_g, w_o), (b_f, b_g, b_o) = (parts(p[name], 3) for name in "Uwb")
    p_f, p_o = parts(p["p"], 2)
    h, c = np.zeros((2, H)), np.zeros((2, H))
    for x, y in zip(xs, ys, strict=True):
        f = sigmoid(x @ U_f + w_f * h + p_f * c + b_f)
        c = f * c + (1 - f) * np.tanh(x @ U_g + w_g * h + b_g)
        h = sigmoid(x @ U_o + w_o * h + p_o * c + b_o) * np.tanh(c)
        same(y, h)
    same((last.h, last.c), (h, c))


@pytest.mark.parametrize("name", ["elementwise_gru", "elementwise_lstm"])
def test_a_unit_reads_its_own_past_only(name, x64):
    """The derivative of a step by its state: one number per unit, or a 2 x 2 block."""
    cell = getattr(cells, name)(H, dtype=F64)
    params = made(cell)
    state = jax.tree.map(lambda a: a + 0.3, cell.initial_state(params, ()))
    slopes = jax.jit(jax.jacobian(lambda s: cell.step(params, s, jnp.ones(D))[0]))(state)
    for slope in map(np.asarray, jax.tree.leaves(slopes)):
        assert slope.shape == (H, H) and not np.any(slope - np.diag(np.diag(slope))) and np.any(slope)


@pytest.mark.parametrize("coupled", [False, True])
def test_the_first_forget_gate_is_open(coupled):
    params = cells.elementwise_lstm(2, coupled=coupled).init(jax.random.key(0), jnp.zeros(D))
    np.testing.assert_array_equal(params["b"], [1, 1, 0, 0, 0, 0] if coupled else [0, 0, 1, 1, 0, 0, 0, 0])
    assert float(jnp.abs(params["w"]).max()) <= 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cells.elementwise_gru(0), "elementwise_gru: size must be a whole number of at least 1, got 0"),
        (lambda: cells.elementwise_lstm(4, peephole=3), "elementwise_lstm: peephole must be one of False, True, got 3"),
        (lambda: cells.elementwise_lstm(4, coupled=None), "elementwise_lstm: coupled must be one of False, True"),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()
