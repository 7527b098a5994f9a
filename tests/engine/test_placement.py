"""What leaves a loop is decided by bytes: no step takes much more memory than under `lax.scan`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.engine.minimum_cut import Network
from jaxrnn.engine.program import steps_at_once
from jaxrnn.engine.step import traced
from tests.choice import slow_but_for
from tests.reference import assert_close
from tests.zoo import CELLS, D

L, N, T = 20, 32, 50  # rows of a buffer, features, steps
KEYS = jax.random.split(jax.random.key(0), 4)
Q, K = (jax.random.normal(k, (N, N)) / 6 for k in KEYS[:2])
V, XS = jax.random.normal(KEYS[2], (N, N)) / 6, jax.random.normal(KEYS[3], (T, N))


def cache_of_keys(v, c, x):
    """Attention over a ring buffer: the output reads a carry that is large and changes by a row."""
    rows, n = c
    rows = lax.dynamic_update_slice(rows, (x @ K)[None], (n % L, 0))
    return (rows, n + 1), jax.nn.softmax(rows @ (x @ Q)) @ rows @ v


def delayed(v, c, x):
    rows, n = c
    y = lax.dynamic_index_in_dim(rows, (n + 1) % L, keepdims=False)
    return (lax.dynamic_update_slice(rows, x[None], (n % L, 0)), n + 1), y + x


def pairwise(v, h, x):
    h = jnp.tanh(h @ v + x)
    return h, jax.nn.softmax(h[:, None] * h[None, :]) @ h


def convolved(v, h, x):
    """A small filter over a large frame."""
    where = ("NHWC", "HWIO", "NHWC")
    frame, filters = jnp.outer(x, x)[None, :, :, None], jnp.ones((3, 3, 1, 16))
    z = lax.conv_general_dilated(frame, filters, (1, 1), "SAME", dimension_numbers=where).mean((0, 1, 2))
    return jnp.tanh(h @ v + z @ jnp.ones((16, N))), h


BUFFER = (jnp.zeros((L, N)), 0)
STEPS = {
    "a cache of keys": (cache_of_keys, BUFFER),
    "a delay": (delayed, BUFFER),
    "all pairs": (pairwise, jnp.zeros(N)),
    "frames": (convolved, jnp.zeros(N)),
}
FAST = ("a cache of keys", "frames")
each_step = pytest.mark.parametrize(
    "step, first",
    [pytest.param(*STEPS[name], id=name, marks=() if name in FAST else pytest.mark.slow) for name in STEPS],
)


def outputs(step, first, scan):
    return lambda v, xs: scan(lambda c, x: step(v, c, x), first, xs)[1]


def loss(step, first, scan):
    return lambda v, xs: jnp.sum(jnp.sin(outputs(step, first, scan)(v, xs)))


def segment_bytes(step, first, x):
    """What one segment reads, what its batched parts make, and what the loop emits for them."""
    found = traced(step, first, x)
    parts = found.parts()
    if not parts.pays:
        return 0
    work = [v for part in parts.batched for e in part.equations for v in e.outvars]
    emitted = [v for stage in parts.stages for v in stage.loop.emitted]
    return steps_at_once(parts, T) * sum(v.aval.size * v.aval.dtype.itemsize for v in {*work, *emitted, *parts.xs})


@each_step
def test_the_forward_pass_takes_no_more_than_lax_scan_and_one_segment(step, first):
    ours, plain = (rnn.analysis.temp_bytes(outputs(step, first, s), V, XS) for s in (rnn.scan, lax.scan))
    segment = segment_bytes(partial(step, V), first, XS[0])
    assert ours <= 1.25 * plain + segment, (ours, plain)
    assert segment < T * N * 4 * 8  # and a segment holds no buffers, frames or pairs


@each_step
@pytest.mark.parametrize("by", [0, 1], ids=["by the weight", "by the input"])
def test_the_gradient_takes_no_more_than_lax_scan_s(step, first, by):
    found = [rnn.analysis.temp_bytes(jax.grad(loss(step, first, s), by), V, XS) for s in (rnn.scan, lax.scan)]
    assert found[0] <= 1.25 * found[1] + segment_bytes(partial(step, V), first, XS[0]), found


@each_step
def test_values_and_gradients_are_lax_scan_s(step, first):
    got, expected = (jax.jit(jax.value_and_grad(loss(step, first, s), (0, 1)))(V, XS) for s in (rnn.scan, lax.scan))
    assert_close(got, expected, 2e-4)


FAST_CELLS = ("elman", "lstm", "gru", "dropout_step", "mlstm")


@pytest.mark.parametrize("name", slow_but_for(FAST_CELLS, CELLS))
def test_no_cell_takes_more_than_lax_scan_and_one_segment(name):
    cell, batch = CELLS[name](jnp.float32), 16
    x = jax.ShapeDtypeStruct((batch, D), jnp.float32)
    params, xs = jax.jit(cell.init)(jax.random.key(0), jnp.zeros(x.shape)), jax.ShapeDtypeStruct((T, *x.shape), x.dtype)
    floats = lambda tree: sum(jnp.sum(a) for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating))

    def grad(scan):
        run = lambda params, xs: floats(rnn.unroll(cell, params, xs, scan=scan))
        return rnn.analysis.temp_bytes(jax.grad(run, allow_int=True), params, xs)

    start = jax.eval_shape(lambda p: cell.initial_state(p, (batch,)), params)
    segment = segment_bytes(lambda s, x: cell.step(params, s, x), start, x)
    assert grad(rnn.scan) <= grad(lax.scan) + 2 * segment + 2048  # forwards and backwards; and loops' own numbers


# --- the cut itself -----------------------------------------------------------------------------


def test_a_product_with_a_weight_leaves_and_a_product_of_states_stays():
    def step(h, x):
        h = jnp.tanh(h @ V + x @ Q)
        return h, (h @ K, jnp.outer(h, h) @ h)

    parts = traced(step, jnp.zeros(N), XS[0]).parts()
    count = lambda equations: [e.primitive.name for e in equations].count("dot_general")
    (stage,) = parts.stages
    assert (count(stage.batched.equations), count(stage.loop.equations), count(parts.last.equations)) == (1, 2, 1)


def test_what_is_bound_to_its_step_never_leaves():
    @jax.custom_vjp
    def clipped(w):
        return w

    clipped.defvjp(lambda w: (w, None), lambda _, g: (jnp.clip(g, -1, 1),))
    parts = traced(lambda h, x: (h, x @ clipped(V)), jnp.zeros(N), XS[0]).parts()
    assert not parts.pays and parts.once == [] and not parts.last.equations
    assert any("custom_vjp" in e.primitive.name for e in parts.stages[0].loop.equations)


def test_a_cheapest_cut_leaves_the_fewest_nodes_at_the_end():
    network = Network()
    for a, b, room in [("start", "a", 5), ("a", "b", 3), ("b", "c", 3), ("c", "end", 9)]:
        network.link(a, b, room)
    assert network.end_side() == {"end", "c"}


def test_a_cut_is_as_cheap_as_any_found_by_trying_all():
    random = np.random.default_rng(0)
    for _ in range(30):
        nodes = ["start", *range(4), "end"]
        rooms = {(a, b): int(random.integers(0, 6)) for a in nodes for b in nodes if a != b}
        network = Network()
        for (a, b), room in rooms.items():
            network.link(a, b, room)
        cost = lambda side, rooms=rooms: sum(r for (a, b), r in rooms.items() if a not in side and b in side)
        sides = [{"end", *(n for n in range(4) if bits >> n & 1)} for bits in range(16)]
        assert cost(network.end_side()) == min(map(cost, sides))
