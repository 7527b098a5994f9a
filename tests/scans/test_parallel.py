"""`parallel`: which form is found, the same results as in order, what it costs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.engine.parallel_program import way_of
from jaxrnn.engine.step import traced
from jaxrnn.scans import linear_scan
from tests.choice import slow_but_for
from tests.scans.recurrences import STEPS, D, problem

pytestmark = pytest.mark.usefixtures("lenient")


def ways(step, carry, x):
    return [str(way_of(stage.loop)) for stage in traced(step, carry, x).parts(separate=True).stages]


def difference(got, expected):
    """The largest difference of any leaf, relative to the largest number in it."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(
        (float(jnp.max(jnp.abs(a - b)) / (1e-12 + jnp.max(jnp.abs(b)))) for a, b in pairs if jnp.size(a)), default=0
    )


def size(tree):
    return sum(jnp.sum(jnp.abs(a) ** 2) for a in jax.tree.leaves(tree))


def loss(scan, step, params, state, xs, reverse=False):
    state, ys = scan(partial(step, params), state, xs, reverse=reverse)
    return jnp.sum(jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape) * ys**2) + size(state)


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_the_form_is_found(name, x64):
    step, params, state, xs = problem(name, 3)
    assert ways(partial(step, params), state, xs[0]) == [f"{kind}, in parallel" for kind in STEPS[name][1]]


W = jnp.eye(3)
IN_ORDER = {
    "a product": (lambda h, x: jnp.tanh(h @ W + x), "dot_general of the carry"),
    "a product, linear": (lambda h, x: h @ W + x, "dot_general of the carry"),
    "an activation": (lambda h, x: jnp.tanh(0.5 * h + x), "tanh of the carry"),
    "squared": (lambda h, x: h * h + x, "mul of two values that need the carry"),
    "divides": (lambda h, x: x / (h + 2), "div of two values that need the carry"),
    "chosen by itself": (lambda h, x: jnp.where(h > 0, h, x), "gt of the carry"),
    "shifted": (lambda h, x: jnp.roll(h, 1) + x, "slice of the carry"),
    "averaged": (lambda h, x: jnp.mean(h) + x, "reduce_sum of the carry"),
    "of two bounds": (lambda h, x: jnp.maximum(h, -h), "max of two values that need the carry"),
    "in a loop": (lambda h, x: lax.fori_loop(0, 2, lambda i, a: 2 * a, h), "scan of the carry"),
    "a sum of clipped": (lambda h, x: jnp.maximum(h, x) + h, "add of the carry: a sum of values that were clipped"),
    "a scaled logarithm": (lambda h, x: jnp.logaddexp(0.5 * h, x), "logaddexp of the carry: a logarithm of scaled"),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_has_no_form_is_named_and_runs_in_order(name):
    step, why = IN_ORDER[name]
    both = lambda h, x: (step(h, x),) * 2
    (said,) = ways(both, jnp.ones(3), jnp.ones(3))
    assert said.startswith(f"in order ({why}")
    xs, h = jax.random.normal(jax.random.key(0), (5, 3)) / 4, jnp.full(3, 0.1)
    assert difference(rnn.parallel()(both, h, xs), lax.scan(both, h, xs)) == 0


def test_explain_says_how_each_component_is_run():
    x = jnp.ones((2, D))
    say = lambda cell: rnn.analysis.explain(cell, cell.init(jax.random.key(0), x), x).parallel
    assert say(rnn.lstm(4)) == ("state.h, state.c: in order (dot_general of the carry)",)
    assert say(rnn.ind_rnn(4, activation=lambda x: x)) == ("state: affine, in parallel",)
    both = rnn.stack(rnn.ind_rnn(4), rnn.elman(4))
    assert say(both) == ("state[0]: clipped, in parallel", "state[1]: in order (dot_general of the carry)")
    assert "under parallel():\n    state[0]: clipped" in str(
        rnn.analysis.explain(both, both.init(jax.random.key(0), x), x)
    )


def test_a_scalar_gate_of_a_matrix_stays_thin(x64):
    """The coefficients of [B, K, V] memories are [B, 1, 1]."""
    step, params, state, xs = problem("matrix_memory", 3)
    memory = traced(partial(step, params), state, xs[0]).parts(separate=True).stages[1].loop
    slopes = [a.aval.shape for a in way_of(memory).form.coefficients.outputs]
    assert slopes == [(2, 1, 1), (2, 2, 3)]


# --- the same results -----------------------------------------------------------------------------


def seven_ways(scan, segmented, step, params, state, xs):
    """Values, gradient, jvp, vmap of gradient, gradient of gradient, segments, in reverse."""
    given = (params, state, xs)
    along = jax.tree.map(lambda a: jnp.cos(7 * jnp.real(a)).astype(a.dtype), given)
    run = lambda p, h, xs: scan(partial(step, p), h, xs)
    gradient = lambda scan, *given, **how: jax.grad(partial(loss, scan, step, **how), (0, 1, 2))(*given)
    of_one = lambda h, x: gradient(scan, params, h, x)
    return {
        "values": run(*given),
        "gradient": gradient(scan, *given),
        "jvp": jax.jvp(run, given, along)[1],
        "vmap of gradient": jax.vmap(of_one, (0, 1))(state, xs),
        "gradient of gradient": jax.grad(lambda *g: size(gradient(scan, *g)), (0, 1, 2))(*given),
        "segments": gradient(segmented, *given),
        "reverse": gradient(scan, *given, reverse=True),
    }


FAST = ("gated",)


@pytest.mark.parametrize("name", slow_but_for(FAST, STEPS))
def test_seven_ways_equal_lax_scan(name, x64):
    """21 steps: groups of 8 of which the last is not full, and segments of 9 of which the last is shorter."""
    given = problem(name, 21)
    got = jax.jit(partial(seven_ways, rnn.parallel(), rnn.parallel(9), given[0]))(*given[1:])
    expected = jax.jit(partial(seven_ways, lax.scan, lax.scan, given[0]))(*given[1:])
    assert {way: difference(got[way], expected[way]) < 1e-13 for way in got} == dict.fromkeys(got, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_thousand_steps(name, x64):
    step, *given = problem(name, 1000)
    find = lambda scan: jax.jit(jax.value_and_grad(partial(loss, scan, step), (0, 1, 2)))(*given)
    expected = find(lax.scan)
    for scan in (rnn.parallel(), rnn.parallel(300)):
        assert difference(find(scan), expected) < 1e-13


LATER = [(1, False), (2, False), (8, True), (9, False), (1000, True), (0, True), (1000, False)]
SIZES = [
    (0, False),
    (1, True),
    (2, True),
    (8, False),
    (9, True),
    *(pytest.param(*s, marks=pytest.mark.slow) for s in LATER),
]


@pytest.mark.parametrize(("steps", "reverse"), SIZES)
def test_any_number_of_steps(steps, reverse, x64):
    step, *given = problem("gated", steps)
    find = lambda scan: jax.jit(jax.value_and_grad(partial(loss, scan, step, reverse=reverse), (0, 1, 2)))(*given)
    assert difference(find(rnn.parallel()), find(lax.scan)) < 1e-13


def test_without_inputs(x64):
    step = lambda h, _: (0.9 * h + 0.1, h)
    find = lambda scan: jax.jit(jax.value_and_grad(lambda h: size(scan(step, h, None, length=30))))(jnp.arange(3.0))
    assert difference(find(rnn.parallel()), find(lax.scan)) < 1e-13


def test_whole_numbers_and_keys_beside_it(x64):
    """A counter is solved as well, in its own arithmetic; a key that is split again and again goes in order."""

    def step(state, x):
        n, h, key = state
        key, k_t = jax.random.split(key)
        h = h * 0.9 + x + jax.random.uniform(k_t, x.shape, x.dtype)
        n = 3 * n + 7
        return (n, h, key), (h / (1 + n % 5).astype(h.dtype), n)

    xs = jax.random.normal(jax.random.key(1), (40, 3))
    start = (jnp.int32(5), jnp.ones(3), jax.random.key(3))

    def find(scan):
        def value(xs):
            out = scan(step, start, xs)
            return jnp.sum(out[1][0] ** 2), out

        return jax.jit(jax.value_and_grad(value, has_aux=True))(xs)

    (got, ((n, h, key), (ys, ns))), d_xs = find(rnn.parallel())
    (expected, ((n0, h0, key0), (ys0, ns0))), d_xs0 = find(lax.scan)
    assert ns.dtype == jnp.int32 and (ns == ns0).all() and n == n0
    assert (jax.random.key_data(key) == jax.random.key_data(key0)).all()
    assert difference((got, h, ys, d_xs), (expected, h0, ys0, d_xs0)) < 1e-13
    assert [w.split()[0] for w in ways(step, start, xs[0])] == ["affine,", "in", "affine,"]


@pytest.mark.parametrize(
    "around", ["truncated", *(pytest.param(a, marks=pytest.mark.slow) for a in ("checkpointed", "within"))]
)
def test_inside_other_scans(around, x64):
    step, *given = problem("gated", 24)
    outer = {
        "checkpointed": lambda inner: rnn.checkpointed(10, inner=inner),
        "truncated": lambda inner: rnn.truncated(10, inner=inner),
        "within": lambda inner: rnn.within("1MB", inner=inner),
    }[around]
    find = lambda scan: jax.jit(jax.value_and_grad(partial(loss, outer(scan), step), (0, 1, 2)))(*given)
    assert difference(find(rnn.parallel()), find(lax.scan)) < 1e-13


def test_a_step_with_a_derivative_of_its_own_keeps_it(x64):
    """The value is affine; the derivative is what a custom rule and a stop_gradient say."""

    @jax.custom_jvp
    def halved(h):
        return h * 0.5

    halved.defjvp(lambda given, moved: (halved(*given), 3 * moved[0]))

    def step(h, x):
        h = halved(h) + lax.stop_gradient(h) * 0.25 + x
        return h, h

    xs = jax.random.normal(jax.random.key(1), (20, 3)) / 8
    assert ways(step, xs[0], xs[0]) == ["affine, in parallel"]
    find = lambda scan: jax.jit(jax.value_and_grad(lambda xs: jnp.sum(scan(step, xs[0], xs)[1] ** 2)))(xs)
    assert difference(find(rnn.parallel()), find(lax.scan)) < 1e-13


# --- linear_scan ----------------------------------------------------------------------------------


def in_order(a, b, h, reverse):
    def body(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(body, h, (jnp.broadcast_to(a, (len(b), *a.shape[1:])), b), reverse=reverse)[1]


LINEAR = [
    ((20, 2, 1), False),
    ((1, 2, 3), True),
    *(pytest.param(*at, marks=pytest.mark.slow) for at in [((20, 2, 1), True), ((1, 2, 3), False)]),
    *(pytest.param((20, 2, 3), reverse, marks=pytest.mark.slow) for reverse in (False, True)),
]


@pytest.mark.parametrize(("shape", "reverse"), LINEAR)
def test_linear_scan_and_its_derivatives(shape, reverse, x64):
    a, b, h = (jax.random.normal(jax.random.key(n), s) for n, s in enumerate([shape, (20, 2, 3), (2, 3)]))
    given = a / 2, b, h

    def everything(fn):
        value = lambda *g: jnp.sum(jnp.sin(fn(*g, reverse)))
        twice = jax.grad(lambda *g: size(jax.grad(value, (0, 1, 2))(*g)), (0, 1, 2))
        return fn(*given, reverse), twice(*given), jax.jvp(jax.grad(value, (0, 1, 2)), given, given)

    assert difference(jax.jit(partial(everything, linear_scan))(), jax.jit(partial(everything, in_order))()) < 1e-13


def test_linear_scan_of_whole_and_of_no_numbers():
    b = jnp.arange(20)
    assert (jax.jit(linear_scan)(jnp.ones((1,), int), b, jnp.asarray(0)) == np.cumsum(b)).all()
    assert linear_scan(b[:0], b[:0], b[0]).shape == (0,)


def test_small_whole_numbers_wrap_round_as_in_a_loop():
    step = lambda n, x: (n * jnp.int8(3) + x,) * 2
    xs = jnp.arange(60, dtype=jnp.int8)
    assert ways(step, xs[0], xs[0]) == ["affine, in parallel"]
    got, expected = jax.jit(lambda xs: [scan(step, xs[1], xs)[1] for scan in (rnn.parallel(), lax.scan)])(xs)
    assert (got == expected).all()


def test_linear_scan_says_what_is_wrong():
    one = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"h0 should be one step of b, got h0 float32\[3\] and b float32\[4,2\]"):
        linear_scan(one, one, jnp.ones(3))
    with pytest.raises(ValueError, match=r"a should be of b's rank and sizes, or 1 .* got a float32\[4\]"):
        linear_scan(one[:, 0], one, one[0])
    with pytest.raises(TypeError, match="one dtype, got float16, float32, float32"):
        linear_scan(one.astype(jnp.float16), one, one[0])


def test_what_overflows_together_but_not_by_itself_meets_a_zero(x64):
    """Slopes of 2 over 3,000 steps make inf; of a state that is zero until the last step they make zero."""
    b = jnp.zeros((3000, 1)).at[-1].set(1.0)
    step = lambda h, x: (2 * h + x,) * 2

    @jax.jit
    def found(a, h, b):
        return linear_scan(a, b, h), rnn.parallel()(step, h, b), lax.scan(step, h, b)

    solved, got, expected = found(jnp.full((1, 1), 2.0), jnp.zeros(1), b)
    assert solved[-1] == 1
    assert difference(got, expected) == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="parallel: segment must be a whole number of at least 1, got 0"):
        rnn.parallel(0)
    with pytest.raises(TypeError, match="parallel: inner must be a scan"):
        rnn.parallel(inner=None)
