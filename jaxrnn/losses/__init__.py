"""Losses of sequences."""

from jaxrnn.losses.alignment import CTCState, ctc, ctc_loss, ctc_nll, ctc_prefix_nll
from jaxrnn.losses.stepwise import bits_per_character, cross_entropy, reduced

__all__ = [
    "CTCState",
    "bits_per_character",
    "cross_entropy",
    "ctc",
    "ctc_loss",
    "ctc_nll",
    "ctc_prefix_nll",
    "reduced",
]
