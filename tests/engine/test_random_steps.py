"""Steps made at random: whatever the step does, `fissioned` means what `lax.scan` means."""

import jax
import jax.numpy as jnp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxrnn as rnn
from tests.reference import assert_close

N, T = 3, 4


def _nested(w, u, v):
    """A loop within the step, with a weight and a value of the step closed over."""
    body = lambda c, _: (jnp.tanh(c @ w + v), c[0])
    c, firsts = lax.scan(body, u, None, length=2)
    return c + jnp.sum(firsts)


def _while(u, v):
    return lax.fori_loop(0, 2, lambda i, a: jnp.sin(a) + v * jnp.float64(i), u)


# Each takes (weights, two vectors, an integer) and gives a vector.
OPERATIONS = [
    lambda w, u, v, n: u @ w[0],
    lambda w, u, v, n: w[1] @ u,
    lambda w, u, v, n: u @ w[2] + v,
    lambda w, u, v, n: v - u @ (w[0] * w[1]),
    lambda w, u, v, n: u + v,
    lambda w, u, v, n: u * v,
    lambda w, u, v, n: u * w[3, 0],
    lambda w, u, v, n: u + w[3, 1],
    lambda w, u, v, n: jnp.tanh(u),
    lambda w, u, v, n: jax.nn.relu(u) + jax.nn.softplus(v),
    lambda w, u, v, n: jnp.where(u > v, u, 0.5 * v),
    lambda w, u, v, n: jnp.concatenate([u[:1], v[1:]]),
    lambda w, u, v, n: jax.nn.softmax(u) * jnp.sum(v),
    lambda w, u, v, n: jnp.outer(u, v) @ u,
    lambda w, u, v, n: jnp.stack([u, v])[:, ::-1].sum(0),
    lambda w, u, v, n: w[n % 4, 0] + u,
    lambda w, u, v, n: jnp.where(n > 1, u, v),
    lambda w, u, v, n: lax.cond(jnp.sum(u) > 0, lambda a: a @ w[1], jnp.sin, v),
    lambda w, u, v, n: lax.stop_gradient(u) * v,
    lambda w, u, v, n: jax.checkpoint(lambda a: jnp.sin(a @ w[2]))(u),
    lambda w, u, v, n: jax.jit(lambda a, b: jnp.cos(a) - b)(u, v),
    lambda w, u, v, n: _nested(w[0], u, v),
    lambda w, u, v, n: _while(u, v),
]

program = st.lists(
    st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=9
)
roots = st.tuples(*[st.integers(0, 30)] * 4)


def step_of(operations, picks, w):
    """Carry: two vectors and a counter; x: a vector. Carry and outputs are any values of the program."""

    def step(carry, x):
        a, b, n = carry
        values = [x, a, b]
        for which, left, right in operations:
            u, v = values[left % len(values)], values[right % len(values)]
            values.append(jnp.clip(OPERATIONS[which](w, u, v, n), -3, 3))
        chosen = [values[p % len(values)] for p in picks]
        return (chosen[0], chosen[1], n + 1), (chosen[2], jnp.sum(chosen[3]), n)

    return step


def everything(scan, operations, picks, reverse):
    """Values, all gradients, a directional derivative, a Hessian-vector product, gradients under vmap."""

    def run(w, s, xs):
        carry, ys = scan(step_of(operations, picks, w), (*s, jnp.int32(0)), xs, reverse=reverse)
        return jnp.sum(jnp.sin(carry[0]) + carry[1]) + jnp.sum(jnp.cos(ys[0])) + jnp.sum(ys[1]), (carry, ys)

    def compute(w, s, xs):
        loss = lambda *args: run(*args)[0]
        gradient = jax.grad(loss, (0, 1, 2))
        direction = jax.tree.map(jnp.cos, (w, s, xs))
        many = jnp.stack([xs, -xs], 1)
        return (
            run(w, s, xs)[1],
            gradient(w, s, xs),
            jax.jvp(loss, (w, s, xs), direction)[1],
            jax.jvp(gradient, (w, s, xs), direction)[1],
            jax.grad(lambda w: jnp.sum(jax.vmap(loss, (None, None, 1))(w, s, many)))(w),
            jax.vmap(gradient, (None, None, 1))(w, s, many),
        )

    keys = jax.random.split(jax.random.key(3), 4)
    w, xs = jax.random.normal(keys[0], (4, N, N)), jax.random.normal(keys[1], (T, N))
    return jax.jit(compute)(w, tuple(jax.random.normal(keys[2], (2, N))), xs)


# Every example compiles two large programs: no time to look for a smaller one that fails too.
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(program, roots, st.booleans(), st.sampled_from([(None, False), (None, True), (3, False), (2, True)]))
def test_any_step_is_as_under_lax_scan(operations, picks, reverse, how):
    with jax.enable_x64(True):
        segment, separate = how
        got = everything(rnn.fissioned(segment, separate=separate), operations, picks, reverse)
        assert_close(got, everything(lax.scan, operations, picks, reverse), 1e-10)
