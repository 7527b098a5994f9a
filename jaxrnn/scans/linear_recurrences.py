"""`linear_scan`: an affine recurrence given by its coefficients, in O(log T) depth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import checks, trees
from jaxrnn.engine.reduce_then_scan import Order
from jaxrnn.engine.semigroups import affine_states, linear_states


def linear_scan(a: Any, b: Any, h0: Any, reverse: bool = False) -> jax.Array:
    """The states of an affine recurrence, element by element.

        h = h0
        for t in range(T):                     # from the last to the first if reverse
            h = a[t] * h + b[t]
            hs[t] = h

    Shapes: b [T, ...], h0 [...], a [T or 1, ...] of b's rank, where sizes may be 1: a scalar gate of matrices stays
    [T, B, 1, 1]. Returns hs [T, ...]. Real or complex, or whole numbers; 16-bit numbers are added up in 32 bits.
    Cost: O(log T) depth, about 6 operations per element. Differentiable any number of times, forward and backward, each
    derivative by such scans; kept for the backward pass are a and hs.
    Raises: ValueError for shapes that do not fit, TypeError for dtypes that differ.
    """
    a, b, h0 = jnp.asarray(a), jnp.asarray(b), jnp.asarray(h0)
    if b.ndim == 0 or h0.shape != b.shape[1:]:
        raise ValueError(
            f"linear_scan: h0 should be one step of b, got h0 {checks.describe(h0)} and b {checks.describe(b)}; "
            "broadcast h0 to that shape"
        )
    if a.ndim != b.ndim or any(n not in (1, size) for n, size in zip(a.shape, b.shape, strict=True)):
        raise ValueError(
            f"linear_scan: a should be of b's rank and sizes, or 1 in their place, got a {checks.describe(a)} and "
            f"b {checks.describe(b)}; add axes of size 1 with jnp.expand_dims"
        )
    if not a.dtype == b.dtype == h0.dtype:
        raise TypeError(
            f"linear_scan: a, b and h0 should have one dtype, got {a.dtype}, {b.dtype}, {h0.dtype}; cast with .astype"
        )
    solve = linear_states if trees.is_float(b) else affine_states
    return solve([[a]], [b], [h0], Order(len(b), reverse), cuts=True)[0] if len(b) else b
