"""Nets that read a sequence from both ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.sequence.layers import Given, LayerDefinition, live, zero_where_not
from jaxrnn.sequence.unrolling import unroll
from jaxrnn.types import Cell, Key, Params, SequenceLayer, State, Tree


def concatenate(forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Side by side in the last dimension: [..., H] and [..., G] make [..., H + G]."""
    return jnp.concatenate([forward, backward], axis=-1)


def bidirectional(
    forward: Cell, backward: Cell, merge: Callable[[jax.Array, jax.Array], jax.Array] = concatenate
) -> SequenceLayer:
    """Two cells over the same sequence, one from each end.

        f_t = forward over x_0 .. x_t;   b_t = backward over x_{n-1} .. x_t,   n the sequence's own length
        y_t = merge(f_t, b_t)

    `merge` takes the two outputs leaf by leaf, [T, *B, H] each: `concatenate`, `jnp.add`, any function of both.
    Parameters: {"forward": ..., "backward": ...}. State: the pair of both last states, the backward one being that
    at the sequence's first step. Where resets begin a sequence, the pass from the end starts anew on leaving it.
    Cost: both cells'; they run one after the other. All steps must be there before the first output is.
    Raises: TypeError for anything but cells; what `unroll` raises.
    Schuster and Paliwal 1997, "Bidirectional recurrent neural networks"; Graves and Schmidhuber 2005 for LSTM.
    """
    checks.a_cell("bidirectional", forward)
    checks.a_cell("bidirectional", backward)
    if not callable(merge):
        raise TypeError(f"bidirectional: merge must be a function of both outputs, such as jnp.add, got {merge!r}")
    return Bidirectional(forward, backward, merge).layer


def begins_backwards(resets: jax.Array) -> jax.Array:
    """Resets for a pass from the end: a sequence that begins at step t is left after it, so step t - 1 starts anew."""
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])


@dataclass(frozen=True)
class Bidirectional(LayerDefinition):
    forward: Cell
    backward: Cell
    merge: Callable[[jax.Array, jax.Array], jax.Array]

    def init(self, key: Key, x: Tree) -> Params:
        k_forward, k_backward = jax.random.split(key)
        return {"forward": self.forward.init(k_forward, x), "backward": self.backward.init(k_backward, x)}

    def run(self, params: Params, xs: Tree, given: Given) -> tuple[State, Tree]:
        steps = checks.steps("bidirectional", xs)
        if not isinstance(params, dict) or set(params) != {"forward", "backward"}:
            got = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(
                f"bidirectional: params should be a dict of 'forward' and 'backward', got {got}; "
                "use parameters made by this layer's own init"
            )
        forward, backward = (own._asdict() for own in given.split(2))
        if given.resets is not None:
            backward["resets"] = begins_backwards(checks.resets("bidirectional", given.resets, steps))
        s_f, y_f = unroll(self.forward, params["forward"], xs, **forward)
        s_b, y_b = unroll(self.backward, params["backward"], xs, **backward, reverse=True)
        ys = jax.tree.map(self.merge, y_f, y_b)
        if given.lengths is not None and self.merge is not concatenate:  # a merge of two zeros may be anything
            ys = zero_where_not(live(steps, checks.lengths("bidirectional", given.lengths, steps)), ys)
        return (s_f, s_b), ys
