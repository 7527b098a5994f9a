"""What is remembered of the past, and how it grows and is read: the influence of each tap on the state.

M_t = A_t M_tm1 + B_t a_t          [*B, K, G, I] for each tap: rows of the state, units of the tap, its operand
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from jaxrnn.engine.influence import Core, Kept
from jaxrnn.engine.ir import Env
from jaxrnn.engine.jacobian import Jacobian, where
from jaxrnn.engine.sites import Tap


def letters(core: Core) -> str:
    """The batch dimensions in an einsum; they are never merged, for they may lie on several devices."""
    return "uvwxyz"[: len(core.batch)]


def nothing(core: Core, kept: Sequence[Kept], dtype: Any) -> list[jax.Array]:
    """The influence before the first step."""
    return [jnp.zeros((*core.batch, k.rows, t.size, t.depth), dtype) for t, k in zip(core.taps, kept, strict=True)]


def factors(core: Core, tap: Tap, env: Env, dtype: Any) -> jax.Array:
    """What a tap's weights meet, [*B, I]: its operands side by side."""
    if tap.is_shared:
        return jnp.ones((*core.batch, 1), dtype)
    return jnp.concatenate([term.factors(env, core.batch, dtype) for term in tap.terms], len(core.batch))


def grown(core: Core, kept: Sequence[Kept], memory: Sequence[jax.Array], env: Env, J: Jacobian) -> list[jax.Array]:
    """The influence one step later."""
    b, found, whole = letters(core), [], None
    for k, (tap, held, M) in enumerate(zip(core.taps, kept, memory, strict=True)):
        a = factors(core, tap, env, M.dtype)[..., None, None, :]
        if held.which is None:
            whole = J.by_state() if whole is None else whole
            carried = jnp.einsum(f"{b}mn,{b}ngi->{b}mgi", whole, M)
            carried, here = where(held.mask[..., None], carried), where(held.mask, J.by_tap(k))
        else:
            carried, here = carried_on(core, held.which, J.entries, M), J.by_tap(k, held.which)
        found.append(carried + here[..., None] * a)
    return found


def _row_by_row(core: Core, A: jax.Array, M: jax.Array) -> jax.Array:
    """sum_j A[k, j] M[j], written out: there are few rows. A [*B, K, K, G]."""
    rows = M.shape[len(core.batch)]
    if not rows:
        return M
    part = lambda k, j: A[..., k, j, :, None] * M[..., j, :, :]
    each = [functools.reduce(operator.add, (part(k, j) for j in range(rows))) for k in range(rows)]
    return jnp.stack(each, len(core.batch))


def carried_on(core: Core, index: np.ndarray, entries: Callable[..., jax.Array], M: jax.Array) -> jax.Array:
    """A M at the rows that are held; `entries` gives those of A at index arrays of rows and columns."""
    real, safe = index < core.units, np.minimum(index, core.units - 1)
    A = entries(safe[:, None], safe[None, :])  # [*B, K, K, G]
    return _row_by_row(core, where(real[:, None] & real[None, :], A), M)


def rows_of(index: np.ndarray, dense: jax.Array, lead: int) -> jax.Array:
    """Of [*B, N, G, I] the rows that are held, [*B, K, G, I]."""
    units = dense.shape[lead]
    safe = np.minimum(index, units - 1)
    return where((index < units)[..., None], dense[..., safe, np.arange(dense.shape[lead + 1])[None, :], :])


def read(core: Core, kept: Sequence[Kept], memory: Sequence[jax.Array], by_state: jax.Array) -> dict[Var, jax.Array]:
    """The loss's derivative by the weights, as far as it comes through the state: by_state [*B, N]."""
    b = letters(core)
    total: dict[Var, jax.Array] = {}
    padded = jnp.concatenate([by_state, jnp.zeros((*core.batch, 1), by_state.dtype)], len(core.batch))
    for tap, held, M in zip(core.taps, kept, memory, strict=True):
        if held.which is None:
            by_factor = jnp.einsum(f"{b}n,{b}ngi->gi", by_state, M)
        else:
            by_factor = jnp.einsum(f"{b}kg,{b}kgi->gi", padded[..., held.which], M)
        add_weights(core, tap, by_factor, total)
    return total


def add_weights(core: Core, tap: Tap, by_factor: jax.Array, total: dict[Var, jax.Array]) -> None:
    """Adds the gradients of a tap's weights, from that of (z, a), [G, I]."""
    if tap.is_shared:
        shape = tap.at.aval.shape
        parts = by_factor[:, 0]
        if jnp.issubdtype(tap.at.aval.dtype, jnp.complexfloating):
            real, imaginary = parts.reshape(2, *shape)
            _add(total, tap.at, jax.lax.complex(real, -imaginary))
        else:
            _add(total, tap.at, parts.reshape(shape))
        return
    start = 0
    for term in tap.terms:
        part = by_factor[:, start : start + term.depth]
        _add(total, term.weight, term.gradient(part, len(core.batch)))
        start += term.depth


def _add(total: dict[Var, jax.Array], weight: Var, gradient: jax.Array) -> None:
    total[weight] = total[weight] + gradient if weight in total else gradient
