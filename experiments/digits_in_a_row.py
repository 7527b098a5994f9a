"""scikit-learn's handwritten digits, pixel by pixel, then a wait: which digit was it?

An image of 8 x 8 is 64 steps, after which nothing comes for `wait` steps; the last output is the answer. So what
was seen must be kept over a wait many times as long as the digit. Every net has its memory opened to the sequence's
length by the best means known for it, and runs under the scan that suits it; all train for the same seconds of the
processor's time, which other programs on the machine do not change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jaxrnn as rnn

PIXELS, CLASSES, HELD_OUT = 64, 10, 360


class Net(NamedTuple):
    cell: Callable[[int, int], rnn.Cell]  # (units, steps) -> the recurrent layer
    scan: rnn.Scan
    gates: tuple[int, ...] = ()  # the sign of the open gates' bias, by block of b; none for cells without


def _lru(size: int, steps: int) -> rnn.Cell:
    """Its slowest units fade by a fifth over the sequence."""
    return rnn.stack(rnn.cells.lru(size, ring=(0.98, 1 - 0.2 / steps), max_phase=math.pi / 10), rnn.lift(jax.nn.gelu))


NETS = {
    "lru, parallel(segment=32)": Net(_lru, rnn.parallel(segment=32)),
    "lru, jaxrnn.scan": Net(_lru, rnn.scan),
    "lstm, jaxrnn.scan": Net(lambda size, steps: rnn.lstm(size), rnn.scan, (-1, 1, 0, 0)),
}


def digits() -> tuple[Any, Any]:
    """(images [N, 64] in 0..1, labels [N]) to train on, and held out."""
    found = load_digits()
    images, labels = jnp.asarray(found.data, jnp.float32) / 16, jnp.asarray(found.target, jnp.int32)
    return (images[:-HELD_OUT], labels[:-HELD_OUT]), (images[-HELD_OUT:], labels[-HELD_OUT:])


def in_a_row(images: jax.Array, wait: int) -> jax.Array:
    """[B, 64] -> [64 + wait, B, 2]: a pixel, and whether there is one."""
    shown = jnp.stack([images.T, jnp.ones_like(images.T)], axis=-1)
    return jnp.pad(shown, ((0, wait), (0, 0), (0, 0)))


def opened(params: Any, gates: tuple[int, ...], steps: int, key: jax.Array) -> Any:
    """Biases b = log(1..T) of the gates that keep, -b of those that write (Tallec and Ollivier 2018)."""
    if not gates:
        return params
    size = params["b"].shape[0] // len(gates)
    bias = jnp.log(jax.random.uniform(key, (size,), minval=1.0, maxval=steps - 1.0))
    return params | {"b": jnp.concatenate([sign * bias for sign in gates])}


def built(net: Net, size: int, wait: int, seed: int) -> tuple[Any, Callable[..., jax.Array]]:
    """(parameters, (parameters, images) -> logits [B, 10])"""
    steps = PIXELS + wait
    layers = rnn.layer(nn.Dense(size)), net.cell(size, steps), rnn.layer(nn.Dense(CLASSES))
    keys, x = jax.random.split(jax.random.key(seed)), jax.ShapeDtypeStruct((2,), jnp.float32)
    first, recurrent, last = rnn.stack(*layers).init(keys[0], x)
    params = first, opened(recurrent, net.gates, steps, keys[1]), last
    recurrence = rnn.stack(*layers[:2])

    def logits(params: Any, images: jax.Array) -> jax.Array:
        _, ys = rnn.unroll(recurrence, params[:2], in_a_row(images, wait), scan=net.scan)
        return layers[2].step(params[2], layers[2].initial_state(params[2], ys.shape[1:-1]), ys[-1])[1]

    return params, logits


def learned(
    name: str, size: int, batch: int, wait: int, seconds: float, rate: float = 3e-3, seed: int = 0
) -> dict[str, Any]:
    """One net trained for so many seconds of processor time, compilation apart: what it has learned by when."""
    params, logits = built(NETS[name], size, wait, seed)
    (images, labels), held_out = digits()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def loss(params: Any, n: jax.Array) -> jax.Array:
        drawn = jax.random.randint(jax.random.fold_in(jax.random.key(seed + 1), n), (batch,), 0, len(images))
        errors = optax.softmax_cross_entropy_with_integer_labels(logits(params, images[drawn]), labels[drawn])
        return jnp.mean(errors)

    def update(n: jax.Array, params: Any, moments: Any) -> Any:
        error, grads = jax.value_and_grad(loss)(params, n)
        change, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, change), moments, error

    step = jax.jit(update).lower(0, params, moments := optimizer.init(params)).compile()
    right = lambda params, some: jnp.mean(jnp.argmax(logits(params, some[0]), -1) == some[1])
    score = jax.jit(partial(right, some=held_out)).lower(params).compile()
    curve, spent, n, asked = [], 0.0, 0, 0.0
    while spent < seconds:
        start = time.process_time()
        params, moments, error = jax.block_until_ready(step(n, params, moments))
        spent, n = spent + time.process_time() - start, n + 1
        if spent >= asked:
            curve.append((n, round(spent, 3), float(error), float(score(params))))
            asked = spent + seconds / 12
    curve.append((n, round(spent, 3), float(error), float(score(params))))
    return {"updates": n, "right": curve[-1][3], "seconds": spent, "curve": curve}
