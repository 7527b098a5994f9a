"""Gradients in every copy, against copies made by hand; the averaged update; the error's way back."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxrnn as rnn
from tests import reference
from tests.reference import assert_close, scalar
from tests.scans import test_matrix as matrix
from tests.scans.test_matrix import B, T, options
from tests.zoo import CELLS, SCANS, H, sequence


@functools.cache
def problem(name, dtype):
    """That of the matrix, its arrays made by one program and once."""
    cell = CELLS[name](jnp.dtype(dtype))
    return cell, *jax.jit(lambda: matrix.problem(name, dtype)[1:])()


def copies_by_hand(loss, cell, params, xs, state, *, lengths=None, resets=None, key=None, reverse=False, batch=(B,)):
    """T separate parameter sets in a plain Python loop, and jax.grad by each of them."""
    steps = jax.tree.leaves(xs)[0].shape[0]
    order = range(steps)[::-1] if reverse else range(steps)
    step = jax.jit(lambda p, s, x, key: cell.step(p, s, x, key=key))  # traced once, not T times
    k_begin, k_steps = (None, None) if key is None else jax.random.split(key)

    def run(copies):
        own = copies if key is None else [cell.begin(p, k_begin) for p in copies]
        s = cell.initial_state(own[order[0]], batch) if state is None else state
        ys = [None] * steps
        for t in order:
            if resets is not None:
                s = reference._where(resets[t], cell.initial_state(own[t], batch), s)
            x = jax.tree.map(lambda a, t=t: a[t], xs)
            new, y = step(own[t], s, x, None if key is None else jax.random.fold_in(k_steps, t))
            if lengths is not None:
                new = reference._where(t < lengths, new, s)
                y = reference._where(t < lengths, y, jax.tree.map(jnp.zeros_like, y))
            s, ys[t] = new, y
        return loss(s, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys))

    grads = jax.jit(jax.grad(run, allow_int=True))([params] * steps)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *grads)


# One of each kind, the others take the same ways: masks drawn once, integers, layers, functions; and, slow, learned
# starts, graphs, lengths, draws at each step, complex leaves, a state wider than the input.
FAST = ("dropout_sequence", "running_mean", "layer", "lift")
SLOW = ("lstm_all", "graph", "masked", "resettable", "zoneout", "lru", "mlstm")


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_each_copy_has_the_gradient_of_a_copy_made_by_hand(name, x64):
    cell, params, xs, _ = problem(name, "float64")
    given = options("everything")
    got, whole = jax.jit(
        lambda p: (
            rnn.analysis.copy_gradients(scalar, cell, p, xs, **given),
            jax.grad(lambda p: scalar(*rnn.unroll(cell, p, xs, scan=lax.scan, **given)))(p),
        )
    )(params)
    assert_close(got, copies_by_hand(scalar, cell, params, xs, None, **given), 1e-10)
    assert_close(added_up(got), whole, 1e-10)


def added_up(copies):
    return jax.tree.map(lambda a: a[0] if a.dtype == jax.dtypes.float0 else np.asarray(a).sum(axis=0), copies)


PARTS = {"plain": {}} | {part: {part: value} for part, value in options("everything").items()}


FAST = ("plain", True), ("resets", False)


@pytest.mark.parametrize(
    ("part", "with_state"),
    matrix.product_of(PARTS, [False, True], fast=lambda part, given: (list(PARTS)[part], bool(given)) in FAST),
)
def test_the_copies_add_up_whatever_is_asked(part, with_state, x64):
    cell, params, xs, state = problem("gru_before", "float64")
    state = state if with_state else None
    got = jax.jit(lambda p: rnn.analysis.copy_gradients(scalar, cell, p, xs, state, **PARTS[part]))(params)
    by_hand = copies_by_hand(scalar, cell, params, xs, state, **PARTS[part])
    assert_close(got, by_hand, 1e-10)
    assert all(np.abs(leaf).max() > 1e-3 for name, leaf in got.items() if not (with_state and "init" in name))


# One of each kind of pass; the others are made of these.
PASSES = "checkpointed(2)", "fissioned", "parallel(2)", "truncated(2)"


@pytest.mark.parametrize(
    "scan", [pytest.param(n, marks=[] if n in PASSES else pytest.mark.slow) for n in (*SCANS, "truncated(2)")]
)
def test_any_scan_runs_the_pass(scan, x64):
    """All copies, and what is measured of them, under every scan; the copies add up to its gradient."""
    cell, params, xs, _ = problem("jordan", "float64")
    run = SCANS.get(scan, rnn.truncated(2, inner=rnn.scan))
    got, norms, whole = jax.jit(
        lambda p: (
            rnn.analysis.copy_gradients(scalar, cell, p, xs, scan=run),
            rnn.analysis.copy_gradients(scalar, cell, p, xs, scan=run, measure=rnn.analysis.leaf_norms),
            jax.grad(lambda p: scalar(*rnn.unroll(cell, p, xs, scan=run)))(p),
        )
    )(params)
    assert_close(added_up(got), whole, 1e-10)
    assert_close(norms, jax.tree.map(lambda a: np.linalg.norm(np.asarray(a).reshape(T, -1), axis=1), got), 1e-10)
    if scan in SCANS:
        assert_close(got, copies_of("jordan"), 1e-10)


@functools.cache
def copies_of(name):
    cell, params, xs, _ = problem(name, "float64")
    return copies_by_hand(scalar, cell, params, xs, None)


@pytest.mark.parametrize("scan", [None, pytest.param(rnn.scan, marks=pytest.mark.slow)])
def test_vmap_gives_each_example_its_own(scan, x64):
    cell, params, xs, _ = problem("stack", "float64")
    measure = rnn.analysis.leaf_norms
    alone = jax.jit(lambda xs: rnn.analysis.copy_gradients(scalar, cell, params, xs, measure=measure, scan=scan))
    got = jax.jit(jax.vmap(alone, in_axes=1))(xs)
    assert_close(got, jax.tree.map(lambda *a: np.stack(a), *[alone(np.asarray(xs)[:, b]) for b in range(B)]), 1e-10)


def test_a_graph_s_copies_are_those_of_the_unrolled_graph(x64):
    dense = nn.Dense(H, dtype=jnp.float64, param_dtype=jnp.float64)
    net = rnn.graph(
        {"h": (rnn.stack(rnn.layer(dense), rnn.lift(jnp.tanh)), ["x", rnn.prev("h"), rnn.prev("y", steps=2)]),
         "y": (dense, ["h", "x"])},
        output="y",
    )  # fmt: skip
    xs = sequence(1, (T, B), jnp.float64)
    params = jax.jit(net.init)(jax.random.key(0), xs[0])
    got = jax.jit(lambda p: rnn.analysis.copy_gradients(scalar, net, p, xs))(params)
    deep = rnn.graphs.unrolled(net, steps=T)
    by_hand = jax.grad(lambda copies: scalar(*deep.evaluate(params, xs, copies=copies)))
    by_copy = jax.jit(by_hand)(deep.weights(params))
    for vertex in ("h", "y"):
        assert_close(got[vertex], jax.tree.map(lambda *a: np.stack(a), *[by_copy[vertex, t] for t in range(T)]), 1e-10)


def test_weights_that_are_no_numbers_have_no_gradient():
    cell = rnn.Cell(
        lambda key, x: {"w": jnp.ones(()), "n": jnp.int32(3)},
        lambda p, batch: jnp.zeros(batch),
        lambda p, s, x, key=None: ((s := s + p["w"] * x * p["n"].astype(x.dtype)), s),
    )
    params = cell.init(None, None)
    find = lambda **options: rnn.analysis.copy_gradients(lambda s, ys: jnp.sum(s), cell, params, xs, **options)
    xs = jnp.arange(4.0)
    got = find()
    assert got["w"].tolist() == [0, 3, 6, 9]
    assert got["n"].dtype == jax.dtypes.float0 and got["n"].shape == (4,)
    norms = jax.jit(lambda: find(measure=rnn.analysis.leaf_norms))()
    assert norms["n"].tolist() == [0, 0, 0, 0] and norms["w"].tolist() == [0, 3, 6, 9]


def test_weights_may_be_plain_numbers():
    step = lambda p, s, x, key=None: ((s := s + p["w"] * x), s)
    cell = rnn.Cell(lambda key, x: {"w": 1.0}, lambda p, batch: jnp.zeros(batch), step)
    got = rnn.analysis.copy_gradients(
        lambda s, ys: s, cell, {"w": 2.0}, jnp.arange(4.0), measure=rnn.analysis.leaf_norms
    )
    assert got["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_copies_have_the_weights_dtype(dtype):
    cell, params, xs, _ = problem("lstm", dtype)
    got, whole = jax.jit(
        lambda p: (
            rnn.analysis.copy_gradients(scalar, cell, p, xs),
            jax.grad(lambda p: scalar(*rnn.unroll(cell, p, xs)))(p),
        )
    )(params)
    assert all(leaf.dtype == dtype and leaf.shape[0] == T for leaf in jax.tree.leaves(got))
    wide = lambda tree: jax.tree.map(lambda a: np.asarray(a).astype("f4"), tree)
    assert_close(added_up(wide(got)), wide(whole), 2e-5 if dtype == "float32" else 6e-2)


def test_memory_is_bounded():
    """The copies cost their own bytes and no more; measured not even those; the rest grows like sqrt(T)."""
    cell = rnn.elman(64)

    @functools.cache
    def cost(steps, measure):
        xs = jax.ShapeDtypeStruct((steps, 2, 8), jnp.float32)
        params = jax.eval_shape(cell.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 8), jnp.float32))
        find = lambda p, xs: rnn.analysis.copy_gradients(lambda s, ys: jnp.sum(s), cell, p, xs, measure=measure)
        return rnn.analysis.temp_bytes(find, params, xs)

    one_copy = 4 * (64 * 64 + 8 * 64 + 64)
    assert cost(400, rnn.analysis.leaf_norms) < 10 * one_copy < 400 * one_copy
    assert cost(400, None) < 20 * one_copy  # beside the result, 400 copies
    assert cost(1600, rnn.analysis.leaf_norms) < 3 * cost(400, rnn.analysis.leaf_norms)


def test_no_steps_no_copies():
    cell, params, xs, _ = problem("lstm", "float32")
    got = jax.jit(lambda p: rnn.analysis.copy_gradients(scalar, cell, p, xs[:0]))(params)
    assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"loss": lambda s, ys: ys}, r"loss\(state, ys\) must return one floating-point number, got float32\[5,2,4\]"),
        ({"loss": lambda s, ys: (jnp.sum(ys), 1)}, "one floating-point number, got tuple"),
        ({"loss": lambda s, ys: jnp.sum(ys) > 0}, r"one floating-point number, got bool\[\]"),
        ({"measure": "norms"}, "measure must be a function of one copy's gradient, got 'norms'; try leaf_norms"),
        ({"measure": lambda g: {"big": g["W"] > 1}}, r"got measure\(gradient\)\['big'\] bool\[4,16\]; cast it"),
        ({"scan": 3}, "copy_gradients: scan must be a scan"),
        ({"xs": ()}, "xs has no arrays"),
        ({"cell": rnn.lstm}, "cell must be a Cell"),
    ],
)
def test_bad_input_is_named(changed, complaint):
    cell, params, xs, _ = problem("lstm", "float32")
    given = {"loss": scalar, "cell": cell, "params": params, "xs": xs} | changed
    with pytest.raises((ValueError, TypeError), match=complaint):
        rnn.analysis.copy_gradients(**given)


def test_norms_of_the_tiny_the_huge_and_the_odd():
    tree = {
        "tiny": np.full(4, 1e-30, "f4"), "huge": np.full(4, 1e30, "f4"), "none": np.zeros(0, "f4"),
        "zero": np.zeros(3, "f4"), "nan": np.array([1, np.nan], "f4"), "inf": np.array([1, -np.inf], "f4"),
        "count": np.int32(7), "half": np.full((2, 2), 300, np.float16),
    }  # fmt: skip
    got = {name: float(value) for name, value in jax.jit(rnn.analysis.leaf_norms)(tree).items()}
    expected = {
        "tiny": 2e-30,
        "huge": 2e30,
        "none": 0,
        "zero": 0,
        "nan": np.nan,
        "inf": np.inf,
        "count": 0,
        "half": 600,
    }
    assert got == pytest.approx(expected, rel=1e-6, abs=0, nan_ok=True)


# --- the averaged update


def copying_loss(cell):
    def loss(params, batch, key):
        del key
        xs, targets = batch
        _, ys = rnn.unroll(cell, params, xs, scan=lax.scan)
        return jnp.mean((ys - targets) ** 2)

    return loss


def trained(cell, params, batch, rate, **options):
    step = rnn.training.make_train_step(copying_loss(cell), optax.sgd(rate), **options)
    state = rnn.training.create(params, optax.sgd(rate), jax.random.key(0))
    for _ in range(4):
        state, metrics = step(state, batch)
    return state.params, metrics["grad_norm"]


@functools.cache
def trained_by_the_sum():
    return trained(*mean_problem(), 0.05)


def mean_problem():
    cell, params, xs, _ = problem("elman", "float64")
    targets = np.random.default_rng(4).standard_normal((T, B, 1))
    return cell, params, (xs, jnp.asarray(np.broadcast_to(targets, (T, B, H))))


@pytest.mark.parametrize("copies", [None, T, jnp.int32(T), lambda batch: batch[0].shape[0]])
def test_the_mean_at_a_rate_T_times_larger_is_the_sum(copies, x64):
    cell, params, batch = mean_problem()
    by_sum, norm_of_sum = trained_by_the_sum()
    by_mean, norm_of_mean = trained(cell, params, batch, 0.05 * T, combine="mean", copies=copies)
    assert_close(by_mean, by_sum, 1e-13)
    assert float(norm_of_mean) * T == pytest.approx(float(norm_of_sum), rel=1e-12)
    assert np.abs(np.asarray(by_sum["W"]) - params["W"]).max() > 1e-3


def test_the_mean_of_the_copies_is_what_the_train_step_takes(x64):
    cell, params, xs, _ = problem("lstm", "float64")
    batch = xs, np.zeros((T, B, H))
    copies = jax.jit(lambda p: rnn.analysis.copy_gradients(lambda s, ys: jnp.mean(ys**2), cell, p, xs))(params)
    step = rnn.training.make_train_step(copying_loss(cell), optax.sgd(1.0), combine="mean")
    state, _ = step(rnn.training.create(params, optax.sgd(1.0), jax.random.key(0)), batch)
    assert_close(
        state.params, jax.tree.map(lambda p, g: np.asarray(p) - np.asarray(g).mean(axis=0), params, copies), 1e-12
    )


def test_a_weight_used_once_is_one_copy(x64):
    params = {"net": {"w": jnp.float64(2), "b": jnp.float64(3)}, "readout": jnp.float64(5)}
    loss = lambda p, batch, key: 6 * p["net"]["w"] + 12 * p["net"]["b"] + p["readout"] + 0 * jnp.sum(batch)
    given = {"combine": "mean", "copies": lambda batch: {"net": batch.shape[0], "readout": 1}}
    step = rnn.training.make_train_step(loss, optax.sgd(1.0), **given)
    state, _ = step(rnn.training.create(params, optax.sgd(1.0), jax.random.key(0)), jnp.zeros(3))
    assert state.params == {"net": {"w": 0, "b": -1}, "readout": 4}


def test_fit_averages_too(x64):
    cell, params, xs, _ = problem("elman", "float64")
    batch = xs, jnp.zeros((T, B, H))
    common = {"steps": 3, "key": jax.random.key(0), "progress": False}
    fit = lambda rate, **more: rnn.training.fit(
        copying_loss(cell), params, lambda step: batch, optimizer=optax.sgd(rate), **common, **more
    )
    assert_close(fit(0.1 * T, combine="mean").params, fit(0.1).params, 1e-13)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"combine": "average"}, "combine must be one of 'sum', 'mean', got 'average'"),
        ({"copies": 5}, 'copies only matter to combine="mean"'),
        ({"combine": "mean"}, r"batch\[1\] has 2 time steps but batch\[0\] has 5.*copies=T, or copies=lambda batch"),
        ({"combine": "mean", "copies": 0}, "copies must be numbers of at least 1, got 0"),
        ({"combine": "mean", "copies": {"V": 3}}, "copies should be a number of steps, or numbers in the structure"),
        ({"combine": "mean", "copies": "T"}, "copies must be numbers of at least 1, got T"),
    ],
)
def test_what_cannot_be_averaged(given, complaint):
    cell, params, xs, _ = problem("elman", "float32")
    loss = lambda p, batch, key: jnp.sum(rnn.unroll(cell, p, batch[0])[1] ** 2)
    with pytest.raises(ValueError, match=complaint):
        step = rnn.training.make_train_step(loss, optax.sgd(1.0), **given)
        step(rnn.training.create(params, optax.sgd(1.0), jax.random.key(0)), (xs, jnp.zeros(2)))
