"""Each cell against something independent: Flax with the same weights, or a special case that it reduces to."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from tests.cells.by_hand import made, run
from tests.reference import assert_close
from tests.zoo import CELLS, WIDE, D, H, sequence

X = jax.ShapeDtypeStruct((D,), jnp.float64)


def blocks(matrix, n):
    return np.split(np.asarray(matrix), n, axis=-1)


def run_flax(module, variables, xs, carry):
    """nn.RNN over batch-major input, as Flax has it."""
    net = nn.RNN(module, time_major=True, return_carry=True)
    apply = lambda variables, xs, carry: net.apply({"params": {"cell": variables}}, xs, initial_carry=carry)
    return jax.jit(apply)(variables, xs, carry)


def test_lstm_equals_flax(x64):
    cell = rnn.lstm(H, dtype=jnp.float64)
    p, xs = made(cell), sequence(3, (7, 2), jnp.float64)
    names = "ifgo"
    dense = {f"i{n}": {"kernel": u} for n, u in zip(names, blocks(p["U"], 4), strict=True)}
    dense |= {
        f"h{n}": {"kernel": w, "bias": b} for n, w, b in zip(names, blocks(p["W"], 4), blocks(p["b"], 4), strict=True)
    }
    zero = jnp.zeros((2, H), jnp.float64)
    (c, h), ys = run_flax(nn.LSTMCell(H, dtype=jnp.float64, param_dtype=jnp.float64), dense, xs, (zero, zero))
    state, got = run(cell, p, xs)
    assert_close((state.c, state.h, got), (c, h, ys), 1e-12)


def test_gru_equals_flax(x64):
    cell = rnn.gru(H, dtype=jnp.float64)
    p, xs = made(cell), sequence(3, (7, 2), jnp.float64)
    kernels = zip("rzn", blocks(p["U"], 3), blocks(p["b"], 3), strict=True)
    dense = {f"i{n}": {"kernel": u, "bias": b} for n, u, b in kernels}
    dense |= {f"h{n}": {"kernel": w} for n, w in zip("rzn", blocks(p["W"], 3), strict=True)}
    dense["hn"]["bias"] = p["c_n"]
    module = nn.GRUCell(H, dtype=jnp.float64, param_dtype=jnp.float64)
    h, ys = run_flax(module, dense, xs, jnp.zeros((2, H), jnp.float64))
    state, got = run(cell, p, xs)
    assert_close((state, got), (h, ys), 1e-12)


def test_mgu_equals_numpy(x64):
    """By hand in numpy: Flax's cell has another place for the forget gate."""
    cell = rnn.mgu(H, dtype=jnp.float64)
    p, xs = made(cell), sequence(3, (7, 2), jnp.float64)
    h = np.zeros((2, H))
    U_f, U_n = blocks(p["U"], 2)
    b_f, b_n = blocks(p["b"], 2)
    for x in np.asarray(xs):
        f = 1 / (1 + np.exp(-(x @ U_f + h @ np.asarray(p["W"]) + b_f)))
        n = np.tanh(x @ U_n + (f * h) @ np.asarray(p["W_n"]) + b_n)
        h = (1 - f) * h + f * n
    np.testing.assert_allclose(run(cell, p, xs)[0], h, rtol=1e-12)


def test_gru_before_equals_numpy(x64):
    cell = rnn.gru(H, reset="before", dtype=jnp.float64)
    p, xs = made(cell), sequence(3, (7, 2), jnp.float64)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    (U_r, U_z, U_n), (b_r, b_z, b_n), (W_r, W_z) = blocks(p["U"], 3), blocks(p["b"], 3), blocks(p["W"], 2)
    h = np.zeros((2, H))
    for x in np.asarray(xs):
        r, z = sigmoid(x @ U_r + h @ W_r + b_r), sigmoid(x @ U_z + h @ W_z + b_z)
        n = np.tanh(x @ U_n + b_n + (r * h) @ np.asarray(p["W_n"]))
        h = (1 - z) * n + z * h
    np.testing.assert_allclose(run(cell, p, xs)[0], h, rtol=1e-12)


def test_lstm_without_memory_gates_is_elman_like(x64):
    """Gates forced open by huge biases: c_t = c_tm1 + tanh(.), h_t = tanh(c_t), a plain sum of Elman activations."""
    cell = rnn.lstm(H, dtype=jnp.float64)
    p = made(cell)
    only_g = np.zeros(4 * H)
    only_g[2 * H : 3 * H] = 1
    p = {
        **p,
        "U": jnp.asarray(np.asarray(p["U"]) * only_g),
        "W": p["W"] * 0,
        "b": jnp.asarray(np.repeat([40.0, 40.0, 0.0, 40.0], H)),
    }
    xs = sequence(3, (7, 2), jnp.float64)
    state, ys = run(cell, p, xs)
    memory = np.cumsum(np.tanh(np.asarray(xs) @ blocks(p["U"], 4)[2]), axis=0)
    np.testing.assert_allclose(ys, np.tanh(memory), rtol=1e-9)
    np.testing.assert_allclose(state.c, memory[-1], rtol=1e-9)


def test_peephole_of_zero_and_projection_by_identity_are_the_plain_lstm(x64):
    plain, xs = rnn.lstm(H, dtype=jnp.float64), sequence(3, (7, 2), jnp.float64)
    p = made(plain)
    seen = rnn.lstm(H, peephole=True, projection=H, dtype=jnp.float64)
    same = {**p, "p": jnp.zeros((3, H)), "R": jnp.eye(H)}
    assert_close(run(seen, same, xs), run(plain, p, xs), 1e-14)


def test_peephole_gates_see_the_right_memory(x64):
    """With all other weights zero the gates are functions of c alone: i and f of the old one, o of the new."""
    cell = rnn.lstm(1, peephole=True, dtype=jnp.float64)
    p = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(cell.init, jax.random.key(0), X))
    p = {**p, "p": np.array([[2.0], [-1.0], [3.0]]), "b": np.array([0.1, 0.2, 0.3, 0.4])}
    state = rnn.LSTMState(h=np.zeros(1), c=np.array([0.5]))
    new, y = jax.jit(cell.step)(p, state, np.zeros(D))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    c = sigmoid(0.2 - 0.5) * 0.5 + sigmoid(0.1 + 1.0) * np.tanh(0.3)
    np.testing.assert_allclose(new.c, [c], rtol=1e-14)
    np.testing.assert_allclose(y, [sigmoid(0.4 + 3 * c) * np.tanh(c)], rtol=1e-14)


def test_ind_rnn_is_elman_with_a_diagonal(x64):
    cell, xs = rnn.ind_rnn(H, activation=jnp.tanh, dtype=jnp.float64), sequence(3, (7, 2), jnp.float64)
    p = made(cell)
    full = {"U": p["U"], "W": jnp.diag(p["w"]), "b": p["b"]}
    assert_close(run(cell, p, xs), run(rnn.elman(H, dtype=jnp.float64), full, xs), 1e-14)


def test_jordan_feeds_back_its_output(x64):
    """With the readout the identity, feeding back the output is feeding back the hidden units."""
    xs = sequence(3, (7, 2), jnp.float64)
    elman = rnn.elman(H, dtype=jnp.float64)
    p = made(elman)
    jordan = rnn.jordan(H, H, output_activation=lambda a: a, dtype=jnp.float64)
    same = {**p, "V": jnp.eye(H), "c": jnp.zeros(H)}
    assert_close(run(jordan, same, xs), run(elman, p, xs), 1e-14)


@pytest.mark.parametrize("make", [rnn.elman, rnn.lstm, rnn.gru, partial(rnn.gru, reset="before")])
def test_without_biases_is_with_biases_of_zero(make, x64):
    bare, xs = make(H, bias=False, dtype=jnp.float64), sequence(3, (7, 2), jnp.float64)
    p = made(bare)
    full = jax.eval_shape(make(H, dtype=jnp.float64).init, jax.random.key(0), X)
    zeros = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in full.items() if name not in p}
    assert set(zeros) and set(zeros) <= {"b", "c_n"}
    assert_close(run(bare, p, xs), run(make(H, dtype=jnp.float64), {**p, **zeros}, xs), 1e-14)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "gru_before", "mgu"])
def test_recurrent_weights_are_orthogonal_per_gate(name, x64):
    params = CELLS[name](jnp.float64).init(jax.random.key(0), X)
    for key in ("W", "W_n"):
        for block in blocks(params[key], params[key].shape[1] // H) if key in params else ():
            np.testing.assert_allclose(block @ block.T, np.eye(H), atol=1e-12)


def test_forget_bias_is_one_and_other_biases_zero():
    b = rnn.lstm(3).init(jax.random.key(0), jnp.zeros(D))["b"]
    np.testing.assert_array_equal(b, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_learned_initial_state_gets_a_gradient_and_serves_the_whole_batch():
    cell = rnn.lstm(H, learn_initial_state=True)
    params = cell.init(jax.random.key(0), jnp.zeros((5, D)))
    xs = sequence(1, (3, 5), jnp.float32)
    grad = jax.jit(jax.grad(lambda p, xs: jnp.sum(rnn.unroll(cell, p, xs)[1])))
    grads = grad(params, xs)["initial_state"]
    one_by_one = [grad(params, np.asarray(xs)[:, b])["initial_state"] for b in range(5)]
    total = jax.tree.map(lambda *a: np.sum(a, 0), *one_by_one)
    assert np.abs(grads.c).max() > 0
    assert_close(grads, total, 1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_parameters_cast_to_bfloat16_compute_in_bfloat16(name):
    cell = CELLS[name](jnp.float32)
    layers = ("layer", "flax_lstm", "flax_gru", "nnx_gru", "stack", "graph", "dropout_sequence")
    if name in (*layers, "running_mean", "lift", "residual", "scheduled_sampling"):
        pytest.skip("holds a layer whose own dtype option decides, or adds or keeps an input in the input's dtype")
    xs = jax.ShapeDtypeStruct((3, 2, D), jnp.float32)

    def outcome(xs):
        params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), cell.init(jax.random.key(0), xs[0]))
        return rnn.unroll(cell, params, xs)

    state, ys = jax.eval_shape(outcome, xs)  # dtypes are settled in tracing
    leaves = jax.tree.leaves(ys if name in WIDE else (state, ys))
    assert {a.dtype for a in leaves} - {jnp.dtype(jnp.int32)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: rnn.lstm(0), r"lstm: size must be a whole number of at least 1, got 0"),
        (lambda: rnn.gru(2.5), r"gru: size must be a whole number"),
        (lambda: rnn.elman(True), r"elman: size must be a whole number"),
        (lambda: rnn.gru(4, reset="between"), r"gru: reset must be one of 'after', 'before', got 'between'"),
        (lambda: rnn.lstm(4, projection=0), r"lstm: projection must be a whole number"),
        (lambda: rnn.lstm(4, bias=None), r"lstm: bias must be one of True, False, got None"),
        (lambda: rnn.lstm(4, dtype=jnp.int32), r"lstm: dtype must be a floating-point dtype, got int32"),
        (lambda: rnn.lstm(4, dtype="quux"), r"lstm: dtype must be a dtype"),
        (lambda: rnn.lstm(4, dtype=jnp.float64), r"float64 needs 64-bit mode; call jax.config.update"),
        (lambda: rnn.elman(4, activation="tanh"), r"elman: activation must be a function"),
        (lambda: rnn.elman(4).init(jax.random.key(0), jnp.zeros((2,), int)), r"elman: x must be floating-point.*embed"),
        (lambda: rnn.elman(4).init(jax.random.key(0), jnp.zeros(())), r"init needs an x of shape \[\.\.\., D\]"),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()


def test_a_wrong_feature_size_names_what_was_expected():
    cell = rnn.lstm(4)
    params = cell.init(jax.random.key(0), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"lstm: x must have 3 features.*got float32\[2,5\]"):
        rnn.unroll(cell, params, jnp.zeros((6, 2, 5)))
