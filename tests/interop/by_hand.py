"""PyTorch's published equations as plain Python loops over a state_dict in NumPy, and state_dicts to try them with."""

import jax
import numpy as np

import jaxrnn as rnn

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def weights(kind, inputs, size, layers=1, directions=1, bias=True, projection=None, dtype=np.float64, seed=0):
    """A state_dict of torch.nn.RNN, LSTM or GRU with random numbers in it."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (0.6 * rng.normal(size=shape)).astype(dtype)
    rows, outputs = GATES[kind] * size, projection or size
    found = {}
    for n in range(layers):
        for end in ("", "_reverse")[:directions]:
            found[f"weight_ih_l{n}{end}"] = draw(rows, inputs if n == 0 else outputs * directions)
            found[f"weight_hh_l{n}{end}"] = draw(rows, outputs)
            if bias:
                found[f"bias_ih_l{n}{end}"], found[f"bias_hh_l{n}{end}"] = draw(rows), draw(rows)
            if projection:
                found[f"weight_hr_l{n}{end}"] = draw(outputs, size)
    return found


def step(kind, at, state, x, activation):
    """One time step: (h, c), x -> (h, c); `at` gives a tensor by the beginning of its name, 0 where there is none."""
    h, c = state
    from_x = x @ at("weight_ih").T + at("bias_ih")
    from_h = h @ at("weight_hh").T + at("bias_hh")
    if kind == "rnn":
        return activation(from_x + from_h), c
    if kind == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(from_x, 3, -1), np.split(from_h, 3, -1)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        return (1 - z) * np.tanh(n_x + r * n_h) + z * h, c
    i, f, g, o = np.split(from_x + from_h, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h @ at("weight_hr").T if np.ndim(at("weight_hr")) else h), c


def run(kind, tensors, xs, activation=np.tanh):
    """(ys [T, B, ...], h_n [layers * directions, B, H], c_n) as PyTorch gives them."""
    layers = 1 + max(int(name.split("_l")[1].split("_")[0]) for name in tensors)
    ends = ("", "_reverse") if any(name.endswith("_reverse") for name in tensors) else ("",)
    last_h, last_c = [], []
    for n in range(layers):
        sides = []
        for end in ends:
            at = lambda name, end=end, n=n: tensors.get(f"{name}_l{n}{end}", 0)
            units = len(at("weight_ih")) // GATES[kind]
            state = np.zeros((xs.shape[1], at("weight_hh").shape[1])), np.zeros((xs.shape[1], units))
            ys = [None] * len(xs)
            for t in reversed(range(len(xs))) if end else range(len(xs)):
                state = step(kind, at, state, xs[t], activation)
                ys[t] = state[0]
            sides.append(np.stack(ys))
            last_h.append(state[0])
            last_c.append(state[1])
        xs = np.concatenate(sides, -1)
    return xs, np.stack(last_h), np.stack(last_c)


def unrolled(net, params, xs):
    """Our state and outputs, under the simplest of scans: one small program."""
    return jax.jit(lambda params, xs: rnn.unroll(net, params, xs, scan=jax.lax.scan))(params, xs)


def ends(state):
    """h_n of PyTorch's from our nested states, [layers * directions, B, H]; c_n of LSTMs."""
    states = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, rnn.LSTMState) or not isinstance(s, tuple))
    is_lstm = isinstance(states[0], rnn.LSTMState)
    h = np.stack([s.h if is_lstm else s for s in states])
    return h, np.stack([s.c for s in states]) if is_lstm else None
