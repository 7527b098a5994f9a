"""Every cell under every scan equals the plain Python loop, in every dtype and under every transformation.

Pairs are covered: each cell meets each scan in one of the modes (of scans made of scans a third), and every
transformation under some of the scans; each dtype meets each cell. In the fast set each cell meets one scan in float64;
the slow set is the rest.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from tests import reference
from tests.reference import assert_close, scalar
from tests.zoo import CELLS, SCANS, WIDE, D, rounded, sequence

T, B = 5, 2
COMPOSED = {n for n in SCANS if n.startswith(("checkpointed(python", "checkpointed(fiss", "truncated", "randomly"))}
TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 6e-2}


def problem(name, dtype):
    cell = CELLS[name](jnp.dtype(dtype))
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((B, D), dtype))
    params = rounded(jax.tree.map(lambda a: a + 0.1 if jnp.issubdtype(a.dtype, jnp.floating) else a, params), dtype)
    state = cell.initial_state(params, (B,))
    bumped = jax.tree.map(lambda a: a + jnp.asarray(0.2, a.dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a, state)
    return cell, params, sequence(1, (T, B), dtype), bumped


def product_of(*axes, fast, among=lambda *at: True):
    """Those combinations of which `among` holds, by places on the axes; slow are those that `fast` does not choose."""
    places = itertools.product(*map(enumerate, axes))
    return [
        pytest.param(*values, marks=[] if fast(*at) else pytest.mark.slow)
        for at, values in (zip(*each, strict=True) for each in places)
        if among(*at)
    ]


MODES = {
    "plain": {},
    "everything": {
        "lengths": jnp.array([3, 5]),
        "resets": jnp.array([[0, 0], [1, 0], [0, 0], [0, 1], [0, 0]], bool),
        "key": True,
        "reverse": True,
    },
}


def options(mode):
    return {k: jax.random.key(7) if k == "key" else v for k, v in MODES[mode].items()}


@functools.cache
def expected(name, mode, dtype):
    cell, params, xs, state = problem(name, dtype)

    def run(params, xs, state):
        out = reference.unroll(cell, params, xs, state, batch=(B,), **options(mode))
        return scalar(*out), out

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True, allow_int=True))(params, xs, state)


def is_fast(n, s):
    return (n + 3 * s) % 14 == 0


def meet(n, s):
    return list(SCANS)[s] not in COMPOSED or (n + s) % 3 == 0 or is_fast(n, s)


@pytest.mark.parametrize(("name", "scan"), product_of(CELLS, SCANS, fast=is_fast, among=meet))
def test_values_and_gradients_in_float64(name, scan, x64):
    cell, params, xs, state = problem(name, "float64")
    # Each cell and each scan meets both, and half of the fast set has each.
    mode = list(MODES)[(list(CELLS).index(name) // 2 + list(SCANS).index(scan)) % 2]

    def run(params, xs, state):
        out = rnn.unroll(cell, params, xs, state, scan=SCANS[scan], **options(mode))
        return scalar(*out), out

    got = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True, allow_int=True))(params, xs, state)
    assert_close(got, expected(name, mode, "float64"), TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("name", "scan", "dtype"),
    product_of(
        CELLS,
        ["lax.scan", "checkpointed(2)"],
        ["float32", "bfloat16"],
        fast=lambda n, s, d: n % 2 == 0 and (s, d) == (n // 2 % 2, n // 4 % 2),
    ),
)
def test_values_and_gradients_in_other_dtypes(name, scan, dtype):
    cell, params, xs, state = problem(name, dtype)

    def run(params, xs, state):
        out = rnn.unroll(cell, params, xs, state, scan=SCANS[scan])
        return scalar(*out), out

    got = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True, allow_int=True))(params, xs, state)
    assert_close(got, expected(name, "plain", dtype), TOLERANCE[dtype])
    state, ys = got[0][1]
    assert floats_in(ys) <= {jnp.dtype(dtype)}
    assert floats_in(state) <= ({jnp.dtype(dtype), jnp.dtype("float32")} if name in WIDE else {jnp.dtype(dtype)})


def floats_in(tree):
    return {a.dtype for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)}


@pytest.mark.parametrize(
    ("name", "scan"),
    product_of(CELLS, SCANS, fast=lambda n, s: (n + 5 * s) % 27 == 0, among=lambda n, s: (n + 5 * s) % 27 % 5 == 0),
)
def test_forward_mode_and_vmap(name, scan, x64):
    """jvp agrees with the gradient; vmap around unroll equals a loop over the batch; vmap of grad, grad of vmap."""
    cell, params, xs, state = problem(name, "float64")

    def run(params, xs, state):
        return scalar(*rnn.unroll(cell, params, xs, state, scan=SCANS[scan]))

    single = jax.vmap(run, (None, 1, 0))

    @jax.jit
    def compute(params, xs, state):
        _, slope = jax.jvp(lambda xs: run(params, xs, state), (xs,), (jnp.cos(xs),))
        around = single(params, xs, state)
        inside = jax.grad(lambda p: jnp.sum(single(p, xs, state)), allow_int=True)(params)
        outside = jax.vmap(jax.grad(run, allow_int=True), (None, 1, 0))(params, xs, state)
        return slope, around, inside, jax.tree.map(lambda a: jnp.sum(a, axis=0), outside)

    slope, around, inside, outside = compute(params, xs, state)
    (_, _), (_, dxs, _) = expected(name, "plain", "float64")
    assert_close(slope, jnp.sum(dxs * jnp.cos(xs)), 1e-10)
    one_by_one = [
        scalar(*reference.unroll(cell, params, xs[:, b], jax.tree.map(lambda a, b=b: a[b], state), batch=()))
        for b in range(B)
    ]
    assert_close(around, jnp.stack(one_by_one), 1e-10)
    assert_close(inside, outside, 1e-10)
