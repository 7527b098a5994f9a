"""What `parallel` costs beside `lax.scan`, and beside `lax.associative_scan` differentiated by JAX: exact figures."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.analysis import depth, flops, temp_bytes

pytestmark = pytest.mark.usefixtures("lenient")


def min_gru(D, H):
    """Feng et al. 2024."""
    params = {"z": jnp.ones((D, H)), "c": jnp.ones((D, H))}

    def step(p, h, x):
        z = jax.nn.sigmoid(x @ p["z"])
        h = (1 - z) * h + z * (x @ p["c"])
        return h, h

    return params, step, jnp.zeros(H)


def lru(D, N):
    """Orvieto et al. 2023."""
    real = {name: jnp.ones(N) for name in ("r", "w", "g")}
    params = {**real, "b": jnp.ones((D, N), jnp.complex64), "c": jnp.ones((N, D), jnp.complex64), "d": jnp.ones(D)}

    def step(p, h, x):
        turn = jnp.exp(-jnp.exp(p["r"]) + 1j * jnp.exp(p["w"]))
        h = turn * h + jnp.exp(p["g"]) * (x @ p["b"])
        return h, (h @ p["c"]).real + p["d"] * x

    return params, step, jnp.zeros(N, jnp.complex64)


def mamba(D, N, R=4):
    """The core of Gu and Dao 2023: N states for each of D channels."""
    names = {"a": (D, N), "b": (D, N), "c": (D, N), "w": (D, R), "v": (R, D), "s": (D,), "d": (D,)}
    params = {name: jnp.ones(shape) for name, shape in names.items()}

    def step(p, h, x):
        pace = jax.nn.softplus(x @ p["w"] @ p["v"] + p["s"])
        h = jnp.exp(pace[..., None] * -jnp.exp(p["a"])) * h + (pace * x)[..., None] * (x @ p["b"])[..., None, :]
        return h, jnp.sum(h * (x @ p["c"])[..., None, :], -1) + p["d"] * x

    return params, step, jnp.zeros((D, N))


def mlstm(D, K):
    """Beck et al. 2024, stabilised."""
    params = {"q": jnp.ones((D, K)), "k": jnp.ones((D, K)), "v": jnp.ones((D, K)), "i": jnp.ones(D), "f": jnp.ones(D)}

    def step(p, state, x):
        C, n, m = state
        q, k, v = x @ p["q"], x @ p["k"] / K**0.5, x @ p["v"]
        i, f = x @ p["i"], jax.nn.log_sigmoid(x @ p["f"])
        top = jnp.maximum(f + m, i)
        f, i = jnp.exp(f + m - top)[..., None], jnp.exp(i - top)[..., None]
        C = f[..., None] * C + i[..., None] * (k[..., :, None] * v[..., None, :])
        n = f * n + i * k
        return (C, n, top), jnp.einsum("...k,...kv->...v", q, C) / jnp.maximum(jnp.abs(jnp.sum(q * n, -1)), 1)[
            ..., None
        ]

    return params, step, (jnp.zeros((K, K)), jnp.zeros(K), jnp.zeros(()))


def associative(p, h, xs):
    """What people write by hand for a minGRU."""
    z = jax.nn.sigmoid(xs @ p["z"])
    a, b = 1 - z, z * (xs @ p["c"])
    hs = lax.associative_scan(lambda f, g: (g[0] * f[0], g[0] * f[1] + g[1]), (a, b.at[0].add(a[0] * h)))[1]
    return hs[-1], hs


def gradient_of(make, T, B, D, H):
    """(of a scan: its gradient by parameters and inputs), and what it takes: types alone."""
    params, step, state = make(D, H)
    state = jax.tree.map(lambda a: jnp.broadcast_to(a, (B, *a.shape)), state)
    given = jax.eval_shape(lambda: (params, state, jnp.zeros((T, B, D))))
    by_hand = lambda run: jax.grad(lambda *g: jnp.sum(run(*g)[1] ** 2), (0, 2))
    return lambda scan: by_hand(lambda p, h, xs: scan(partial(step, p), h, xs)), by_hand, given


def lines(fn, given):
    return len(jax.jit(fn).lower(*given).compile().as_text().splitlines())


def test_depth_and_operations_of_a_min_gru():
    gradient, by_hand, given = gradient_of(min_gru, 1024, 8, 64, 64)
    short = depth(gradient(rnn.parallel()), *given)
    assert short <= 400 and depth(gradient(lax.scan), *given) == 13314
    assert flops(gradient(rnn.parallel()), *given) <= 1.0 * flops(gradient(lax.scan), *given)
    gradient, _, given = gradient_of(min_gru, 8192, 8, 64, 64)
    assert depth(gradient(rnn.parallel()), *given) <= 1.4 * short


def test_bytes_and_lines_of_a_min_gru():
    gradient, by_hand, given = gradient_of(min_gru, 1024, 8, 64, 64)
    ours, hand = gradient(rnn.parallel()), by_hand(associative)
    taken = temp_bytes(ours, *given)
    assert taken <= 1.05 * temp_bytes(gradient(lax.scan), *given)
    assert taken <= 0.55 * temp_bytes(hand, *given)
    assert lines(ours, given) <= 0.65 * lines(hand, given)


@pytest.mark.slow
def test_an_lru_whose_slopes_are_the_same_at_every_step():
    gradient, _, given = gradient_of(lru, 1024, 8, 64, 64)
    ours, loop = gradient(rnn.parallel()), gradient(lax.scan)
    assert flops(ours, *given) <= 1.2 * flops(loop, *given)
    assert temp_bytes(ours, *given) <= 2 * temp_bytes(loop, *given)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "sizes"), [(mamba, (1024, 8, 64, 16)), (mlstm, (1024, 4, 32, 16))])
def test_large_states_in_segments_take_less_than_lax_scan(make, sizes):
    gradient, _, given = gradient_of(make, *sizes)
    assert temp_bytes(gradient(rnn.parallel(64)), *given) <= 0.4 * temp_bytes(gradient(lax.scan), *given)


@pytest.mark.parametrize(
    ("scan", "low", "high"),
    [(rnn.parallel(), 0, 0.01), pytest.param(lax.scan, 0.5, 1, marks=pytest.mark.slow)],
    ids=["parallel", "lax.scan"],
)
def test_a_bfloat16_gradient_over_20000_steps(scan, low, high):
    """By loop, each step's share is rounded away in the sum; solved at once it is not."""
    T, B, D, H = 20_000, 1, 3, 4
    _, step, state = min_gru(D, H)
    params = {name: jax.random.normal(jax.random.key(n), (D, H)) for n, name in enumerate("zc")}
    given = (params, jnp.zeros((B, H)), jax.random.normal(jax.random.key(5), (T, B, D)))
    rough = jax.tree.map(lambda a: a.astype(jnp.bfloat16), given)

    def gradient(scan, given):
        value = lambda p, h, xs: jnp.mean(scan(partial(step, p), h, xs)[1].astype(jnp.float32) ** 2)
        return [a.astype(jnp.float32) for a in jax.tree.leaves(jax.jit(jax.grad(value))(*given))]

    with jax.enable_x64(True):
        exact = gradient(lax.scan, jax.tree.map(lambda a: a.astype(jnp.float64), rough))
    norm = lambda arrays: jnp.sqrt(sum(jnp.sum(jnp.square(a)) for a in arrays))
    off = norm([a - b for a, b in zip(gradient(scan, rough), exact, strict=True)]) / norm(exact)
    assert low <= off <= high
