"""The usual optimizer for recurrent nets, from optax's parts."""

from __future__ import annotations

import optax

from jaxrnn import checks


def adam(
    learning_rate: float, *, steps: int, warmup: int = 100, clip: float = 1.0, final: float = 0.05
) -> optax.GradientTransformation:
    """Adam after clipping the gradient's global norm to `clip`; linear warm-up, then a cosine down to `final` of it.

    The usual recipe for recurrent nets, from optax's parts; the warm-up is cut to fewer than `steps`.
    Raises: ValueError for steps below 1.
    Pascanu et al. 2013 (clipping); Kingma and Ba 2015.
    """
    steps = checks.positive_int("adam", "steps", steps)
    warmup = min(checks.positive_int("adam", "warmup", warmup, least=0), steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps, learning_rate * final)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule, b2=0.99))
