"""Other libraries' recurrent layers with our weights: the same function, run their way.

Each builder takes (cell name, our parameters) and gives (their parameters, run), where run(their
parameters, xs [T, B, D]) -> ys [T, B, H]; or raises Absent where the library is not installed or has no
cell of the same formula. Gate orders: ours i, f, g, o and r, z, n.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Run = Callable[[Any, jax.Array], jax.Array]


class Absent(Exception):
    """Why a peer is left out."""


def _sizes(params: Any) -> tuple[int, int]:
    return params["U"].shape[0], params["W"].shape[0]


def _blocks(array: jax.Array, count: int) -> list[jax.Array]:
    return jnp.split(array, count, axis=-1)


def checkpointed_scans() -> dict[str, Callable[..., Any]]:
    """Equinox's checkpointed scan, by default and with few carries kept, as scans without outputs; none if absent."""
    try:
        import equinox.internal as eqxi
    except ImportError:
        return {}

    def keeping(checkpoints: int | None) -> Callable[..., Any]:
        def scan(f: Any, init: Any, xs: Any = None, length: int | None = None, reverse: bool = False) -> Any:
            if reverse:
                raise ValueError("Equinox's scan runs forward only")
            # It wants one array of outputs.
            body = lambda carry, x: (f(carry, x)[0], jnp.zeros(()))
            carry, _ = eqxi.scan(body, init, xs, length, kind="checkpointed", checkpoints=checkpoints)
            return carry, ()

        return scan

    return {"equinox checkpointed": keeping(None), "equinox checkpointed, 8 kept": keeping(8)}


def textbook(cell: str, params: Any) -> tuple[Any, Run]:
    """The equations as a tutorial writes them, under `lax.scan`."""
    size = params["W"].shape[0]
    part = lambda z, n: z[..., n * size : (n + 1) * size]
    s = jax.nn.sigmoid

    def lstm(p: Any, carry: Any, x: jax.Array) -> Any:
        h, c = carry
        z = x @ p["U"] + h @ p["W"] + jnp.broadcast_to(p["b"], (*h.shape[:-1], 4 * size))
        c = s(part(z, 1)) * c + s(part(z, 0)) * jnp.tanh(part(z, 2))
        h = s(part(z, 3)) * jnp.tanh(c)
        return (h, c), h

    def gru(p: Any, h: Any, x: jax.Array) -> Any:
        a = x @ p["U"] + jnp.broadcast_to(p["b"], (*h.shape[:-1], 3 * size))
        b = h @ p["W"]
        r, z = s(part(a, 0) + part(b, 0)), s(part(a, 1) + part(b, 1))
        n = jnp.tanh(part(a, 2) + r * (part(b, 2) + jnp.broadcast_to(p["c_n"], h.shape)))
        h = (1 - z) * n + z * h
        return h, h

    def elman(p: Any, h: Any, x: jax.Array) -> Any:
        h = jnp.tanh(x @ p["U"] + h @ p["W"] + jnp.broadcast_to(p["b"], h.shape))
        return h, h

    step = {"lstm": lstm, "gru": gru, "elman": elman}[cell]

    def run(p: Any, xs: jax.Array) -> jax.Array:
        zero = jnp.zeros((xs.shape[1], size))
        return lax.scan(lambda c, x: step(p, c, x), (zero, zero) if cell == "lstm" else zero, xs)[1]

    return params, run


def _flax(module: nn.Module, params: Any) -> tuple[Any, Run]:
    rnn = nn.RNN(module, time_major=True)
    return {"params": {"cell": params}}, lambda p, xs: rnn.apply(p, xs)


def _flax_gates(params: Any, names: str) -> dict[str, Any]:
    u, w, b = (_blocks(params[k], len(names)) for k in ("U", "W", "b"))
    cell = {f"i{g}": {"kernel": u[n]} for n, g in enumerate(names)}
    return cell | {f"h{g}": {"kernel": w[n], "bias": b[n]} for n, g in enumerate(names)}


def flax_rnn(cell: str, params: Any) -> tuple[Any, Run]:
    """nn.RNN over LSTMCell, GRUCell or SimpleCell."""
    _, size = _sizes(params)
    if cell == "lstm":
        return _flax(nn.LSTMCell(size), _flax_gates(params, "ifgo"))
    if cell == "gru":
        gates = _flax_gates(params, "rzn")
        for n, name in enumerate("rzn"):
            gates[f"i{name}"]["bias"] = _blocks(params["b"], 3)[n]
            del gates[f"h{name}"]["bias"]
        gates["hn"]["bias"] = params["c_n"]
        return _flax(nn.GRUCell(size), gates)
    inputs = {"kernel": params["U"], "bias": params["b"]}
    return _flax(nn.SimpleCell(size), {"i": inputs, "h": {"kernel": params["W"]}})


def flax_optimized(cell: str, params: Any) -> tuple[Any, Run]:
    """nn.RNN over OptimizedLSTMCell."""
    if cell != "lstm":
        raise Absent("Flax has an optimized cell for the LSTM alone")
    return _flax(nn.OptimizedLSTMCell(_sizes(params)[1]), _flax_gates(params, "ifgo"))


def haiku(cell: str, params: Any) -> tuple[Any, Run]:
    """dynamic_unroll over hk.LSTM; gates i, g, f, o, with 1 added to f."""
    try:
        import haiku as hk
    except ImportError as error:
        raise Absent(f"haiku is not installed: {error}") from error
    if cell != "lstm":
        raise Absent("Haiku's GRU resets before the product and its simple cell is a relu: other formulas")
    _, size = _sizes(params)
    order = [0, 2, 1, 3]
    arrange = lambda a: jnp.concatenate([_blocks(a, 4)[n] for n in order], -1)
    bias = arrange(params["b"] - (jnp.arange(4 * size) // size == 1).astype(params["b"].dtype))
    theirs = {"lstm/linear": {"w": arrange(jnp.concatenate([params["U"], params["W"]])), "b": bias}}

    def forward(xs: jax.Array) -> jax.Array:
        core = hk.LSTM(size)
        return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

    net = hk.without_apply_rng(hk.transform(forward))
    return theirs, net.apply


def equinox(cell: str, params: Any) -> tuple[Any, Run]:
    """eqx.nn.LSTMCell or GRUCell, vmapped over the batch, under `lax.scan`."""
    try:
        import equinox as eqx
    except ImportError as error:
        raise Absent(f"equinox is not installed: {error}") from error
    inputs, size = _sizes(params)
    if cell == "lstm":
        made = eqx.nn.LSTMCell(inputs, size, key=jax.random.key(0))
        where, new = lambda m: (m.weight_ih, m.weight_hh, m.bias), (params["U"].T, params["W"].T, params["b"])
    elif cell == "gru":
        made = eqx.nn.GRUCell(inputs, size, key=jax.random.key(0))
        where = lambda m: (m.weight_ih, m.weight_hh, m.bias, m.bias_n)
        new = (params["U"].T, params["W"].T, params["b"], params["c_n"])
    else:
        raise Absent("Equinox has no simple recurrent cell")
    arrays, static = eqx.partition(eqx.tree_at(where, made, new), eqx.is_array)

    def run(p: Any, xs: jax.Array) -> jax.Array:
        zero = jnp.zeros((xs.shape[1], size))

        def step(carry: Any, x: jax.Array) -> Any:
            carry = jax.vmap(eqx.combine(p, static))(x, carry)
            return carry, carry[0] if cell == "lstm" else carry

        return lax.scan(step, (zero, zero) if cell == "lstm" else zero, xs)[1]

    return arrays, run


def keras(cell: str, params: Any) -> tuple[Any, Run]:
    """keras.layers on the JAX backend; batch first, GRU gates z, r, n."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras as k
    except ImportError as error:
        raise Absent(f"keras is not installed: {error}") from error
    if k.backend.backend() != "jax":
        raise Absent(f"keras runs on {k.backend.backend()}; set KERAS_BACKEND=jax")
    inputs, size = _sizes(params)
    swap = lambda a: jnp.concatenate([_blocks(a, 3)[n] for n in (1, 0, 2)], -1)
    if cell == "lstm":
        layer, theirs = k.layers.LSTM(size, return_sequences=True), [params["U"], params["W"], params["b"]]
    elif cell == "gru":
        bias = jnp.stack([swap(params["b"]), jnp.concatenate([jnp.zeros(2 * size), params["c_n"]])])
        layer, theirs = k.layers.GRU(size, return_sequences=True), [swap(params["U"]), swap(params["W"]), bias]
    else:
        layer, theirs = k.layers.SimpleRNN(size, return_sequences=True), [params["U"], params["W"], params["b"]]
    layer.build((None, None, inputs))
    fixed = [v.value for v in layer.non_trainable_variables]

    def run(p: Any, xs: jax.Array) -> jax.Array:
        return layer.stateless_call(p, fixed, xs.swapaxes(0, 1))[0].swapaxes(0, 1)

    return theirs, run


def torch(cell: str, params: Any, xs: Any, weights: Any) -> tuple[dict[str, Callable[[], float]], jax.Array]:
    """torch.nn's layer on the device that JAX uses: forward pass and train step, and the loss's gradient by xs.

    Where JAX was told to multiply in full precision, so is PyTorch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch as t
    except ImportError as error:
        raise Absent(f"torch is not installed: {error}") from error
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not t.cuda.is_available():
        raise Absent("this torch runs on the CPU alone")
    t.backends.cudnn.allow_tf32 = jax.config.jax_default_matmul_precision not in ("highest", "float32")
    inputs, size = _sizes(params)
    layer = {"lstm": t.nn.LSTM, "gru": t.nn.GRU, "elman": t.nn.RNN}[cell](inputs, size).to(device)
    tensor = lambda a: t.from_numpy(np.array(a, np.float32)).to(device)
    hidden = jnp.zeros_like(params["b"])
    if cell == "gru":
        hidden = hidden.at[2 * size :].set(params["c_n"])
    ours = {"weight_ih_l0": params["U"].T, "weight_hh_l0": params["W"].T}
    ours |= {"bias_ih_l0": params["b"], "bias_hh_l0": hidden}
    layer.load_state_dict({name: tensor(a) for name, a in ours.items()})
    x, w = tensor(xs), tensor(weights)

    def forward() -> float:
        with t.no_grad():
            return (layer(x)[0] * w).sum().item()

    def train() -> float:
        layer.zero_grad()
        loss = (layer(x)[0] * w).sum()
        loss.backward()
        return loss.item()

    probe = x.clone().requires_grad_(True)
    (layer(probe)[0] * w).sum().backward()
    return {"forward": forward, "train": train}, jnp.asarray(probe.grad.cpu().numpy())


def cudnn_weights(params: Any) -> jax.Array:
    """An LSTM's parameters as cuDNN wants them: one array, U and W transposed, two biases; gates i, f, g, o."""
    return jnp.concatenate([a.reshape(-1) for a in (params["U"].T, params["W"].T, params["b"], 0 * params["b"])])


def cudnn(cell: str, params: Any) -> tuple[Any, Run]:
    """jax.experimental.rnn, on a GPU: cuDNN's LSTM, batch first.

    JAX checks it against its `lstm_ref`, and our tests check our weights in that one, on the CPU.
    """
    if jax.default_backend() != "gpu" or cell != "lstm":
        raise Absent("cuDNN's LSTM needs a GPU")
    from jax.experimental import rnn

    inputs, size = _sizes(params)

    def run(p: Any, xs: jax.Array) -> jax.Array:
        steps, batch, _ = xs.shape
        zero, lengths = jnp.zeros((1, batch, size)), jnp.full((batch,), steps, jnp.int32)
        return rnn.lstm(xs.swapaxes(0, 1), zero, zero, p, lengths, inputs, size, 1, 0.0, False)[0].swapaxes(0, 1)

    return cudnn_weights(params), run


PEERS: dict[str, Callable[[str, Any], tuple[Any, Run]]] = {
    "textbook": textbook,
    "flax": flax_rnn,
    "flax optimized": flax_optimized,
    "haiku": haiku,
    "equinox": equinox,
    "keras": keras,
    "cudnn": cudnn,
}
