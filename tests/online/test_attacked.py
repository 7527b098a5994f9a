"""What an attack found: derivatives of one's own, weights in two roles, batches as large as something else, keys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from jaxrnn.analysis import compare
from jaxrnn.online import eprop, immediate, online, rtrl, snap, tbptt, uoro
from tests.choice import slow_but_for
from tests.online.problems import F64, bptt, by_windows, error, first, problem


def cell_of(shapes, step, size=3):
    """A cell of the given weights, step(params, h, x) -> h."""

    def init(key, x):
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, s, x.dtype) / 2 for (n, s), k in zip(shapes.items(), keys, strict=True)}

    def both(params, h, x, *, key=None):
        h = step(params, h, x)
        return h, h

    return rnn.Cell(init, lambda p, batch: jnp.zeros((*batch, size), jax.tree.leaves(p)[0].dtype), both)


WAYS = (rtrl(block=False), rtrl())


def exact(cell, batch=(2,), cuts=(2,), T=4):
    net, params, xs = problem(cell, T=T, batch=batch)
    expected = bptt(net, params, xs)
    for method in WAYS:
        assert error(by_windows(net, method, params, xs, cuts)[0], expected) < 1e-12, method


@jax.custom_jvp
def straight_through(hard, soft):
    return hard


@straight_through.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


@jax.custom_jvp
def centred(x):
    return x * 1.0


@centred.defjvp
def _(primals, tangents):
    return centred(*primals), tangents[0] - jnp.sum(tangents[0], -1, keepdims=True) / 2


def binary(params, h, x):
    v = h @ params["W"] + x
    return straight_through((v > 0).astype(v.dtype), jax.nn.sigmoid(v))


STEPS = {
    "straight through": ({"W": (3, 3)}, binary),
    "a rule that mixes": (
        {"W": (3, 3)},
        lambda p, h, x: jnp.tanh(centred(0.5 * h + x * jnp.broadcast_to(p["W"][0], x.shape))),
    ),
    "relu": ({"a": (3,)}, lambda p, h, x: jax.nn.relu(h * jnp.broadcast_to(p["a"], h.shape) + x)),
    "a loop inside": (
        {"W": (3, 3)},
        lambda p, h, x: jax.lax.scan(lambda c, _: ((new := jnp.tanh(c @ p["W"] + x)), new), h, None, length=2)[1].mean(
            0
        ),
    ),
    "a branch": (
        {"W": (3, 3)},
        lambda p, h, x: jax.lax.cond(x.sum() > 0, lambda v: jax.nn.relu(v), lambda v: -v, jnp.tanh(h @ p["W"] + x)),
    ),
    "a matrix that is made": (
        {"W": (3, 3), "g": (3,)},
        lambda p, h, x: h @ (p["W"] * jnp.broadcast_to(p["g"], (3, 3))) + x,
    ),
    "a weight of each example": ({"c": (3, 3)}, lambda p, h, x: jnp.tanh(0.8 * h + x + p["c"][: x.shape[0]])),
    "what has a batch's size": (
        {"W": (3, 3)},
        lambda p, h, x: jnp.tanh(h @ p["W"] + x * jnp.arange(9.0).reshape(3, 3)),
    ),
}


FEW = ("straight through", "a loop inside", "a branch", "what has a batch's size")


@pytest.mark.parametrize("name", slow_but_for(FEW, STEPS))
def test_steps(name, x64):
    """In a batch of three, as large as all else is."""
    exact(cell_of(*STEPS[name]), batch=(3,))


@pytest.mark.parametrize("batch", [(), pytest.param((1,), marks=pytest.mark.slow)])
def test_a_weight_in_two_roles(batch, x64):
    step = lambda p, h, x: jnp.tanh(h @ p["W"] + jnp.broadcast_to(p["W"][:, 0], h.shape) + x + p["W"].sum() * x)
    exact(cell_of({"W": (3, 3)}, step), batch)


def test_a_weight_in_two_roles_is_estimated_without_bias(x64):
    cell = cell_of({"W": (2, 2)}, lambda p, h, x: jnp.tanh(h @ p["W"] + x[..., :2] * p["W"].sum() ** 2), size=2)
    net, params, xs = problem(cell, T=3, batch=(2,))

    def estimate(signs):
        total, carry = None, None
        for t in range(3):
            draw = lambda key, shape, dtype, t=t: jnp.broadcast_to(signs[min(t, 1)], shape)
            learner = online(net, uoro(signs=draw))
            carry = learner.init(params, first(xs), key=jax.random.key(0)) if carry is None else carry
            carry, _, grads = learner.update(params, carry, jax.tree.map(lambda a, t=t: a[t : t + 1], xs))
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        return total

    signs = jnp.array(list(itertools.product((-1.0, 1.0), repeat=4))).reshape(-1, 2, 2)
    found = jax.jit(lambda s: jax.tree.map(lambda a: a.mean(0), jax.vmap(estimate)(s)))(signs)
    assert error(found, bptt(net, params, xs)) < 1e-12


def test_rows_of_relu():
    net, params, xs = problem(rnn.ind_rnn(4), dtype=jnp.float32)
    assert {m.shape[1] for m in online(net, rtrl()).init(params, first(xs)).memory} == {1}


def test_precision_asked_for_is_kept():
    """`W h` with sums in float32 stays so when it is written as rows."""

    def step(params, h, x):
        z = jax.lax.dot_general(params["W"], h, (((0,), (1,)), ((), ())), preferred_element_type=jnp.float32).T
        return jnp.tanh(z + x.astype(jnp.float32)).astype(h.dtype)

    net, params, xs = problem(cell_of({"W": (3, 3)}, step), dtype=jnp.bfloat16)
    loss = lambda learner: learner.update(params, learner.init(params, first(xs)), xs)[1]
    losses = [float(jax.jit(lambda m=m: loss(online(net, m)))()) for m in (rtrl(), immediate())]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "method",
    [
        rtrl(),
        tbptt(2, every=2),
        pytest.param(immediate(), marks=pytest.mark.slow),
        pytest.param(uoro(), marks=pytest.mark.slow),
    ],
    ids=["rtrl", "tbptt", "none", "uoro"],
)
def test_a_key_for_one_window_alone(method):
    net, params, xs = problem(rnn.dropout(rnn.gru(4), 0.5, on="input"), dtype=jnp.float32)
    learner, part = online(net, method), jax.tree.map(lambda a: np.asarray(a)[:2], xs)
    start = jax.random.key(0) if isinstance(method, uoro) else None

    @jax.jit
    def loss(key):
        carry = learner.init(params, first(part), key=start)
        return learner.update(params, carry, part, key=key)[1]

    one, again, other = (float(loss(jax.random.key(n))) for n in (1, 1, 2))
    assert one == again != other


def test_keys_of_the_old_kind(x64):
    net, params, xs = problem(rnn.dropout(rnn.gru(4, **F64), 0.5, on="input"), T=4)
    key = jax.random.PRNGKey(3)
    assert error(by_windows(net, rtrl(), params, xs, (2,), key=key)[0], bptt(net, params, xs, key=key)) < 1e-12


def test_what_is_compared_draws_the_same():
    net, params, xs = problem(rnn.dropout(rnn.gru(4), 0.5, on="input"), T=1, dtype=jnp.float32)
    found = compare(net, params, xs, {"uoro": uoro()}, key=jax.random.key(0), draws=2)  # exact at the first step
    assert found["uoro"].whole.cosine > 0.9999
    with pytest.raises(ValueError, match=r"have a name twice; give a dict"):
        compare(net, params, xs, [snap(1), snap(1)])
    with pytest.raises(TypeError, match=r"methods must be values"):
        compare(net, params, xs, 3)
    with pytest.raises(ValueError, match=r"compare: xs has no time steps"):
        compare(net, params, jax.tree.map(lambda a: a[:0], xs), [snap(1)])


# --- refused, in one sentence -------------------------------------------------------------------------------------


def test_carries_and_states_of_another_kind():
    net, params, xs = problem(rnn.gru(4), dtype=jnp.float32)
    carry = online(net, snap(1)).init(params, first(xs))
    for other in (rtrl(), immediate()):
        with pytest.raises(ValueError, match=r"update: carry\.memory.* should .*; xs has the batch dimensions"):
            online(net, other).update(params, carry, xs)
    for state in (jnp.zeros((2, 4), int), jnp.zeros((3, 4)), (jnp.zeros((2, 4)),)):
        with pytest.raises(ValueError, match=r"init: state.* should .*; start from cell\.initial_state"):
            online(net, rtrl()).init(params, first(xs), state)


def test_a_derivative_of_the_backward_kind():
    @jax.custom_vjp
    def spike(v):
        return (v > 0).astype(v.dtype)

    spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g * jax.nn.sigmoid(v),))
    net, params, xs = problem(cell_of({"W": (3, 3)}, lambda p, h, x: spike(h @ p["W"] + x)), dtype=jnp.float32)
    for method in (rtrl(), eprop()):
        with pytest.raises(
            ValueError, match=r"jax\.custom_vjp leads to the state.*write it as a jax\.custom_jvp, or use"
        ):
            online(net, method).init(params, first(xs))
    online(net, immediate()).update(params, online(net, immediate()).init(params, first(xs)), xs)


def test_a_state_that_belongs_to_no_example():
    cell = rnn.gru(4)
    timed = cell._replace(
        initial_state=lambda p, batch: (cell.initial_state(p, batch), jnp.zeros(())),
        step=lambda p, s, x, key=None: (lambda h: ((h, s[1] + 1.0), h))(cell.step(p, s[0], x)[0] * 0.9),
    )
    net, params, xs = problem(timed, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"state\[1\] should start with the batch dimensions \[2\], got float32\[\]"):
        online(net, rtrl()).init(params, first(xs))


def test_examples_in_another_order():
    net, params, xs = problem(cell_of({"W": (3, 3)}, lambda p, h, x: jnp.sort(h @ p["W"] + x, 0)), dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"depends on another one"):
        online(net, rtrl()).init(params, first(xs))
