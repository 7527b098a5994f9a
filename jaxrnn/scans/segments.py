"""Running a loop piece by piece: the frame that all scans share which treat steps in segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.types import Tree

Segment = Callable[[Tree, Tree, int], tuple[Tree, Tree]]  # (carry, xs of n steps, n) -> (carry, ys of n steps)


def in_parts(parts: Sequence[tuple[int, Segment]], init: Tree, xs: Tree, reverse: bool) -> tuple[Tree, Tree]:
    """Runs the first n steps one way, the next m another, and so on, from the last to the first if reverse.

        for n, run in parts:  carry, ys[start:start+n] = run(carry, xs[start:start+n], n);  start += n

    Parts of no steps are left out. Cutting costs a copy of xs, joining one of ys, unless there is one part only.
    """
    parts = [(n, run) for n, run in parts if n] or list(parts[:1])
    if len(parts) == 1:
        ((n, run),) = parts
        return run(init, xs, n)
    ends = [sum(n for n, _ in parts[: k + 1]) for k in range(len(parts))]
    carry, found = init, {}
    for k in reversed(range(len(parts))) if reverse else range(len(parts)):
        n, run = parts[k]
        carry, found[k] = run(carry, jax.tree.map(lambda a, k=k, n=n: a[ends[k] - n : ends[k]], xs), n)
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *(found[k] for k in range(len(parts))))


def in_segments(run: Segment, init: Tree, xs: Tree, steps: int, segment: int, reverse: bool) -> tuple[Tree, Tree]:
    """Runs `steps` steps as full segments under one `lax.scan`, and what is left over as a shorter one.

        for start in range(0, steps, segment):              # from the last to the first if reverse
            carry, ys[start:start+segment] = run(carry, xs[start:start+segment])

    Segments begin at multiples of `segment` counted from the first step, also in reverse.
    """
    full, rest = divmod(steps, segment)
    if full + bool(rest) == 1:
        return run(init, xs, steps)

    def full_segments(carry: Tree, xs: Tree, steps: int) -> tuple[Tree, Tree]:
        def body(carry: Tree, x: Tree) -> tuple[Tree, Tree]:
            return run(carry, x, segment)

        carry, ys = lax.scan(body, carry, grouped(xs, segment), length=full, reverse=reverse)
        return carry, joined(ys)

    return in_parts([(full * segment, full_segments), (rest, run)], init, xs, reverse)


def grouped(xs: Tree, segment: int) -> Tree:
    """[S K, ...] as [S, K, ...]."""
    return jax.tree.map(lambda a: a.reshape(a.shape[0] // segment, segment, *a.shape[1:]), xs)


def joined(ys: Tree) -> Tree:
    """[S, K, ...] as [S K, ...]."""
    return jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), ys)
