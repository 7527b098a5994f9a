"""What once made `jaxrnn.scan` differ from `lax.scan`, or fail where that does not; each with its mechanism."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxrnn as rnn
from tests.reference import assert_close

T, N = 6, 3
W = jnp.asarray(np.random.default_rng(0).normal(size=(N, N)) / 2, jnp.float32)
XS = jnp.asarray(np.random.default_rng(1).normal(size=(T, N)), jnp.float32)
SCANS = {
    "scan": rnn.scan,
    "segments of 4": rnn.fissioned(4),
    "separate": rnn.fissioned(2, separate=True),
    "checkpointed": rnn.checkpointed(2, inner=rnn.scan),
    "revolve": rnn.revolve(2, 2),
    "within": rnn.within("1MB"),
}
every_scan = pytest.mark.parametrize("scan", SCANS.values(), ids=list(SCANS))
FEW = ("scan", "segments of 4", "revolve")
LATER = [pytest.param(SCANS[name], id=name, marks=pytest.mark.slow) for name in SCANS if name not in FEW]
few_scans_fast = pytest.mark.parametrize("scan", [*(pytest.param(SCANS[name], id=name) for name in FEW), *LATER])


def pairs(cases):
    """Each case under each scan; fast are `scan` and one other for each case, by turns."""
    at = [((i, case), (j, scan)) for i, case in enumerate(cases) for j, scan in enumerate(SCANS)]
    return [
        pytest.param(
            cases[case], SCANS[scan], id=f"{case}-{scan}", marks=() if j == 0 or (i + j) % 6 == 0 else pytest.mark.slow
        )
        for (i, case), (j, scan) in at
    ]


def gradient_of(step, scan, first=None):
    """The gradient by the weight of a loss on the carry and all outputs; step(W, h, x)."""

    def loss(w):
        h, ys = scan(functools.partial(step, w), jnp.zeros(N) if first is None else first, XS)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves((h, ys)) if jnp.issubdtype(a.dtype, jnp.floating))

    return jax.jit(jax.grad(loss))(W)


@functools.cache
def expected_of(step):
    return gradient_of(step, lax.scan)


# --- gradients that are their own business ------------------------------------------------------


@jax.custom_vjp
def clipped(w):
    return w


clipped.defvjp(lambda w: (w, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_vjp
def product(x, w):
    """x w, whose weight gets a gradient of norm one from each step."""
    return x @ w


def _product_bwd(kept, g):
    x, w = kept
    dw = jnp.outer(x, g)
    return w @ g, dw / (1e-3 + jnp.linalg.norm(dw))


product.defvjp(lambda x, w: (x @ w, (x, w)), _product_bwd)


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))

OWN_GRADIENTS = {
    "of the weight, where only the input needs it": lambda w, h, x: (h, x @ clipped(w)),
    "of the weight, in the recurrence": lambda w, h, x: (jnp.tanh(h @ clipped(w) + x), h @ clipped(w)),
    "of one weight, used twice": lambda w, h, x: ((c := clipped(w)), (jnp.tanh(h @ c + x @ c), h @ c))[1],
    "of a product with the input": lambda w, h, x: (jnp.tanh(h + product(x, w)), jnp.sin(product(h, w))),
    "of what is hoisted otherwise": lambda w, h, x: (jnp.tanh(h + x @ clipped(w / jnp.linalg.norm(w))), h),
    "of an activation": lambda w, h, x: (jnp.tanh(h + rounded(2 * x @ w)), rounded(h @ w)),
    "inside a checkpoint": lambda w, h, x: (jnp.tanh(h + jax.checkpoint(lambda a: a @ clipped(w))(x)), h),
    "inside a loop": lambda w, h, x: (jnp.tanh(h + lax.fori_loop(0, 2, lambda i, a: product(a, w), x)), h),
}


@pytest.mark.parametrize(("step", "scan"), pairs(OWN_GRADIENTS))
def test_a_gradient_rule_is_applied_once_for_each_step(step, scan):
    assert_close(gradient_of(step, scan), expected_of(step), 1e-5)


def test_the_figures_of_clipping_each_step_s_gradient():
    loss = lambda scan, w: jnp.sum(scan(lambda h, x: (h, x @ clipped(w)), jnp.zeros(1), jnp.ones((8, 1)))[1])
    for scan in (lax.scan, rnn.scan, rnn.fissioned(2), rnn.revolve(2, 4), rnn.within("1MB")):
        assert jax.grad(functools.partial(loss, scan))(jnp.ones((1, 1))).item() == pytest.approx(0.8)


# --- random numbers -----------------------------------------------------------------------------


def _noisy(w, h, key):
    noise = jax.random.normal(key, (N,)) @ w
    return jnp.tanh(h @ w + noise), jax.random.uniform(jax.random.fold_in(key, 1), (N,)) @ w * h


@pytest.mark.parametrize(("implementation", "scan"), pairs({n: n for n in ("threefry2x32", "rbg", "unsafe_rbg")}))
def test_the_same_numbers_are_drawn_with_any_keys(implementation, scan):
    keys = jax.random.split(jax.random.key(3, impl=implementation), T)

    def run(scan, w):
        h, ys = scan(functools.partial(_noisy, w), jnp.zeros(N), keys)
        return jnp.sum(h * jnp.arange(N, dtype=h.dtype)) + jnp.sum(ys**2)

    got, expected = (jax.jit(jax.value_and_grad(functools.partial(run, s)))(W) for s in (scan, lax.scan))
    assert_close(got, expected, 1e-5)


# --- complex values -----------------------------------------------------------------------------

COMPLEX = {
    "a readout": lambda w, h, x: (jnp.tanh(h @ w + x), jnp.abs(lax.complex(h @ w, h @ w.T) @ lax.complex(w, w.T))),
    "a Fourier transform of the state": lambda w, h, x: (jnp.tanh(h @ w + x), jnp.abs(jnp.fft.fft(h @ w))),
    "a Fourier transform of the input": lambda w, h, x: (jnp.tanh(h @ w + jnp.abs(jnp.fft.fft(x @ w))), h),
}


@pytest.mark.parametrize(("step", "scan"), pairs(COMPLEX))
def test_complex_values_in_what_leaves_the_loop(step, scan):
    assert_close(gradient_of(step, scan), expected_of(step), 1e-4)


@few_scans_fast
def test_a_complex_recurrence(scan):
    step = lambda w, h, x: (h * jnp.complex64(0.5 + 0.5j) + lax.complex(x @ w, x), jnp.real(h) ** 2 + jnp.imag(h))
    first = jnp.zeros(N, jnp.complex64)
    assert_close(gradient_of(step, scan, first), gradient_of(step, lax.scan, first), 1e-5)


# --- types, options, tracing --------------------------------------------------------------------


@every_scan
def test_weak_types_stay_weak(scan):
    step = lambda s, x: (s * 0.5 + 1.0, x @ W)
    (s, _), (expected, _) = scan(step, 1.0, XS), lax.scan(step, 1.0, XS)
    assert s.weak_type == expected.weak_type is True
    assert (s * jnp.bfloat16(1)).dtype == jnp.bfloat16


@every_scan
def test_options_of_lax_scan_are_understood(scan):
    step = lambda h, x: (jnp.tanh(h @ W + x), h @ W)
    got = scan(step, jnp.zeros(N), XS, unroll=2, _split_transpose=True)
    assert_close(got, lax.scan(step, jnp.zeros(N), XS), 1e-6)
    count = lambda **options: str(jax.make_jaxpr(lambda xs: scan(step, jnp.zeros(N), xs, **options))(XS)).count(
        "unroll=2"
    )
    assert count() == 0 and count(unroll=2) > 0


@pytest.mark.parametrize(
    "scan", [pytest.param(s, id=n, marks=() if n == "scan" else pytest.mark.slow) for n, s in SCANS.items()]
)
def test_nothing_leaks(scan):
    with jax.checking_leaks():
        gradient_of(lambda w, h, x: (jnp.tanh(h @ w + x), h), scan)


def test_a_step_is_run_as_it_is_where_jit_is_disabled():
    seen = []

    def step(h, x):
        seen.append(float(x[0]))  # a value, not a tracer
        return jnp.tanh(h @ W + x), h

    with jax.disable_jit():
        got = rnn.scan(step, jnp.zeros(N), XS)
    np.testing.assert_allclose(seen, XS[:, 0])
    assert_close(got, rnn.scan(lambda h, x: (jnp.tanh(h @ W + x), h), jnp.zeros(N), XS), 1e-6)


def test_an_error_names_the_scan_that_was_called():
    for scan, name in ((rnn.scan, "jaxrnn.scan"), (rnn.revolve(2), "revolve"), (rnn.within("1MB"), "within")):
        with pytest.raises(ValueError, match=f"^{name}: xs has no arrays, so length must be given"):
            scan(lambda h, x: (h, x), jnp.zeros(N))


# --- exported programs, callbacks ---------------------------------------------------------------


@pytest.mark.parametrize("shape", ["t, 8, 3", "6, b, 3", "t, b, 3"])
def test_a_program_with_symbolic_sizes_is_exported(shape):
    def program(w, xs):
        return rnn.scan(lambda h, x: (jnp.tanh(h @ w + x @ w), h @ w), jnp.zeros_like(xs[0]), xs)

    xs = jax.random.normal(jax.random.key(0), (6, 8, 3))
    types = jax.ShapeDtypeStruct(W.shape, W.dtype), jax.ShapeDtypeStruct(export.symbolic_shape(shape), xs.dtype)
    assert_close(export.export(jax.jit(program))(*types).call(W, xs), program(W, xs), 1e-5)


def test_scans_that_lay_out_the_loop_say_that_they_need_its_length():
    xs = jax.ShapeDtypeStruct(export.symbolic_shape("t, 3"), jnp.float32)
    for scan in (rnn.checkpointed(2), rnn.revolve(2), rnn.within("1MB"), rnn.truncated(2), rnn.python_loop()):
        program = jax.jit(lambda xs, scan=scan: scan(lambda h, x: (h + x, h), jnp.zeros(3), xs))
        with pytest.raises(ValueError, match=r"the number of steps must be known, got the symbol t; export with"):
            export.export(program)(xs)
    batch = jax.ShapeDtypeStruct(export.symbolic_shape("6, b"), jnp.float32)
    with pytest.raises(ValueError, match="within, plan: sizes must be known to be priced"):
        export.export(jax.jit(lambda xs: rnn.within("1MB")(lambda h, x: (h + x, h), xs[0], xs)))(batch)


def test_a_callback_without_a_derivative_runs_where_nothing_is_differentiated():
    sine = lambda h: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), h, vmap_method="sequential")
    step = lambda h, x: (h + x, sine(h))
    run = lambda scan: jax.vmap(lambda xs: scan(step, jnp.float32(0), xs))(XS.T)
    for scan in (rnn.scan, rnn.within("1MB"), rnn.checkpointed(2)):
        assert_close(run(scan), run(lax.scan), 1e-6)
