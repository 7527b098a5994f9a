"""The unrolled graph: equal to the scan in values and gradients, for nets drawn at random too."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jaxrnn as rnn
from jaxrnn import prev
from tests.reference import assert_close, scalar
from tests.zoo import sequence

T, B = 5, 2
F64 = jnp.float64
FEW = settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])


def dense(size):
    return nn.Dense(size, dtype=F64, param_dtype=F64)


def squashed(size):
    return rnn.stack(rnn.layer(dense(size)), rnn.lift(jnp.tanh))


def nested():
    return rnn.graph(
        {"a": (squashed(3), ["x", prev("b", steps=2)]), "b": (squashed(2), ["a", prev("a")])}, output=("a", "b")
    )


WHATS = {
    "layer": lambda: squashed(2),
    "gru": lambda: rnn.gru(3, dtype=F64),
    "lstm": lambda: rnn.lstm(2, dtype=F64, learn_initial_state=True),
    "jordan": lambda: rnn.jordan(3, 2, dtype=F64),
    "graph": lambda: rnn.stack(nested(), rnn.lift(lambda pair: jnp.concatenate(pair, axis=-1))),
    "function": lambda: total,
}


def total(*values):
    """A function of any number of arrays of any size: [..., 2]."""
    sums = [jnp.sum(jnp.sin(value), axis=-1, keepdims=True) for value in values]
    return jnp.concatenate([sum(sums), sums[0]], axis=-1)


@st.composite
def drawings(draw):
    """Up to 8 vertices (name, what, sources); each reads some of those before it, and any with a delay of 1 to 3."""
    names = [f"v{n}" for n in range(draw(st.integers(1, 8)))]
    drawing = []
    for n, name in enumerate(names):
        now = draw(st.lists(st.sampled_from(["x", *names[:n]]), max_size=2, unique=True))
        late = draw(st.lists(st.tuples(st.sampled_from(["x", *names]), st.integers(1, 3)), max_size=2, unique=True))
        sources = [*now, *(prev(source, steps=d) for source, d in late)] or ["x"]
        drawing.append((name, draw(st.sampled_from(sorted(WHATS))), draw(st.permutations(sources))))
    return drawing


@given(drawing=drawings(), scan=st.sampled_from([jax.lax.scan, rnn.scan, rnn.checkpointed(2)]), seed=st.integers(0, 99))
@FEW
def test_a_random_graph_equals_its_unrolled_graph(drawing, scan, seed):
    with jax.enable_x64(True):
        vertices = {name: (WHATS[what](), sources) for name, what, sources in drawing}
        net = rnn.graph(vertices, output=tuple(vertices))
        xs = sequence(seed, (T, B), F64)
        params = net.init(jax.random.key(seed), xs[0])
        state = jax.tree.map(lambda a: a + 0.1, net.initial_state(params, (B,)))

        def by_scan(params, xs, state):
            out = rnn.unroll(net, params, xs, state, scan=scan)
            return scalar(*out), out

        def by_copies(params, xs, state):
            out = rnn.unrolled(net, T).evaluate(params, xs, state)
            return scalar(*out), out

        gradients = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(params, xs, state)
        assert_close(gradients(by_scan), gradients(by_copies), 1e-10)
