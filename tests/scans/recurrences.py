"""Steps with a closed form, written as anybody would write them: (params, state, x) -> (state, y)."""

import jax
import jax.numpy as jnp
from jax import lax

D, H = 3, 4  # input features, hidden units


def drawn(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / 2


def decay():
    """A weighted mean of the past."""
    params = {"a": jnp.linspace(0.5, 0.99, D)}

    def step(p, h, x):
        h = p["a"] * h + (1 - p["a"]) * x
        return h, h

    return params, step, jnp.zeros(D)


def gated(inputs=D, hidden=H):
    """A gated unit whose gate and candidate see the input alone."""
    params = {"z": drawn(1, inputs, hidden), "c": drawn(2, inputs, hidden)}

    def step(p, h, x):
        z = jax.nn.sigmoid(x @ p["z"])
        h = (1 - z) * h + z * (x @ p["c"])
        return h, h

    return params, step, jnp.zeros(hidden)


def two_gates():
    """The same with a gate of its own for what is forgotten; both scaled to one."""
    params = {"u": drawn(3, D, 3 * H)}

    def step(p, h, x):
        f, i, c = jnp.split(x @ p["u"], 3, -1)
        f, i = jax.nn.sigmoid(f), jax.nn.sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * jnp.tanh(c)
        return h, h

    return params, step, jnp.zeros(H)


def rotation():
    """Complex numbers as such."""
    params = {"r": jnp.linspace(-1, 1, H), "w": jnp.linspace(0.1, 3, H), "b": drawn(4, D, H), "c": drawn(5, H, D)}

    def step(p, h, x):
        turn = jnp.exp(lax.complex(-jnp.exp(p["r"]), p["w"]))
        h = turn * h + (x @ p["b"]).astype(h.dtype)
        return h, jnp.real(h) @ p["c"]

    return params, step, jnp.zeros(H, jnp.complex64)


def rotation_of_pairs():
    """The same with real and imaginary part as two leaves: a 2 x 2 block for each element."""
    params, _, _ = rotation()

    def step(p, state, x):
        re, im = state
        size, u = jnp.exp(-jnp.exp(p["r"])), x @ p["b"]
        cos, sin = size * jnp.cos(p["w"]), size * jnp.sin(p["w"])
        re, im = cos * re - sin * im + u, sin * re + cos * im
        return (re, im), re @ p["c"]

    return params, step, (jnp.zeros(H), jnp.zeros(H))


def selective():
    """A matrix of states whose decay the input chooses (the core of Gu and Dao 2023)."""
    N = 2
    params = {"a": drawn(6, D, N), "b": drawn(7, D, N), "c": drawn(8, D, N), "d": drawn(9, D, D)}

    def step(p, h, x):
        pace = jax.nn.softplus(x @ p["d"])[..., None]
        h = jnp.exp(-pace * jnp.exp(p["a"])) * h + pace * x[..., None] * (x @ p["b"])[..., None, :]
        return h, jnp.sum(h * (x @ p["c"])[..., None, :], -1)

    return params, step, jnp.zeros((D, N))


def matrix_memory():
    """Keys and values in a matrix under scalar gates, scaled by a running maximum (after Beck et al. 2024)."""
    K, V = 2, 3
    params = {"q": drawn(1, D, K), "k": drawn(2, D, K), "v": drawn(3, D, V), "i": drawn(4, D), "f": drawn(5, D)}

    def step(p, state, x):
        memory, norm, top_tm1 = state
        q, k, v = x @ p["q"], x @ p["k"], x @ p["v"]
        i, f = x @ p["i"], jax.nn.log_sigmoid(x @ p["f"] + 2)
        top = jnp.maximum(f + top_tm1, i)
        kept, new = jnp.exp(f + top_tm1 - top)[..., None], jnp.exp(i - top)[..., None]
        memory = kept[..., None] * memory + new[..., None] * (k[..., :, None] * v[..., None, :])
        norm = kept * norm + new * k
        scale = jnp.maximum(jnp.abs(jnp.sum(q * norm, -1)), jnp.exp(-top))
        return (memory, norm, top), jnp.einsum("...k,...kv->...v", q, memory) / scale[..., None]

    return params, step, (jnp.zeros((K, V)), jnp.zeros(K), jnp.full((), -5.0))


def two_layers():
    """Two gated units one upon the other, with a layer between."""
    (p1, s1, h1), (p2, s2, h2) = gated(), gated(H, H)

    def step(p, state, x):
        a, y = s1(p["1"], state[0], x)
        b, y = s2(p["2"], state[1], jnp.tanh(y @ p["v"]) + y)
        return (a, b), jax.nn.log_softmax(y)

    return {"1": p1, "2": p2, "v": drawn(9, H, H)}, step, (h1, h2)


def longest_wait():
    """How long one waits in a queue (Lindley 1952)."""
    params = {"u": drawn(1, D, H)}

    def step(p, h, x):
        h = jnp.maximum(h + x @ p["u"] - 0.1, 0)
        return h, h

    return params, step, jnp.zeros(H)


def rectified():
    """Each unit sees only itself (Li et al. 2018), by weights of either sign."""
    params = {"u": drawn(2, D, H), "w": jnp.linspace(-0.95, 0.98, H)}

    def step(p, h, x):
        h = jax.nn.relu(x @ p["u"] + p["w"] * h)
        return h, h

    return params, step, jnp.zeros(H)


def clipped_twice():
    """Bounds on both sides, upside down and cast."""
    params = {"u": drawn(3, D, H)}

    def step(p, h, x):
        h = -jnp.clip(-0.8 * h + x @ p["u"], -0.5, 0.6)
        return h, jnp.sin(h)

    return params, step, jnp.zeros(H)


def logarithms():
    """A gated unit in logarithms."""
    params = {"z": drawn(4, D, H), "c": drawn(5, D, H)}

    def step(p, h, x):
        k, c = x @ p["z"], x @ p["c"]
        h = jnp.logaddexp(-jax.nn.softplus(k) + h, -jax.nn.softplus(-k) + jax.nn.log_sigmoid(c))
        return h, jnp.exp(h)

    return params, step, jnp.full(H, -1.0)


def guarded_by_hand():
    """Beginnings and ends that the input chooses."""
    params, inner, start = gated()

    def step(p, h, x):
        h = jnp.where(x[..., :1] > 1, 0.1, h)
        new, y = inner(p, h, x)
        goes_on = x[..., 1:2] > -1
        return jnp.where(goes_on, new, h), jnp.where(goes_on, y, 0)

    return params, step, start


STEPS = {
    "decay": (decay, ["affine"]),
    "gated": (gated, ["affine"]),
    "two_gates": (two_gates, ["affine"]),
    "rotation": (rotation, ["affine"]),
    "rotation_of_pairs": (rotation_of_pairs, ["affine"]),
    "selective": (selective, ["affine"]),
    "matrix_memory": (matrix_memory, ["clipped", "affine", "affine"]),
    "two_layers": (two_layers, ["affine", "affine"]),
    "longest_wait": (longest_wait, ["clipped"]),
    "rectified": (rectified, ["clipped"]),
    "clipped_twice": (clipped_twice, ["clipped"]),
    "logarithms": (logarithms, ["logarithmic"]),
    "guarded_by_hand": (guarded_by_hand, ["affine"]),
}


def problem(name, steps, batch=2, dtype=jnp.float64):
    """(step, params, state, xs) in a dtype, the state a little off its beginning."""
    params, step, state = STEPS[name][0]()

    def cast(a):
        return a.astype(jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(a) else dtype)

    params, state = jax.tree.map(cast, (params, state))
    state = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)) + jnp.asarray(0.1, a.dtype), state)
    return step, params, state, jax.random.normal(jax.random.key(7), (steps, batch, D), jnp.float32).astype(dtype)
