"""slstm and mlstm against loops in numpy of the paper's equations without stabilisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn import cells
from tests.cells.by_hand import F64, made, parts, problem, run, same, sigmoid
from tests.reference import assert_close
from tests.zoo import D, H, sequence

FORGET = {"sigmoid": sigmoid, "exp": np.exp}
HEADS_AND_GATES = [
    (1, "exp"),
    (2, "sigmoid"),
    pytest.param(1, "sigmoid", marks=pytest.mark.slow),
    pytest.param(2, "exp", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("heads", "forget"), HEADS_AND_GATES)
def test_slstm_equals_numpy_without_stabilisation(heads, forget, x64):
    _, p, xs, ys, last = problem(cells.slstm(H, heads=heads, forget=forget, dtype=F64))
    U, b = parts(p["U"], 4), parts(p["b"], 4)
    mixed = np.zeros((4, H, H))  # block-diagonal, per gate
    for head in range(heads):
        own = slice(head * H // heads, (head + 1) * H // heads)
        mixed[:, own, own] = parts(p["W"][head], 4)
    h, c, n = np.zeros((2, H)), np.zeros((2, H)), np.zeros((2, H))
    for x, y in zip(xs, ys, strict=True):
        i, f, z, o = (x @ U[k] + h @ mixed[k] + b[k] for k in range(4))
        c = FORGET[forget](f) * c + np.exp(i) * np.tanh(z)
        n = FORGET[forget](f) * n + np.exp(i)
        h = sigmoid(o) * c / n
        same(y, h, 1e-10)
    assert isinstance(last, cells.SLSTMState)
    same((last.h, last.c * np.exp(last.m), last.n * np.exp(last.m)), (h, c, n), 1e-10)


@pytest.mark.parametrize(("heads", "forget"), HEADS_AND_GATES)
def test_mlstm_equals_numpy_without_stabilisation(heads, forget, x64):
    _, p, xs, ys, last = problem(cells.mlstm(H, heads=heads, forget=forget, dtype=F64))
    N = H // heads
    C, n = np.zeros((2, heads, N, N)), np.zeros((2, heads, N))
    for x, y in zip(xs, ys, strict=True):
        columns = x @ p["U"] + p["b"]
        for b in range(2):
            q, k, v, o = (a.reshape(heads, N) for a in parts(columns[b, : 4 * H], 4))
            i, f = parts(columns[b, 4 * H :], 2)
            for head in range(heads):
                key = k[head] / np.sqrt(N)
                C[b, head] = FORGET[forget](f[head]) * C[b, head] + np.exp(i[head]) * np.outer(v[head], key)
                n[b, head] = FORGET[forget](f[head]) * n[b, head] + np.exp(i[head]) * key
                read = C[b, head] @ q[head] / max(abs(n[b, head] @ q[head]), 1)
                same(y[b].reshape(heads, N)[head], sigmoid(o[head]) * read, 1e-10)
    assert isinstance(last, cells.MLSTMState)
    scale = np.exp(last.m)[..., None]
    same(np.swapaxes(last.c, -1, -2) * scale[..., None], C, 1e-10)  # ours is keys times values
    same(last.n * scale, n, 1e-10)


@pytest.mark.parametrize("name", ["slstm", "mlstm"])
def test_exponents_beyond_float32_change_nothing_but_the_scale(name):
    """Input gates of exp(200) overflow float32. The scalar LSTM is a weighted mean, so a shift of all is no change;
    values and gradients of both are finite."""
    cell = getattr(cells, name)(H)
    params = cell.init(jax.random.key(0), jnp.zeros(D))
    gate = jnp.arange(H) if name == "slstm" else jnp.array([4 * H])
    shifted = {**params, "b": params["b"].at[gate].add(200.0)}
    xs = sequence(0, (20, 2), jnp.float32)
    if name == "slstm":
        np.testing.assert_allclose(run(cell, shifted, xs)[1], run(cell, params, xs)[1], rtol=2e-4, atol=2e-5)
    both = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(rnn.unroll(cell, p, xs)[1]))))
    for shift in (200.0, -200.0):
        found = both({**params, "b": params["b"].at[gate].add(shift)})
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(found)), shift


def test_an_empty_memory_weighs_nothing(x64):
    """slstm's first output is that of its first input alone, whatever the gates: s(o) tanh(z)."""
    cell = cells.slstm(H, dtype=F64)
    params, x = made(cell), sequence(1, (2,), F64)
    _, y = cell.step(params, cell.initial_state(params, (2,)), x)
    *_, z, o = parts(np.asarray(x) @ np.asarray(params["U"]) + np.asarray(params["b"]), 4)
    same(y, sigmoid(o) * np.tanh(z))


@pytest.mark.parametrize("name", ["slstm", "mlstm"])
def test_a_learned_first_state_is_read(name, x64):
    cell = getattr(cells, name)(H, dtype=F64, learn_initial_state=True)
    params, xs = made(cell), sequence(1, (3, 2), F64)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(rnn.unroll(cell, p, xs)[1] ** 2)))(params)["initial_state"]
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["slstm", "mlstm"])
def test_sums_are_float32_in_bfloat16_and_near_what_they_are_in_32(name):
    wide, narrow = (getattr(cells, name)(16, heads=2, dtype=t) for t in (jnp.float32, jnp.bfloat16))
    xs = jax.random.normal(jax.random.key(0), (200, 16)).astype(jnp.bfloat16)
    params = narrow.init(jax.random.key(1), xs[0])
    state, ys = run(narrow, params, xs)
    assert {state.c.dtype, state.n.dtype, state.m.dtype} == {jnp.dtype(jnp.float32)} and ys.dtype == jnp.bfloat16
    as32 = jax.tree.map(lambda a: np.asarray(a).astype(np.float32), params)
    expected = np.asarray(run(wide, as32, np.asarray(xs).astype(np.float32))[1])
    assert np.abs(np.asarray(ys).astype(np.float32) - expected).max() / np.abs(expected).max() < 4e-2


def test_heads_do_not_meet(x64):
    """slstm: two heads are two cells of half the size."""
    cell, half = cells.slstm(H, heads=2, dtype=F64), cells.slstm(H // 2, dtype=F64)
    params, xs = made(cell), sequence(1, (6, 2), F64)
    ys = parts(run(cell, params, xs)[1], 2)
    for head, y in enumerate(ys):
        own = lambda name, head=head: np.concatenate([parts(gate, 2)[head] for gate in parts(params[name], 4)], axis=-1)
        alone = {"U": own("U"), "b": own("b"), "W": params["W"][head : head + 1]}
        assert_close(run(half, alone, xs)[1], y, 1e-12)


@pytest.mark.parametrize("name", ["slstm", "mlstm"])
def test_the_first_forget_gates_are_open(name):
    params = getattr(cells, name)(8, heads=4).init(jax.random.key(0), jnp.zeros(D))
    f = params["b"][8:16] if name == "slstm" else params["b"][-4:]
    np.testing.assert_allclose(f, [3, 6] * 4 if name == "slstm" else [3, 4, 5, 6], rtol=1e-6)
    assert name == "slstm" or not params["U"][:, 32:].any()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cells.slstm(6, heads=4), "slstm: size must be a multiple of heads, got 6 units and 4 heads"),
        (lambda: cells.mlstm(6, heads=0), "mlstm: heads must be a whole number of at least 1"),
        (lambda: cells.mlstm(6, forget="relu"), "mlstm: forget must be one of 'sigmoid', 'exp', got 'relu'"),
        (lambda: cells.slstm(6, dtype=jnp.int8), "slstm: dtype must be a floating-point dtype"),
    ],
)
def test_bad_construction_is_one_clear_sentence(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()
