"""Running a loop segment by segment: the frame that `checkpointed` and `truncated` share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.types import Tree

Segment = Callable[[Tree, Tree, int], tuple[Tree, Tree]]  # (carry, xs of n steps, n) -> (carry, ys of n steps)


def in_segments(run: Segment, init: Tree, xs: Tree, steps: int, segment: int, reverse: bool) -> tuple[Tree, Tree]:
    """Runs `steps` steps as full segments under one `lax.scan`, and what is left over as a shorter one.

        for start in range(0, steps, segment):              # from the last to the first if reverse
            carry, ys[start:start+segment] = run(carry, xs[start:start+segment])

    Segments begin at multiples of `segment` counted from the first step, also in reverse.
    """
    full, rest = divmod(steps, segment)
    if full + bool(rest) == 1:
        return run(init, xs, steps)
    cut = full * segment

    def full_segments(carry: Tree) -> tuple[Tree, Tree]:
        def body(carry: Tree, x: Tree) -> tuple[Tree, Tree]:
            return run(carry, x, segment)

        whole = jax.tree.map(lambda a: a[:cut], xs)
        carry, ys = lax.scan(body, carry, grouped(whole, segment), length=full, reverse=reverse)
        return carry, joined(ys)

    def remainder(carry: Tree) -> tuple[Tree, Tree]:
        return run(carry, jax.tree.map(lambda a: a[cut:], xs), rest)

    if not rest:
        return full_segments(init)
    if reverse:
        carry, last = remainder(init)
        carry, first = full_segments(carry)
    else:
        carry, first = full_segments(init)
        carry, last = remainder(carry)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)


def grouped(xs: Tree, segment: int) -> Tree:
    """[S K, ...] as [S, K, ...]."""
    return jax.tree.map(lambda a: a.reshape(a.shape[0] // segment, segment, *a.shape[1:]), xs)


def joined(ys: Tree) -> Tree:
    """[S, K, ...] as [S K, ...]."""
    return jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), ys)
