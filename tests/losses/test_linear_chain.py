"""Linear-chain CRF: against the enumeration of all taggings."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

import jaxrnn as rnn
from jaxrnn.combinators import alongside
from jaxrnn.losses import CRFState, crf, crf_log_z, crf_loss, crf_marginals, crf_nll, viterbi

STEPS, BATCH, K = 5, 4, 3
RNG = np.random.default_rng(0)
PARAMS = {
    name: jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for name, shape in {"transitions": (K, K), "start": K, "end": K}.items()
}
EMISSIONS = jnp.asarray(2 * RNG.standard_normal((STEPS, BATCH, K)), jnp.float32)
TAGS = jnp.asarray(RNG.integers(0, K, (STEPS, BATCH)), jnp.int32)
LENGTHS = np.array([5, 3, 0, 1])


def score(params, emissions, tagging):
    total = params["start"][tagging[0]] + params["end"][tagging[-1]]
    total += sum(row[k] for row, k in zip(emissions, tagging, strict=True))
    return float(total + sum(params["transitions"][a, b] for a, b in itertools.pairwise(tagging)))


def scores(b, length):
    """The score of every tagging of the first steps of one sequence."""
    params = {name: np.asarray(a, np.float64) for name, a in PARAMS.items()}
    rows = np.asarray(EMISSIONS[:length, b], np.float64)
    return {z: score(params, rows, z) for z in itertools.product(range(K), repeat=int(length))}


def cases():
    return [(b, n, scores(b, n)) for b, n in enumerate(LENGTHS) if n]


def test_loss_and_log_z_are_sums_over_all_taggings():
    @jax.jit
    def compute(params, emissions):
        state, _ = rnn.unroll(crf(K), params, (emissions, TAGS), lengths=LENGTHS, outputs="none")
        assert isinstance(state, CRFState)
        return crf_loss(params, emissions, TAGS, lengths=LENGTHS), crf_log_z(params, state)

    losses, log_z = map(np.asarray, compute(PARAMS, EMISSIONS))
    for b, n, found in cases():
        expected = np.logaddexp.reduce(list(found.values()))
        given = found[tuple(np.asarray(TAGS[:n, b]).tolist())]
        assert float(log_z[b]) == pytest.approx(expected, abs=1e-5)
        assert float(losses[b]) == pytest.approx(expected - given, abs=1e-5)
    assert losses[2] == 0 and log_z[2] == 0  # of no steps there is one tagging


def test_marginals_are_those_of_all_taggings():
    got = jax.jit(lambda p, e: crf_marginals(p, e, lengths=LENGTHS))(PARAMS, EMISSIONS)
    expected = np.zeros((STEPS, BATCH, K))
    for b, n, found in cases():
        log_z = np.logaddexp.reduce(list(found.values()))
        for tagging, value in found.items():
            for t, k in enumerate(tagging):
                expected[t, b, k] += np.exp(value - log_z)
        assert expected[:n, b].sum() == pytest.approx(n)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("scan", [lax.scan, rnn.scan, rnn.checkpointed(2)], ids=["lax", "rnn", "checkpointed"])
def test_viterbi_finds_the_best_of_all_taggings(scan):
    tags, best = map(np.asarray, jax.jit(lambda p, e: viterbi(p, e, lengths=LENGTHS, scan=scan))(PARAMS, EMISSIONS))
    for b, n, found in cases():
        assert tuple(tags[:n, b].tolist()) == max(found, key=found.get)
        assert float(best[b]) == pytest.approx(max(found.values()), abs=1e-5)
    assert not tags[np.arange(STEPS)[:, None] >= LENGTHS].any() and best[2] == 0


def test_gradient_by_finite_differences(x64):
    wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (PARAMS, EMISSIONS))
    cell = crf(K, dtype=jnp.float64)

    @jax.jit
    def loss(params, emissions):
        state, _ = rnn.unroll(cell, params, (emissions, TAGS), lengths=LENGTHS, outputs="none")
        return crf_nll(params, state).sum()

    check_grads(loss, wide, order=1, modes=("rev",), atol=1e-6, rtol=1e-6)
    assert jax.jit(lambda p, e: crf_loss(p, e, TAGS, lengths=LENGTHS))(*wide).dtype == jnp.float64


def test_parameters_are_of_the_given_type(x64):
    params = crf(K, dtype=jnp.float64).init(jax.random.key(0), None)
    assert {name: (a.shape, a.dtype) for name, a in params.items()} == {
        "transitions": ((K, K), jnp.float64),
        "start": ((K,), jnp.float64),
        "end": ((K,), jnp.float64),
    }


def test_long_sequences_lose_no_accuracy(x64):
    """A sure net over 3000 steps: the sum is in the tens of thousands, the loss is not."""
    rng = np.random.default_rng(1)
    emissions, tags = rng.standard_normal((3000, 1, K)), rng.integers(0, K, (3000, 1))
    emissions += 12.0 * np.eye(K)[tags]
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS)
    run = jax.jit(lambda p, e: crf_loss(p, e, tags))
    expected, got = run(wide, emissions), run(PARAMS, emissions.astype("f4"))
    assert got.dtype == jnp.float32 and expected.dtype == jnp.float64
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert abs(float(expected[0])) < 20


def test_nan_in_padding_reaches_nothing():
    live = np.arange(STEPS)[:, None] < LENGTHS
    dirty, odd = np.where(live[..., None], EMISSIONS, np.float32(np.nan)), np.where(live, TAGS, np.int32(99))
    loss = lambda p, e, z: crf_loss(p, e, z, lengths=LENGTHS).sum()
    best = lambda p, e: viterbi(p, e, lengths=LENGTHS)[0]
    run = jax.jit(lambda p, e, z: (jax.value_and_grad(loss, argnums=(0, 1))(p, e, z), best(p, e)))
    jax.tree.map(np.testing.assert_array_equal, run(PARAMS, dirty, odd), run(PARAMS, EMISSIONS, TAGS))
    # Tags that can be looked at are: those that nobody reads are not refused.
    np.testing.assert_allclose(loss(PARAMS, dirty, odd), run(PARAMS, EMISSIONS, TAGS)[0][0], rtol=1e-6)


def test_no_steps_and_no_batch():
    @jax.jit
    def compute(params, emissions):
        one = crf_loss(params, emissions[:, 0], TAGS[:, 0])
        of_no_steps = crf_loss(params, emissions[:0], TAGS[:0]), viterbi(params, emissions[:0])[0]
        return of_no_steps, one, crf_loss(params, emissions, TAGS)[0]

    (losses, tags), one, first = compute(PARAMS, EMISSIONS)
    assert losses.tolist() == [0.0] * BATCH and tags.shape == (0, BATCH)
    np.testing.assert_allclose(one, first, rtol=1e-6)


def test_sixteen_bits_are_computed_in_float32():
    rough = EMISSIONS.astype(jnp.bfloat16)
    losses = crf_loss(PARAMS, rough, TAGS)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, crf_loss(PARAMS, rough.astype(jnp.float32), TAGS), rtol=1e-6)


# --- one cell with its net -------------------------------------------------------------------------


def tagger(hidden, tags):
    return rnn.stack(alongside(rnn.stack(rnn.lstm(hidden), rnn.layer(nn.Dense(tags)))), crf(tags))


def as_one_cell(cell, params, xs, tags, scan, lengths=None):
    state, _ = rnn.unroll(cell, params, (xs, tags), lengths=lengths, outputs="none", scan=scan)
    return crf_nll(params[-1], state[-1]).sum()


@functools.cache
def net_s_problem():
    """A tagger's inputs and parameters, and the value and gradients of the loss on the logits of all steps."""
    xs = RNG.standard_normal((STEPS, BATCH, 2)).astype("f4")
    params = jax.jit(tagger(3, K).init)(jax.random.key(1), (xs[0], TAGS[0]))
    params = (params[0], PARAMS)
    net = rnn.stack(rnn.lstm(3), rnn.layer(nn.Dense(K)))
    after = lambda p: crf_loss(p[1], rnn.unroll(net, p[0], xs)[1], TAGS, lengths=LENGTHS).sum()
    return xs, params, jax.jit(jax.value_and_grad(after))(params)


SCANS = {
    "lax": lax.scan,
    "rnn": rnn.scan,
    "separate": rnn.fissioned(separate=True),
    "checkpointed": rnn.checkpointed(2),
    "revolve": rnn.revolve(2),
}
SLOW = "lax", "separate", "revolve"


@pytest.mark.parametrize("name", [n if n not in SLOW else pytest.param(n, marks=pytest.mark.slow) for n in SCANS])
def test_stacked_on_a_net_under_every_scan(name):
    cell, (xs, params, expected) = tagger(3, K), net_s_problem()
    got = jax.jit(jax.value_and_grad(lambda p: as_one_cell(cell, p, xs, TAGS, SCANS[name], LENGTHS)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


@pytest.mark.slow
def test_checkpointed_takes_a_twentieth():
    """T1000 B8 K20, an LSTM of 64: compiling needs no memory, so the real sizes can be asserted."""
    steps, batch, tags = 1000, 8, 20
    cell = tagger(64, tags)
    xs, zs = (jax.ShapeDtypeStruct((steps, batch, *s), d) for s, d in (((16,), jnp.float32), ((), jnp.int32)))
    x = jnp.zeros((batch, 16)), jnp.zeros(batch, jnp.int32)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), x))
    kept = lambda scan: rnn.analysis.temp_bytes(
        jax.grad(lambda p, xs, zs: as_one_cell(cell, p, xs, zs, scan)), params, xs, zs
    )
    assert kept(rnn.checkpointed()) <= 0.05 * kept(lax.scan)


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: crf(0), r"crf: tags must be a whole number of at least 1, got 0"),
        (lambda: crf(3, dtype=jnp.bfloat16), r"crf: dtype must be float32 or float64, got bfloat16"),
        (lambda: crf_loss(PARAMS, EMISSIONS, TAGS + 1), r"crf_loss: tags must lie in 0\.\.2, got 3 at \[\d, \d\]"),
        (
            lambda: crf_loss(PARAMS, EMISSIONS, TAGS[1:]),
            r"tags must be integers \[T, \*B\] = \[5, 4\], got int32\[4,4\]",
        ),
        (lambda: crf_loss(PARAMS, EMISSIONS[..., :2], TAGS), r"emissions must be floating-point \[T, \*B, 3\], .* got"),
        (lambda: viterbi(PARAMS, TAGS), r"viterbi: emissions must be floating-point"),
        (lambda: crf_loss(PARAMS, EMISSIONS, TAGS, lengths=LENGTHS + 1), r"lengths must lie in 0\.\.5"),
        (lambda: crf_loss(PARAMS, EMISSIONS, TAGS, lengths=LENGTHS[:2]), r"crf_loss: lengths must be \[\*B\] = \[4\]"),
        (lambda: rnn.unroll(crf(K), PARAMS, EMISSIONS), r"crf: x must be a pair \(emissions .*stack\(alongside\(net\)"),
        (lambda: rnn.unroll(crf(4), PARAMS, (EMISSIONS, TAGS)), r"params\['transitions'\] should be \[4, 4\], got"),
        (
            lambda: rnn.unroll(crf(K), PARAMS, (EMISSIONS, EMISSIONS[..., 0])),
            r"crf: tags must be integers \[4\], as emissions are float32\[4,3\], got float32\[4\]",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_tags_that_nobody_can_see_never_pass_for_others():
    losses = jax.jit(lambda z: crf_loss(PARAMS, EMISSIONS, z))(TAGS.at[1, 0].set(K))
    assert np.isnan(losses[0]) and np.isfinite(losses[1:]).all()
