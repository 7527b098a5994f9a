"""The error's way back, against closed forms and gradients of each state alone; Lyapunov exponents."""

import functools

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from tests import reference
from tests.analysis.test_gradients import PASSES, problem
from tests.reference import assert_close, scalar
from tests.scans.test_matrix import B, T, options
from tests.zoo import SCANS, D, H, sequence

LONG, LAGS = 60, 6


def linear_net(dtype=jnp.float64):
    """h_t = U x_t + W h_tm1 + b, W orthogonal."""
    cell, params = _linear_net(dtype)
    return cell, dict(params)


@functools.cache
def _linear_net(dtype):
    cell = rnn.elman(H, activation=lambda z: z, dtype=dtype)
    init = jax.jit(lambda: cell.init(jax.random.key(0), jax.ShapeDtypeStruct((D,), dtype)))
    return cell, jax.tree.map(np.asarray, init())


def flow_of(loss, cell, params, xs, *state, **given):
    """gradient_flow, compiled as a whole: one by one its many small operations take their time to compile."""
    return jax.jit(lambda p: rnn.analysis.gradient_flow(loss, cell, p, xs, *state, **given))(params)


def last_state(state, ys):
    del ys
    return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("name", "reverse"),
    [("lstm", False), ("running_mean", False), ("jordan", True)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in (("lstm", True), ("gru", False), ("stack", True))],
)
def test_norms_are_those_of_the_gradient_by_each_state(name, reverse, x64):
    """|dL / d s_t|, of the whole state and of each leaf; and the copies' norms are those of copy_gradients."""
    cell, params, xs, state = problem(name, "float64")
    flow, copies = jax.jit(
        lambda p: (
            rnn.analysis.gradient_flow(scalar, cell, p, xs, state, reverse=reverse),
            rnn.analysis.copy_gradients(scalar, cell, p, xs, state, reverse=reverse, measure=rnn.analysis.leaf_norms),
        )
    )(params)
    grads = by_each_state(cell, params, xs, state, reverse)
    floats = [n for n, leaf in enumerate(jax.tree.leaves(state)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    found = jax.tree.leaves(jax.tree.map(np.asarray, flow.state))
    for t in range(T):
        leaves = jax.tree.leaves(jax.tree.map(np.asarray, grads[t]))
        norms = [np.linalg.norm(leaves[n]) for n in floats]
        assert_close(np.asarray(flow.norms)[t], np.sqrt(sum(norm**2 for norm in norms)), 1e-10)
        assert_close([found[n][t] for n in floats], norms, 1e-10)
    assert_close(flow.by_lag, flow.norms if reverse else np.asarray(flow.norms)[::-1], 0)
    assert_close(flow.copies, copies, 1e-12)


def by_each_state(cell, params, xs, state, reverse):
    """dL / d s_t as dL / d e_t, for e_t = 0 added to the state after step t of a plain Python loop."""

    @jax.jit
    def step(s, x, nudge):  # traced once, not T times
        s, y = cell.step(params, s, x)
        return jax.tree.map(jnp.add, s, nudge), y

    def run(nudges):
        s, ys = state, [None] * T
        for t in range(T)[::-1] if reverse else range(T):
            s, ys[t] = step(s, xs[t], nudges[t])
        return scalar(s, jax.tree.map(lambda *a: jnp.stack(a), *ys))

    return jax.jit(jax.grad(run, allow_int=True))([jax.tree.map(np.zeros_like, state)] * T)


@functools.cache
def of_powers():
    """A linear net with any W, and the norms of the gradients by its states, the last one first."""
    cell, params = linear_net()
    params["W"] = np.random.default_rng(3).standard_normal((H, H)) / 2
    xs = sequence(1, (LAGS, B), jnp.float64)
    loop = jax.jit(lambda p: reference.unroll(cell, p, xs, cell.initial_state(p, (B,)), batch=(B,))[0])
    back = [np.asarray(loop(params))]  # dL / dh_last is h itself; one step back multiplies by W transposed
    for _ in range(LAGS - 1):
        back.append(back[-1] @ params["W"].T)
    return cell, params, xs, [np.linalg.norm(a) for a in back]


@pytest.mark.parametrize("scan", [pytest.param(n, marks=[] if n in PASSES else pytest.mark.slow) for n in SCANS])
def test_the_spectrum_of_a_linear_net_is_that_of_the_powers_of_its_matrix(scan, x64):
    cell, params, xs, expected = of_powers()
    flow = flow_of(last_state, cell, params, xs, scan=SCANS[scan])
    assert np.asarray(flow.by_lag).tolist() == pytest.approx(expected, rel=1e-10)


@functools.cache
def flow_and_exponents():
    """Of the linear net with any weights, compiled once."""
    cell, xs = linear_net()[0], sequence(1, (LONG, B), jnp.float64)
    flow = lambda p: rnn.analysis.gradient_flow(last_state, cell, p, xs)
    return jax.jit(lambda p: (flow(p), rnn.analysis.lyapunov(cell, p, xs, exponents=H)))


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.0, 1.1, 3.0])
def test_a_scaled_orthogonal_net_vanishes_and_explodes_at_its_scale(scale, x64):
    cell, params = linear_net()
    params["W"] = scale * params["W"]
    flow, exponents = flow_and_exponents()(params)
    np.testing.assert_allclose(flow.by_lag, float(flow.by_lag[0]) * scale ** np.arange(LONG), rtol=1e-9)
    assert float(flow.rate) == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(exponents, np.full((B, H), np.log(scale)), atol=1e-12)


def test_float32_sees_an_error_of_1e_30():
    cell, params = linear_net(jnp.float32)
    params["W"] = np.float32(0.3) * params["W"]
    xs = sequence(1, (LONG, B), jnp.float32)
    flow = flow_of(last_state, cell, params, xs)
    assert 0 < float(flow.by_lag[57]) < 1e-29 and float(flow.rate) == pytest.approx(0.3, rel=1e-4)


def test_each_leaf_and_step_has_its_norm_with_everything_at_once(x64):
    """Lengths, resets, keys, reverse: no error passes a reset, none arises in padding."""
    cell, params, xs, state = problem("lstm", "float64")
    flow = flow_of(scalar, cell, params, xs, state, **options("everything"))
    assert_close(flow.norms, np.hypot(flow.state.h, flow.state.c), 1e-12)
    find = jax.jit(lambda **given: rnn.analysis.gradient_flow(last_state, cell, params, xs, **given).norms)
    never, always = np.zeros((T, B), bool), np.full(B, T)
    at_3 = never | (np.arange(T) == 3)[:, None]
    cut = np.asarray(find(resets=at_3, lengths=always))
    assert (cut > 0).tolist() == [False, False, False, True, True]
    held = np.asarray(find(resets=never, lengths=np.array([2, 2])))
    assert held[1:].tolist() == pytest.approx([held[-1]] * 4)


def test_the_rate_is_that_of_the_line():
    rate = jax.jit(rnn.analysis.decay_rate)
    norms = np.exp(-0.5 * np.arange(7, dtype="f4"))
    assert float(rate(norms)) == pytest.approx(np.exp(-0.5), rel=1e-6)
    with_holes = norms.copy()
    with_holes[[0, 3, 5]] = 0.0, np.nan, np.inf
    assert float(rate(with_holes)) == pytest.approx(np.exp(-0.5), rel=1e-6)
    noisy = np.exp(np.array([0.3, 0.1, 0.4, -0.6, 0.0, 0.2, -0.1], "f4"))
    assert float(rate(noisy)) == pytest.approx(np.exp(np.polyfit(range(7), np.log(noisy), 1)[0]), rel=1e-5)
    assert np.isnan(rate(np.eye(7, dtype="f4")[2]))
    with pytest.raises(ValueError, match=r"norms must be \[N\], one per step, got float32\[2,2\]"):
        rnn.analysis.decay_rate(jnp.ones((2, 2)))


# --- where it breaks


def test_a_nan_on_the_way_forward_is_found_where_it_arises():
    """In a graph: the vertex that divides by zero at step 3, then what reads it; and the way back, from the loss."""
    net = rnn.graph(
        {
            "a": (nn.Dense(H), ["x"]),
            "ratio": (lambda a, x: a / x[..., :1], ["a", "x"]),
            "h": (rnn.elman(H), ["ratio"]),
            "clean": (rnn.gru(2), ["a"]),
        },
        output={"h": "h", "clean": "clean"},
    )
    with jax.numpy_rank_promotion("allow"):
        xs = np.array(sequence(1, (6, B), jnp.float32))
        xs[3, 1, 0] = 0.0
        params = jax.jit(net.init)(jax.random.key(0), xs[0])
        flow = flow_of(lambda s, ys: jnp.sum(ys["h"] + jnp.sum(ys["clean"])), net, params, xs)
    bad = {name: int(t) for name, t in flow.bad_values.items() if t != -1}
    assert bad == {"value['ratio']": 3, "value['h']": 3, "state.inner['h']": 3}
    assert {"value['x']", "value['a']", "value['clean']"} < flow.bad_values.keys()
    assert "value['ratio'] at step 3" in str(flow) and "clean" not in str(flow)
    assert {name.split("['")[1].split("']")[0] for name, t in flow.bad_gradients.items() if t != -1} == {"a", "h"}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_gradient_that_breaks_on_the_way_back_is_found(reverse):
    """sqrt at zero has no derivative: finite values forward, a NaN back from step 4 on."""

    def step(params, state, x, *, key=None):
        state = {"sum": state["sum"] + params["w"] * x, "roots": state["roots"] + jnp.sqrt(state["sum"])}
        return state, x

    zeros = lambda batch: {"sum": jnp.zeros(batch), "roots": jnp.zeros(batch)}
    cell = rnn.Cell(lambda key, x: {"w": jnp.ones(())}, lambda p, batch: zeros(batch), step)
    xs = np.ones(8, "f4")
    xs[:3] = 0.0, 1.0, -1.0  # the sum is 0 after the first and third step that run
    xs = xs[::-1] if reverse else xs
    flow = flow_of(lambda s, ys: s["roots"], cell, {"w": jnp.float32(1)}, xs, reverse=reverse)
    assert all(int(t) == -1 for t in flow.bad_values.values())
    place = {name: int(t) for name, t in flow.bad_gradients.items()}
    # Step 3 takes the root of the 0 that the third step left: the error by its sum is infinite.
    at = 5 if reverse else 2
    assert place == {"state['roots']": -1, "state['sum']": at, "params['w']": at}
    assert not np.isfinite(flow.rate) or float(flow.rate) >= 0


def test_a_graph_that_is_looked_into_flows_as_it_does(x64):
    """The values shown for every vertex change nothing: the loss sees the graph's own output, lengths and all."""
    dense = nn.Dense(H, dtype=jnp.float64, param_dtype=jnp.float64)
    net = rnn.graph(
        {"h": (rnn.stack(rnn.layer(dense), rnn.lift(jnp.tanh)), ["x", rnn.prev("h")]), "y": (dense, ["h", "x"])},
        output=("y", "x"),
    )
    xs = sequence(1, (T, B), jnp.float64)
    params = jax.jit(net.init)(jax.random.key(0), xs[0])
    hidden = rnn.Cell(net.init, net.initial_state, lambda *a, **k: net.step(*a, **k), net.begin)
    given = {"lengths": jnp.array([3, 5]), "reverse": True}
    opened = flow_of(scalar, net, params, xs, **given)
    plain = flow_of(scalar, hidden, params, xs, **given)
    assert_close(opened[:5], plain[:5], 1e-12)
    assert {"y[0]", "y[1]"} < plain.bad_values.keys() and {"value['y']", "value['h']"} < opened.bad_values.keys()


def test_vmap_gives_the_flow_of_each_example(x64):
    cell, params, xs, _ = problem("lstm", "float64")
    alone = jax.jit(lambda xs: rnn.analysis.gradient_flow(scalar, cell, params, xs))
    each = jax.tree.map(np.asarray, jax.jit(jax.vmap(alone, in_axes=1))(xs))
    for b in range(B):
        assert_close(jax.tree.map(lambda a, b=b: a[b], each), alone(np.asarray(xs)[:, b]), 1e-10)


def test_no_flow_without_state_or_steps():
    cell, params, xs, _ = problem("layer", "float32")
    with pytest.raises(ValueError, match="gradient_flow: the cell's state has no floating-point leaf"):
        rnn.analysis.gradient_flow(scalar, cell, params, xs)
    cell, params, xs, _ = problem("lstm", "float32")
    with pytest.raises(ValueError, match="gradient_flow: xs has no steps"):
        rnn.analysis.gradient_flow(scalar, cell, params, np.zeros((0, B, D), "f4"))
    with pytest.raises(ValueError, match=r"gradient_flow: loss\(state, ys\) must return one"):
        rnn.analysis.gradient_flow(lambda s, ys: ys, cell, params, xs)


# --- Lyapunov exponents


def test_exponents_of_a_linear_net_are_its_eigenvalues(x64):
    """Real eigenvalues apart from each other, in a basis that is not orthogonal."""
    cell, params = linear_net()
    eigenvalues = np.array([1.5, 0.9, -0.5, 0.2])
    basis = np.random.default_rng(0).normal(size=(H, H))
    params["W"] = basis @ np.diag(eigenvalues) @ np.linalg.inv(basis)
    xs = np.zeros((300, B, D))
    asked = {"exponents": H}, {"exponents": 2}, {"exponents": H, "every": 7}
    find = jax.jit(lambda p: [rnn.analysis.lyapunov(cell, p, xs, skip=150, **given) for given in asked])
    for given, got in zip(asked, find(params), strict=True):
        expected = np.log(np.abs(eigenvalues))[: given["exponents"]]
        np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=1e-10)


def jacobians(cell, params, xs, state):
    """The full Jacobian of each step's state by the one before, of one example."""
    flat, back = jax.flatten_util.ravel_pytree(jax.tree.map(np.asarray, state))
    both = both_of(cell, back)
    found = []
    for x in np.asarray(xs):
        flat, jacobian = both(params, flat, x)
        found.append(np.asarray(jacobian))
    return found


BOTH = {}


def both_of(cell, back):
    """(params, state as a vector, x) -> the next state and its Jacobian, compiled once for each cell."""
    step = lambda p, v, x: jax.flatten_util.ravel_pytree(cell.step(p, back(v), x)[0])[0]
    return BOTH.setdefault(cell, jax.jit(lambda p, v, x: (step(p, v, x), jax.jacobian(step, argnums=1)(p, v, x))))


@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_exponents_equal_those_of_full_jacobians(name, x64):
    cell, params, _, _ = problem(name, "float64")
    xs = sequence(5, (200, B), jnp.float64)
    start = jax.tree.map(lambda a: np.asarray(a) + 0.3, cell.initial_state(params, (B,)))
    skip = 120
    run = jax.jit(lambda p: rnn.analysis.lyapunov(cell, p, xs, start, exponents=H, skip=skip))
    got, xs = np.asarray(run(params)), np.asarray(xs)
    for b in range(B):
        all_of_them = jacobians(cell, params, xs[:, b], jax.tree.map(lambda a, b=b: a[b], start))
        q = np.linalg.qr(np.random.default_rng(1).normal(size=all_of_them[0].shape))[0]
        sums = 0
        for t, jacobian in enumerate(all_of_them):
            q, r = np.linalg.qr(jacobian @ q)
            sums = sums + np.log(np.abs(np.diag(r))) * (t >= skip)
        # The directions have found their order to within exp(-gap * skip).
        np.testing.assert_allclose(got[b, 0], sums[0] / (200 - skip), atol=1e-3)
        np.testing.assert_allclose(np.sum(got[b]), np.sum(sums[:H]) / (200 - skip), atol=1e-3)
        if name == "elman":  # all H directions span everything: their volume is the determinant, at once
            determinants = [np.linalg.slogdet(j)[1] for j in all_of_them[skip:]]
            assert float(np.sum(got[b])) == pytest.approx(np.mean(determinants), rel=1e-10)


def test_the_sum_over_all_directions_is_the_determinant_from_the_first_step(x64):
    cell, params, xs, _ = problem("lstm", "float64")
    run = jax.jit(lambda p: rnn.analysis.lyapunov(cell, p, xs, exponents=2 * H, every=2))
    got = np.asarray(run(params))
    for b in range(B):
        start = jax.tree.map(lambda a: np.asarray(a)[0], cell.initial_state(params, (B,)))
        logs = [np.linalg.slogdet(j)[1] for j in jacobians(cell, params, np.asarray(xs)[:, b], start)]
        assert float(np.sum(got[b])) == pytest.approx(np.mean(logs), rel=1e-10)


def test_exponents_in_any_number_of_batch_dimensions(x64):
    cell, params = linear_net()
    find = lambda xs, **given: rnn.analysis.lyapunov(cell, params, xs, **given)
    both = jax.jit(lambda xs: (find(xs, exponents=2), find(xs[:, 1, 2], exponents=2)))
    xs = sequence(1, (9, 2, 3), jnp.float64)
    got, alone = map(np.asarray, both(xs))
    assert got.shape == (2, 3, 2) and jax.eval_shape(find, xs[:, 0, 0]).shape == (1,)
    assert_close(got[1, 2], alone, 1e-12)


def test_integers_in_the_state_run_along():
    """The count of running_mean drives its mean: J_t = 1 - 1 / count, 0 at the first step, then t / (t + 1)."""
    cell, params, xs, state = problem("running_mean", "float32")
    find = lambda p, state: rnn.analysis.lyapunov(cell, p, xs, state, exponents=D)
    both = jax.jit(lambda p, state: (find(p, None), find(np.float32(1), state)))
    none, got = both(params, (np.ones(B, np.int32), state[1]))
    assert np.isneginf(none).all()
    np.testing.assert_allclose(got, np.full((B, D), np.log(1 / (T + 1)) / T), rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"exponents": 9}, "exponents must be at most 8, the numbers in one state, got 9"),
        ({"exponents": 0}, "exponents must be a whole number of at least 1, got 0"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"skip": T}, "skip must leave some of the 5 steps of xs, got 5"),
        ({"skip": -1}, "skip must be a whole number of at least 0"),
        ({"state": jnp.zeros(3)}, "lyapunov: state should have the structure"),
        ({"cell": 3}, "cell must be a Cell, got int"),
        ({"xs": ()}, "xs has no arrays"),
    ],
)
def test_what_has_no_exponents(changed, complaint):
    cell, params, xs, _ = problem("lstm", "float32")
    with pytest.raises((ValueError, TypeError), match=complaint):
        rnn.analysis.lyapunov(**({"cell": cell, "params": params, "xs": xs} | changed))
    with pytest.raises(ValueError, match="exponents must be at most 0"):
        stateless, params, xs, _ = problem("layer", "float32")
        rnn.analysis.lyapunov(stateless, params, xs)
