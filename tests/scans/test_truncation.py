"""Truncation: a gradient every k1 steps that reaches back k2, and random cuts that are right on average."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.scans import randomly_truncated
from jaxrnn.scans.base import Strategy
from jaxrnn.scans.random_truncation import reweighted
from tests.reference import assert_close
from tests.scans.test_segments import evaluations
from tests.zoo import CELLS, sequence

T = 11
WEIGHTS = np.random.default_rng(0).standard_normal((3, 3))
INPUTS = np.random.default_rng(1).standard_normal((T, 3))
START = np.array([0.3, -0.2, 0.1])


def problem(w, h, u):
    """A step with every kind of leaf, its first carry, and its inputs."""

    def step(carry, x):
        (h, n), key = carry["pair"], carry["key"]
        noise = jax.random.normal(jax.random.fold_in(key, n), h.shape, h.dtype)
        h = jnp.tanh(h @ w + x["u"] + 0.1 * noise * x["k"].astype(h.dtype))
        return {"pair": (h, n + x["k"]), "key": key}, {"h": h * h, "n": n, "none": None}

    start = {"pair": (h, jnp.int32(0)), "key": jax.random.key(0)}
    return step, start, {"u": u, "k": jnp.arange(T, dtype=jnp.int32) % 3}


def of_output(y, t):
    return jnp.sum(jnp.sin(y["h"]) * np.cos(np.arange(3.0) + t))


def of_last(carry):
    return jnp.sum(carry["pair"][0] * np.array([1.0, -2.0, 3.0]))


def loss(scan, reverse, w, h, u):
    carry, ys = scan(*problem(w, h, u), reverse=reverse)
    total = of_output(ys, np.arange(T)[:, None])
    return total + of_last(carry), (jax.random.key_data(carry["key"]), carry["pair"], ys)


@functools.cache
def compiled(scan, reverse):
    """The loss and its gradients in the weights, the first carry and the inputs; and the values."""
    return jax.jit(jax.value_and_grad(functools.partial(loss, scan, reverse), (0, 1, 2), has_aux=True))(
        WEIGHTS, START, INPUTS
    )


def window_by_window(every, reach, reverse):
    """The same gradients from one plain loop per block, each with a gradient of its own."""
    order = list(range(T))[::-1] if reverse else list(range(T))

    def loop(carry, w, h, u, steps):
        step, start, xs = problem(w, h, u)
        carry, total = start if carry is None else carry, []
        for t in steps:
            carry, y = step(carry, jax.tree.map(lambda a, t=t: a[t], xs))
            total.append((t, y))
        return carry, total

    # Where blocks begin, in the order in which the steps run: at every multiple of `every` from step 0.
    begins = [0, *range((T % every if reverse else 0) or every, T, every)]
    grads = [np.zeros_like(a) for a in (WEIGHTS, START, INPUTS)]
    for begin, end in itertools.pairwise([*begins, T]):
        first = max(0, begin - (reach - every)) if reach < T else 0
        carry = loop(None, WEIGHTS, START, INPUTS, order[:first])[0] if first else None

        def of_block(w, h, u, carry=carry, first=first, begin=begin, end=end):
            last, ys = loop(carry, w, h, u, order[first:end])
            return sum(of_output(y, t) for t, y in ys[begin - first :]) + (of_last(last) if end == T else 0.0)

        grads = [a + b for a, b in zip(grads, jax.grad(of_block, (0, 1, 2))(WEIGHTS, START, INPUTS), strict=True)]
    return grads


PAIRS = [(2, 4), (3, 7), (4, 5), (4, 4), (3, 9), (1, 3), (3, 10), (5, 10), (4, 11), (1, 1), (10, 10)]
FAST = [(3, 7, False), (4, 5, True)]
WINDOWS = [
    case if case in FAST else pytest.param(*case, marks=pytest.mark.slow)
    for case in ((*pair, reverse) for pair in PAIRS for reverse in (False, True))
]
INNER = [lax.scan, rnn.checkpointed(2), rnn.scan]


@pytest.mark.parametrize(("every", "reach", "reverse"), WINDOWS)
def test_truncation_equals_a_loop_window_by_window(every, reach, reverse, x64):
    inner = INNER[(every + reach + reverse) % 3]
    (_, values), grads = compiled(rnn.truncated(every=every, reach=reach, inner=inner), reverse)
    assert_close(values, compiled(lax.scan, reverse)[0][1], 1e-14)
    for got, expected in zip(grads, window_by_window(every, reach, reverse), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_both_limits_of_truncation(reverse, x64):
    assert rnn.truncated(every=4, reach=4) == rnn.truncated(4) != rnn.truncated(every=4, reach=5)
    cut = compiled(rnn.truncated(4), reverse)[1]
    whole = compiled(lax.scan, reverse)[1]
    for got, expected in zip(compiled(rnn.truncated(every=2, reach=T), reverse)[1], whole, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
    assert max(np.abs(np.asarray(a) - b).max() for a, b in zip(cut, whole, strict=True)) > 0.01


def reach_of(scan, reverse):
    """[T, T + 1]: which inputs the gradient of each output, and of the last carry, comes to."""
    step = lambda c, x: (c + x, c + x)
    run = lambda xs: scan(step, jnp.zeros(()), xs, reverse=reverse)
    last, ys = jax.jit(jax.jacrev(run))(jnp.ones(T))
    return np.concatenate([ys, last[None]]) != 0


@pytest.mark.parametrize("reverse", [False, True])
def test_each_error_is_sent_back_once_and_so_far(reverse):
    """A running sum: every path from an input to an output has the weight one, so the gradient counts them."""
    got = reach_of(rnn.truncated(every=3, reach=5), reverse)
    order = np.arange(T)[::-1] if reverse else np.arange(T)
    begins = {False: [0, 0, 0, 1, 1, 1, 4, 4, 4, 7, 7], True: [0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6]}[reverse]
    for place, t in enumerate(order):
        assert got[t][order].tolist() == [begins[place] <= p <= place for p in range(T)], t
    assert got[T].tolist() == got[order[-1]].tolist()


def test_truncation_under_transformations(x64):
    """Forward mode's slope is the gradient's; vmap of the gradient gives each example's own, in whatever company."""
    scan = rnn.truncated(every=3, reach=7)
    given = (WEIGHTS, START, INPUTS)
    directions = jax.tree.map(lambda a: np.cos(a + 1), given)
    alone = lambda *args: loss(scan, False, *args)[0]
    expected = compiled(scan, False)[1]
    _, slope = jax.jit(lambda given, along: jax.jvp(alone, given, along))(given, directions)
    assert slope == pytest.approx(sum(np.vdot(g, d) for g, d in zip(expected, directions, strict=True)), rel=1e-12)
    batch = [np.stack([np.sin(a), a]) for a in given]
    together = jax.jit(jax.vmap(jax.grad(alone, (0, 1, 2))))(*batch)
    assert_close([a[1] for a in together], list(expected), 1e-12)
    assert all(float(jnp.max(jnp.abs(a[0] - a[1]))) > 0.01 for a in together)


@pytest.mark.parametrize(
    "name", ["dropout_sequence", *(pytest.param(n, marks=pytest.mark.slow) for n in ("graph", "scheduled_sampling"))]
)
def test_a_net_with_lengths_resets_and_a_key_has_the_same_values(name):
    cell = CELLS[name](jnp.dtype("float32"))
    xs = sequence(1, (7, 2), jnp.float32)
    params = jax.jit(cell.init)(jax.random.key(0), xs[0])
    resets = jnp.zeros((7, 2), bool).at[3, 1].set(True)
    options = {"lengths": jnp.array([4, 7]), "key": jax.random.key(7), "resets": resets}
    run = lambda scan: jax.jit(lambda p: rnn.unroll(cell, p, xs, scan=scan, **options))(params)
    assert_close(run(rnn.truncated(every=2, reach=3)), run(lax.scan), 2e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_truncation_of_a_loop_without_inputs(reverse):
    step = lambda c, _: (c * 1.1 + 1, c)
    got = rnn.truncated(every=2, reach=3)(step, 0.5, None, length=7, reverse=reverse)
    assert_close(got, lax.scan(step, 0.5, None, length=7, reverse=reverse), 1e-6)


@pytest.mark.parametrize(("every", "reach", "windows"), [(2, 6, 5), (4, 4, 3), (1, 8, 8), (4, 12, 1), (2, 16, 0)])
def test_a_window_costs_its_reach_and_nothing_else(every, reach, windows):
    """Each block but those of the first window is run with all that lies within its reach."""
    head = 16 - windows * every
    assert evaluations(rnn.truncated(every=every, reach=reach), 16) == head + windows * reach


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: rnn.truncated(every=3), r"truncated: reach must be a whole number of at least 3, got 0"),
        (lambda: rnn.truncated(reach=3), r"truncated: every must be a whole number of at least 1, got 0"),
        (lambda: rnn.truncated(every=3, reach=2), r"reach must be a whole number of at least 3, got 2"),
        (lambda: rnn.truncated(3, every=3, reach=3), r"give either segment, as in truncated\(20\), or both every and"),
        (lambda: randomly_truncated(jax.random.key(0), mean_length=1), r"mean_length must be a number of steps above"),
        (lambda: randomly_truncated(jax.random.key(0), mean_length=9, alpha=2), r"alpha must be above 2, or lengths"),
        (lambda: randomly_truncated(jax.random.key(0), mean_length=9, inner=3), r"inner must be a scan"),
    ],
)
def test_bad_truncation_is_refused_at_once(make, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        make()


# --- random cuts


def chances(cuts, mean_length, alpha):
    """The probability of a cut before each step but the first, by a plain loop over what was cut before."""
    since, found = 1, []
    for cut in cuts:
        found.append(1 / mean_length if alpha is None else (alpha - 1) / ((alpha - 2) * mean_length + since))
        since = 1 if cut else since + 1
    return np.array(found)


class WithFactors(Strategy):
    """A scan with given factors, so that all cut patterns can be tried."""

    name = "with_factors"

    def __init__(self, factors):
        self.factors = factors

    def run(self, problem):
        return reweighted(problem, lax.scan, self.factors)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_mean_over_all_cut_patterns_is_the_whole_gradient(reverse, x64):
    steps = 6
    patterns = np.array(list(itertools.product([False, True], repeat=steps - 1)))

    def of(scan, w, h, u):
        step = lambda c, x: ((c_out := jnp.tanh(c @ w + x)), c_out)
        last, ys = scan(step, h, u, reverse=reverse)
        return jnp.sum(jnp.sin(ys) * np.cos(np.arange(steps * 3.0)).reshape(steps, 3)) + jnp.sum(last * last)

    given = (WEIGHTS, START, INPUTS[:steps])
    gradient = lambda factors: jax.grad(functools.partial(of, WithFactors(factors)), (0, 1, 2))(*given)
    whole = jax.grad(functools.partial(of, lax.scan), (0, 1, 2))(*given)
    each_pattern = jax.jit(jax.vmap(gradient))
    for alpha in (None, 3.5):
        c = np.array([chances(cuts, 2.5, alpha) for cuts in patterns])
        probability = np.prod(np.where(patterns, c, 1 - c), axis=1)
        factors = np.concatenate([np.ones((len(patterns), 1)), np.where(patterns, 0, 1 / (1 - c))], axis=1)
        mean = jax.tree.map(lambda g, p=probability: np.tensordot(p, g, 1), each_pattern(factors))
        assert probability.sum() == pytest.approx(1, abs=1e-14)
        for got, expected in zip(mean, whole, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_cuts_are_drawn_with_their_chances(alpha):
    drawn = jax.jit(jax.vmap(lambda key: randomly_truncated(key, mean_length=5, alpha=alpha).factors(40)))
    factors = np.asarray(drawn(jax.random.split(jax.random.key(0), 400)))
    cuts = factors[:, 1:] == 0
    c = np.array([chances(row, 5, alpha) for row in cuts])
    assert (factors[:, 0] == 1).all()
    np.testing.assert_allclose(factors[:, 1:], np.where(cuts, 0, 1 / (1 - c)), rtol=1e-6)
    for chance in np.unique(c.round(12))[-8:]:
        among = np.isclose(c, chance)
        error = np.sqrt(chance * (1 - chance) / among.sum())
        assert abs(cuts[among].mean() - chance) < 4 * error
    survival = np.cumprod(1 - chances([False] * 200_000, 5, alpha))
    assert 1 + survival.sum() == pytest.approx(5, rel=1e-4)  # the mean length


def test_the_estimate_is_unbiased_within_its_standard_error(x64):
    def gradient(scan):
        return jnp.concatenate([g.ravel() for g in jax.grad(lambda *a: loss(scan, False, *a)[0], (0, 1, 2))(*given)])

    known = lambda scan: np.concatenate([np.ravel(g) for g in compiled(scan, False)[1]])

    given = (WEIGHTS, START, INPUTS)
    keys = jax.random.split(jax.random.key(3), 4000)
    each = np.asarray(jax.jit(jax.vmap(lambda key: gradient(randomly_truncated(key, mean_length=4, alpha=6))))(keys))
    whole, error = known(lax.scan), each.std(0) / np.sqrt(len(keys))
    moves = error > 1e-12  # the newest inputs' gradients have no cut before them
    assert moves.sum() > 30 and np.abs(each[:, ~moves] - whole[~moves]).max() < 1e-12
    standardised = (each.mean(0) - whole)[moves] / error[moves]
    assert np.abs(standardised).max() < 4 and np.sqrt(np.mean(standardised**2)) < 1.5
    biased = known(rnn.truncated(4))
    assert np.abs((biased - whole)[moves] / error[moves]).max() > 10  # which this would have found out


@pytest.mark.parametrize(
    "inner", [rnn.scan, *(pytest.param(i, marks=pytest.mark.slow) for i in (lax.scan, rnn.checkpointed(2)))]
)
def test_random_cuts_leave_values_and_other_leaves_alone(inner, x64):
    scan = randomly_truncated(jax.random.key(5), mean_length=3, inner=inner)
    (_, values), grads = compiled(scan, True)
    assert_close(values, compiled(lax.scan, True)[0][1], 1e-14)
    assert_close(grads, compiled(WithFactors(scan.factors(T)), True)[1], 1e-12)
    whole = compiled(randomly_truncated(jax.random.key(5), mean_length=float("inf"), inner=inner), True)[1]
    assert_close(whole, compiled(lax.scan, True)[1], 1e-12)


def test_a_cut_lets_no_nan_pass():
    """Step 2 begins with 0, where the slope of the root is infinite; times a factor of 0 it would be NaN."""
    step = lambda c, x: (jnp.sqrt(c) + x, c)
    cut = lambda x: WithFactors(jnp.array([1.0, 1.0, 0.0, 1.0]))(step, jnp.float32(1.0), x)[0]
    assert jax.grad(cut)(jnp.array([0.0, -1.0, 1.0, 1.0])).tolist() == [0.0, 0.0, 0.5, 1.0]
