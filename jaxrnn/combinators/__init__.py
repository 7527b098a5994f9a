"""Combinators: cells in, a cell out."""

from jaxrnn.combinators.feedback import scheduled_sampling
from jaxrnn.combinators.masking import masked, resettable
from jaxrnn.combinators.noise import dropout, zoneout
from jaxrnn.combinators.stacking import alongside, residual, stack, with_loss

__all__ = [
    "alongside",
    "dropout",
    "masked",
    "resettable",
    "residual",
    "scheduled_sampling",
    "stack",
    "with_loss",
    "zoneout",
]
