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
from tests.reference import assert_close, scalar
from tests.scans.test_matrix import B, T, options, problem
from tests.zoo import SCANS, D, H, sequence

LONG, LAGS = 60, 6


def linear_net(dtype=jnp.float64):
    """h_t = U x_t + W h_tm1 + b, W orthogonal."""
    cell = rnn.elman(H, activation=lambda z: z, dtype=dtype)
    params = cell.init(jax.random.key(0), jax.ShapeDtypeStruct((D,), dtype))
    return cell, params


def flow_of(loss, cell, params, xs, *state, **given):
    """gradient_flow, compiled as a whole: one by one its many small operations take their time to compile."""
    return jax.jit(lambda p: rnn.analysis.gradient_flow(loss, cell, p, xs, *state, **given))(params)


def last_state(state, ys):
    del ys
    return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("name", "reverse"),
    [("lstm", False), ("lstm", True), ("gru", False), ("running_mean", False), ("stack", True), ("jordan", True)],
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
    found = jax.tree.leaves(flow.state)
    for t in range(T):
        leaves = jax.tree.leaves(grads[t])
        assert_close(flow.norms[t], jnp.sqrt(sum(jnp.sum(leaves[n] ** 2) for n in floats)), 1e-10)
        assert_close([found[n][t] for n in floats], [jnp.linalg.norm(leaves[n]) for n in floats], 1e-10)
    assert_close(flow.by_lag, flow.norms if reverse else flow.norms[::-1], 0)
    assert_close(flow.copies, copies, 1e-12)


def by_each_state(cell, params, xs, state, reverse):
    """dL / d s_t as dL / d e_t, for e_t = 0 added to the state after step t of a plain Python loop."""

    def run(nudges):
        s, ys = state, [None] * T
        for t in range(T)[::-1] if reverse else range(T):
            s, ys[t] = cell.step(params, s, xs[t])
            s = jax.tree.map(jnp.add, s, nudges[t])
        return scalar(s, jax.tree.map(lambda *a: jnp.stack(a), *ys))

    return jax.jit(jax.grad(run, allow_int=True))([jax.tree.map(jnp.zeros_like, state)] * T)


@pytest.mark.parametrize("scan", SCANS)
def test_the_spectrum_of_a_linear_net_is_that_of_the_powers_of_its_matrix(scan, x64):
    cell, params = linear_net()
    params["W"] = jax.random.normal(jax.random.key(3), (H, H), jnp.float64) / 2
    xs = sequence(1, (LAGS, B), jnp.float64)
    h, _ = reference.unroll(cell, params, xs, cell.initial_state(params, (B,)), batch=(B,))
    flow = flow_of(last_state, cell, params, xs, scan=SCANS[scan])
    back = np.asarray(h)  # dL / dh_last is h itself; one step back multiplies by W transposed
    for lag in range(LAGS):
        assert float(flow.by_lag[lag]) == pytest.approx(np.linalg.norm(back), rel=1e-10)
        back = back @ np.asarray(params["W"]).T


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
    np.testing.assert_allclose(flow.by_lag, flow.by_lag[0] * scale ** np.arange(LONG), rtol=1e-9)
    assert float(flow.rate) == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(exponents, np.full((B, H), np.log(scale)), atol=1e-12)


def test_float32_sees_an_error_of_1e_30():
    cell, params = linear_net(jnp.float32)
    params["W"] = 0.3 * params["W"]
    xs = sequence(1, (LONG, B), jnp.float32)
    flow = flow_of(last_state, cell, params, xs)
    assert 0 < float(flow.by_lag[57]) < 1e-29 and float(flow.rate) == pytest.approx(0.3, rel=1e-4)


def test_each_leaf_and_step_has_its_norm_with_everything_at_once(x64):
    """Lengths, resets, keys, reverse: no error passes a reset, none arises in padding."""
    cell, params, xs, state = problem("lstm", "float64")
    flow = flow_of(scalar, cell, params, xs, state, **options("everything"))
    total = jnp.sqrt(flow.state.h**2 + flow.state.c**2)
    assert_close(flow.norms, total, 1e-12)
    cut = flow_of(last_state, cell, params, xs, resets=jnp.zeros((T, B), bool).at[3].set(True))
    assert (np.asarray(cut.norms) > 0).tolist() == [False, False, False, True, True]
    held = flow_of(last_state, cell, params, xs, lengths=[2, 2])
    assert held.norms[1:].tolist() == pytest.approx([float(held.norms[-1])] * 4)


def test_the_rate_is_that_of_the_line():
    norms = jnp.exp(-0.5 * jnp.arange(7.0))
    assert float(rnn.analysis.decay_rate(norms)) == pytest.approx(np.exp(-0.5), rel=1e-6)
    with_holes = norms.at[jnp.array([0, 3, 5])].set(jnp.array([0.0, jnp.nan, jnp.inf]))
    assert float(rnn.analysis.decay_rate(with_holes)) == pytest.approx(np.exp(-0.5), rel=1e-6)
    noisy = jnp.exp(jnp.array([0.3, 0.1, 0.4, -0.6, 0.0]))
    assert float(rnn.analysis.decay_rate(noisy)) == pytest.approx(
        np.exp(np.polyfit(range(5), np.log(noisy), 1)[0]), rel=1e-5
    )
    assert np.isnan(rnn.analysis.decay_rate(jnp.zeros(4).at[2].set(1.0)))
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
        xs = sequence(1, (6, B), jnp.float32).at[3, 1, 0].set(0.0)
        params = net.init(jax.random.key(0), xs[0])
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
    xs = jnp.ones(8).at[5 if reverse else 2].set(-1.0)  # the sum is 0 after the second and third step that run
    xs = xs.at[6 if reverse else 1].set(1.0).at[7 if reverse else 0].set(0.0)
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
    params = net.init(jax.random.key(0), xs[0])
    hidden = rnn.Cell(net.init, net.initial_state, lambda *a, **k: net.step(*a, **k), net.begin)
    given = {"lengths": jnp.array([3, 5]), "reverse": True}
    opened = flow_of(scalar, net, params, xs, **given)
    plain = flow_of(scalar, hidden, params, xs, **given)
    assert_close(opened[:5], plain[:5], 1e-12)
    assert {"y[0]", "y[1]"} < plain.bad_values.keys() and {"value['y']", "value['h']"} < opened.bad_values.keys()


def test_vmap_gives_the_flow_of_each_example(x64):
    cell, params, xs, _ = problem("lstm", "float64")
    alone = jax.jit(lambda xs: rnn.analysis.gradient_flow(scalar, cell, params, xs))
    each = jax.jit(jax.vmap(alone, in_axes=1))(xs)
    for b in range(B):
        assert_close(jax.tree.map(lambda a, b=b: a[b], each), alone(xs[:, b]), 1e-10)


def test_no_flow_without_state_or_steps():
    cell, params, xs, _ = problem("layer", "float32")
    with pytest.raises(ValueError, match="gradient_flow: the cell's state has no floating-point leaf"):
        rnn.analysis.gradient_flow(scalar, cell, params, xs)
    cell, params, xs, _ = problem("lstm", "float32")
    with pytest.raises(ValueError, match="gradient_flow: xs has no steps"):
        rnn.analysis.gradient_flow(scalar, cell, params, xs[:0])
    with pytest.raises(ValueError, match=r"gradient_flow: loss\(state, ys\) must return one"):
        rnn.analysis.gradient_flow(lambda s, ys: ys, cell, params, xs)


# --- Lyapunov exponents


def test_exponents_of_a_linear_net_are_its_eigenvalues(x64):
    """Real eigenvalues apart from each other, in a basis that is not orthogonal."""
    cell, params = linear_net()
    eigenvalues = np.array([1.5, 0.9, -0.5, 0.2])
    basis = np.random.default_rng(0).normal(size=(H, H))
    params["W"] = jnp.asarray(basis @ np.diag(eigenvalues) @ np.linalg.inv(basis))
    xs = jnp.zeros((300, B, D), jnp.float64)
    for given in ({"exponents": H}, {"exponents": 2}, {"exponents": H, "every": 7}):
        got = rnn.analysis.lyapunov(cell, params, xs, skip=150, **given)
        expected = np.log(np.abs(eigenvalues))[: given["exponents"]]
        np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=1e-10)


def jacobians(cell, params, xs, state):
    """The full Jacobian of each step's state by the one before, of one example."""
    flat, back = jax.flatten_util.ravel_pytree(state)
    step = lambda v, x: jax.flatten_util.ravel_pytree(cell.step(params, back(v), x)[0])[0]
    both = jax.jit(lambda v, x: (step(v, x), jax.jacobian(step)(v, x)))
    found = []
    for x in xs:
        flat, jacobian = both(flat, x)
        found.append(np.asarray(jacobian))
    return found


@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_exponents_equal_those_of_full_jacobians(name, x64):
    cell, params, _, _ = problem(name, "float64")
    xs = sequence(5, (200, B), jnp.float64)
    start = jax.tree.map(lambda a: a + 0.3, cell.initial_state(params, (B,)))
    skip = 120
    got = jax.jit(lambda p: rnn.analysis.lyapunov(cell, p, xs, start, exponents=H, skip=skip))(params)
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
    got = rnn.analysis.lyapunov(cell, params, xs, exponents=2 * H, every=2)
    for b in range(B):
        start = jax.tree.map(lambda a: a[0], cell.initial_state(params, (B,)))
        logs = [np.linalg.slogdet(j)[1] for j in jacobians(cell, params, xs[:, b], start)]
        assert float(np.sum(got[b])) == pytest.approx(np.mean(logs), rel=1e-10)


def test_exponents_in_any_number_of_batch_dimensions(x64):
    cell, params = linear_net()
    xs = sequence(1, (9, 2, 3), jnp.float64)
    got = rnn.analysis.lyapunov(cell, params, xs, exponents=2)
    assert got.shape == (2, 3, 2) and rnn.analysis.lyapunov(cell, params, xs[:, 0, 0]).shape == (1,)
    assert_close(got[1, 2], rnn.analysis.lyapunov(cell, params, xs[:, 1, 2], exponents=2), 1e-12)


def test_integers_in_the_state_run_along():
    """The count of running_mean drives its mean: J_t = 1 - 1 / count, 0 at the first step, then t / (t + 1)."""
    cell, params, xs, state = problem("running_mean", "float32")
    assert np.isneginf(rnn.analysis.lyapunov(cell, params, xs, exponents=D)).all()
    started = (jnp.ones(B, jnp.int32), state[1])
    got = rnn.analysis.lyapunov(cell, jnp.ones(()), xs, started, exponents=D)
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
