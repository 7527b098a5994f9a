"""Nets that learn from streams as they come, several seeds side by side, and what is left of their loss."""

from __future__ import annotations

import functools
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn as rnn
from experiments.streams_to_learn import Stream

POINTS = 60  # of a curve
STILL = optax.set_to_zero()


@functools.cache
def optimizer(rate: float) -> optax.GradientTransformation:
    """Adam with a clipped gradient; its epsilon keeps it calm where there is nothing left to learn."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, eps=1e-3))


@functools.cache
def begun(stream: Stream, seeds: int) -> tuple[jax.Array, Any, Any]:
    """(keys, first parameters, number of a stretch -> its steps), for each seed."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    some = jax.jit(jax.vmap(stream.some, (0, None)))
    x = jax.tree.map(lambda a: a[0, 0], some(keys, 0))
    params = jax.jit(jax.vmap(lambda key: stream.start(stream.net.init(key, x))))(keys)
    return keys, params, lambda n: some(keys, n)


@partial(jax.jit, static_argnums=(0, 1, 2))
def advanced(learner: rnn.online.Learner, rule: optax.GradientTransformation, window: int, now: Any, xs: Any) -> Any:
    """A stretch further, all seeds: ((params, moments, carry), losses [seeds, updates])."""
    return jax.vmap(lambda now, xs: rnn.online.learn(learner, rule, *now, xs, window))(now, xs)


def followed(
    stream: Stream, method: rnn.online.Method, rate: float, seeds: int, freeze: int | None = None
) -> tuple[dict[str, Any], Any]:
    """What is left of the loss, and the last parameters [seeds, ...].

    From the stretch `freeze` on the parameters stay as they are.
    """
    started = time.perf_counter()
    keys, params, some = begun(stream, seeds)
    learner, rule = rnn.online.online(stream.net, method), optimizer(rate)
    x = jax.tree.map(lambda a: a[:, 0], some(0))
    carry = jax.vmap(lambda p, x, key: learner.init(p, x, key=key))(params, x, keys)
    carried = sum(a.nbytes for a in jax.tree.leaves(carry)) // seeds
    now, losses = (params, jax.vmap(rule.init)(params), carry), []
    window = max(stream.length, getattr(method, "every", 1))
    for n in range(stream.stretches):
        if n == freeze:
            params, _, carry = now
            learner, rule = rnn.online.online(stream.net, rnn.online.immediate()), STILL
            now = params, jax.vmap(rule.init)(params), jax.vmap(learner.init)(params, x, carry.state)
        now, found = advanced(learner, rule, window, now, some(n))
        losses.append(found)
    curve = np.concatenate(losses, axis=1).astype(float) * stream.unit * stream.length
    pieces = np.array_split(curve, min(POINTS, curve.shape[1]), axis=1)
    row = {
        "left": curve[:, -max(1, curve.shape[1] // 5) :].mean(axis=1).tolist(),
        "whole": float(curve.mean()),
        "carried": carried,
        "updates": curve.shape[1],
        "curve": [piece.mean(axis=1).tolist() for piece in pieces],
        "seconds": time.perf_counter() - started,
    }
    return row, now[0]
