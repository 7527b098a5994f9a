"""`parallel` under lengths and resets: still in parallel, and a NaN in padding or before a reset reaches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.analysis import depth
from tests.reference import assert_close, scalar
from tests.scans.recurrences import D, gated, logarithms, rectified

T, B = 20, 2
LENGTHS = jnp.array([20, 13])
RESETS = jnp.zeros((T, B), bool).at[5, 0].set(True).at[jnp.array([3, 9]), 1].set(True)


def cell_of(make):
    """A step of `recurrences` as a cell."""
    params, step, start = make()
    return rnn.Cell(
        init=lambda key, x: params,
        initial_state=lambda p, batch: jnp.broadcast_to(start, (*batch, *start.shape)),
        step=lambda p, h, x, key=None: step(p, h, x),
    )


def drawn(dtype=jnp.float32):
    return jax.random.normal(jax.random.key(2), (T, B, D), jnp.float32).astype(dtype)


def spoiling(f, init, xs=None, length=None, reverse=False):
    """A scan that nobody should run: all that comes out is off."""
    carry, ys = lax.scan(f, init, xs, length, reverse)
    return jax.tree.map(lambda a: a + 100, carry), jax.tree.map(lambda a: a + 100, ys)


MASKS = {"lengths": {"lengths": LENGTHS}, "resets": {"resets": RESETS}, "both": {"lengths": LENGTHS, "resets": RESETS}}
MASKS["both, in reverse"] = {**MASKS["both"], "reverse": True}


def with_gradient(cell, scan, **masks):
    def value(params, xs):
        out = rnn.unroll(cell, params, xs, scan=scan, **masks)
        return scalar(*out), out

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))


@pytest.mark.parametrize(
    ("make", "masks"),
    [(gated, "both, in reverse"), (rectified, "both")]
    + [pytest.param(gated, m, marks=pytest.mark.slow) for m in MASKS if m != "both, in reverse"]
    + [pytest.param(logarithms, "both", marks=pytest.mark.slow)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_masks_leave_it_in_parallel(make, masks, x64, lenient):
    """Equal to the loop; and the inner scan, which would spoil everything, is not run."""
    cell, xs = cell_of(make), drawn(jnp.float64)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), cell.init(None, None))
    cell = cell._replace(initial_state=lambda p, batch: jnp.full((*batch, 4), 0.1, jnp.float64))
    got = with_gradient(cell, rnn.parallel(inner=spoiling), **MASKS[masks])(params, xs)
    assert_close(got, with_gradient(cell, lax.scan, **MASKS[masks])(params, xs), 1e-13)


def test_depth_under_lengths():
    cell = cell_of(gated)
    params, xs = cell.init(None, None), jnp.ones((1000, B, D))
    run = lambda scan: depth(lambda p, x: rnn.unroll(cell, p, x, lengths=LENGTHS, scan=scan), params, xs)
    assert run(rnn.parallel()) < 260 and run(lax.scan) > 5000


@pytest.mark.parametrize("batched", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_nan_before_a_reset_reaches_nothing_after_it(batched):
    """Such a sequence goes in order, with the guard; under vmap as well, without the clean one's spoiling."""
    cell, xs = cell_of(gated), drawn()
    params = cell.init(None, None)
    bad = xs.at[2, 0].set(jnp.nan)
    seen = jnp.ones((T, B, 1), bool).at[:5, 0].set(False)

    def value(scan, params, xs):
        state, ys = rnn.unroll(cell, params, xs, resets=RESETS, scan=scan)
        return scalar(state, jnp.where(seen, ys, 0.0)), ys

    def find(scan, xs):
        one = jax.value_and_grad(lambda p, x: value(scan, p, x), (0, 1), has_aux=True)
        return jax.jit(jax.vmap(lambda x: one(params, x)) if batched else lambda x: one(params, x))(xs)

    pair = lambda xs: jnp.stack([xs, xs + 0.1]) if batched else xs
    got, expected = find(rnn.parallel(), pair(bad)), find(lax.scan, pair(bad))
    (_, ys), grads = got
    assert jnp.isnan(ys).any() and all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert_close(jax.tree.map(jnp.nan_to_num, got), jax.tree.map(jnp.nan_to_num, expected), 2e-5)


def test_a_nan_in_padding_reaches_nothing_and_leaves_it_in_parallel():
    cell, xs = cell_of(gated), drawn()
    params = cell.init(None, None)
    bad = xs.at[13:, 1].set(jnp.nan)
    find = with_gradient(cell, rnn.parallel(inner=spoiling), **MASKS["both"])
    assert_close(find(params, bad), find(params, jnp.where(jnp.isnan(bad), 0.0, bad)), 0)


def test_a_choice_by_hand_cuts_a_nan_off(x64):
    """In a step without `resettable` the values after the choice are the loop's, finite."""
    step = lambda h, x: (jnp.where(x > 5, 0.0, h) * 0.9 + x,) * 2
    xs = jnp.ones((30, 2)).at[3, 0].set(jnp.nan).at[11].set(6.0)
    both = jax.jit(lambda xs: [scan(step, jnp.zeros(2), xs) for scan in (rnn.parallel(), lax.scan)])(xs)
    (end, ys), (end0, ys0) = jax.tree.map(np.asarray, both)
    assert np.isfinite(end).all() and (np.isnan(ys) == np.isnan(ys0)).all()
    assert_close(jax.tree.map(np.nan_to_num, (end, ys)), jax.tree.map(np.nan_to_num, (end0, ys0)), 1e-13)


def test_keys_reach_every_step():
    """A cell that draws, with keys for each step, and one mask for all."""
    net = rnn.dropout(cell_of(gated), 0.4)
    params, xs, key = net.init(jax.random.key(0), jnp.ones((B, D))), drawn(), jax.random.key(5)
    run = lambda scan: jax.jit(lambda p, xs: rnn.unroll(net, p, xs, key=key, lengths=LENGTHS, scan=scan))(params, xs)
    assert_close(run(rnn.parallel(inner=spoiling)), run(lax.scan), 1e-6)


# --- strict promotion, as everywhere in these tests ------------------------------------------------


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_scalar_gates_of_matrices_in_strict_dtypes_and_ranks(dtype):
    def step(state, x):
        memory, top_tm1 = state
        f, i = jax.nn.log_sigmoid(x[..., 0]), x[..., 1]
        top = jnp.maximum(f + top_tm1, i)
        kept, new = jnp.exp(f + top_tm1 - top)[..., None, None], jnp.exp(i - top)[..., None, None]
        memory = kept * memory + new * (x[..., :2, None] * x[..., None, :3])
        return (memory, top), jnp.sum(memory, (-1, -2))

    xs = drawn(dtype)
    start = (jnp.zeros((B, 2, 3), dtype), jnp.full((B,), -3, dtype))
    value = lambda scan, xs: jnp.sum(scan(step, start, xs)[1].astype(jnp.float32) ** 2)
    find = lambda scan: jax.jit(jax.value_and_grad(lambda xs: value(scan, xs)))(xs)
    (got, d_got), (expected, d_expected) = find(rnn.parallel(inner=spoiling)), find(lax.scan)
    off, largest = (float(jnp.max(jnp.abs(d))) for d in (d_got - d_expected, d_expected))
    assert abs(got - expected) <= (1e-5 if dtype == jnp.float32 else 2e-2) * expected
    assert off <= (1e-5 if dtype == jnp.float32 else 5e-2) * largest


def test_a_sum_in_16_bits_is_rounded_once():
    """A decay of 0.999 in a bfloat16 state: a loop stands still at 256, where one more is rounded away."""

    def step(h, x):
        wide = h.astype(jnp.float32) * 0.999 + x.astype(jnp.float32)
        return wide.astype(jnp.bfloat16), ()

    xs = jnp.ones(2000, jnp.bfloat16)
    exact = (1 - 0.999**2001) / 0.001
    last = lambda scan: float(jax.jit(lambda h, xs: scan(step, h, xs)[0])(xs[0], xs))
    assert last(lax.scan) == 256 and abs(last(rnn.parallel()) - exact) < exact / 256
