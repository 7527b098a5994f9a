"""`summed`: the sum of the outputs instead of the outputs, added up in the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn.scans.fission import fissioned
from jaxrnn.types import Scan, Tree


def _sum_dtype(dtype: Any) -> Any:
    """A type that holds a sum: at least float32 or int32."""
    if jnp.dtype(dtype).itemsize >= 4:
        return dtype
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32


@dataclass(frozen=True)
class summed:  # noqa: N801
    """A loop like a scan's that returns the sum of its outputs over time: a streamed loss.

        total = 0
        for x in xs:
            carry, y = f(carry, x)
            total += y
        return carry, total                                        y's shape, no time dimension

    So `unroll(with_loss(net, loss), params, (inputs, targets), lengths=lengths, scan=summed(scan))` gives
    the last state and each sequence's loss, [*B], and neither logits nor losses of all steps ever
    exist. Under `jaxrnn.scan` the additions leave the loop: each segment is summed at once.
    Sums of 16-bit numbers and booleans are made and returned in 32 bits. In `unroll` with
    `lengths`, padding adds nothing; `resets` restart the state, not the total.

    Memory, recompute: `inner`'s for a step without outputs. Exact, up to the order of additions.
    Limits: it is for where a scan is called; the `inner` of another one must give the outputs of all steps.
    Raises: TypeError for an inner that is no scan, or outputs that cannot be added (keys); and
    what `inner` raises.
    """

    inner: Scan = fissioned()
    adds_outputs_up = True  # what expects outputs of all steps refuses it

    def __post_init__(self) -> None:
        checks.a_scan("summed", "inner", self.inner)

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
    ) -> tuple[Tree, Tree]:
        checks.steps("summed", xs, length)
        _, ys = jax.eval_shape(lambda c, x: lax.scan(f, c, x, length=length), init, xs)
        for path, leaf in jax.tree_util.tree_leaves_with_path(ys):
            if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != jnp.bool_:
                name = checks.leaf_name("y", path)
                raise TypeError(f"summed: {name} must be numbers to be added up, got {leaf.dtype}; leave it out")
        total = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], _sum_dtype(a.dtype)), ys)

        def body(carry_and_total: tuple[Tree, Tree], x: Tree) -> tuple[Tree, tuple[()]]:
            carry, total = carry_and_total
            carry, y = f(carry, x)
            return (carry, jax.tree.map(lambda a, b: a + jnp.asarray(b).astype(a.dtype), total, y)), ()

        (carry, total), _ = self.inner(body, (init, total), xs, length=length, reverse=reverse)
        return carry, total
