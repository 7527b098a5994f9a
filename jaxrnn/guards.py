"""Guards against NaN that a step carries in it, marked, so that a scan which runs no step by itself can take them away.

`resettable` asks at every step whether a NaN goes in that would be multiplied with a zero in the backward pass. That
question reads the state, so it makes every recurrence nonlinear. Where no NaN goes into a sequence the answer is
no at every step: a scan that can find this out for all steps at once runs the step without its guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

NAN_ENTERS = "jaxrnn: a NaN comes with the input"
GUARDED = "jaxrnn: examples guarded against a NaN"


def nan_enters(found: jax.Array) -> jax.Array:
    """Marks, [*B] boolean, which examples' input has a NaN at this step."""
    return checkpoint_name(found, NAN_ENTERS)


def guarded(poisoned: jax.Array) -> jax.Array:
    """Marks, [*B] boolean, which examples are guarded: false for all of them where no NaN goes in anywhere."""
    return checkpoint_name(poisoned, GUARDED)


def marked(equation: Any, mark: str) -> bool:
    """Whether an equation of a step marks its operand so."""
    return equation.primitive.name == "name" and equation.params.get("name") == mark


@jax.custom_batching.custom_vmap
def anywhere(flags: Sequence[jax.Array]) -> jax.Array:
    """Whether any of the flags is set; under `vmap` in any of the examples, so that a `cond` on it stays one."""
    return jnp.any(jnp.stack([jnp.any(flag) for flag in flags])) if flags else jnp.zeros((), jnp.bool_)


@anywhere.def_vmap
def _anywhere_in_a_batch(axis_size: int, in_batched: Any, flags: Sequence[jax.Array]) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return anywhere(flags), False
