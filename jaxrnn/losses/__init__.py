"""Losses of sequences."""

from jaxrnn.losses.stepwise import bits_per_character, cross_entropy, reduced, token_accuracy

__all__ = ["bits_per_character", "cross_entropy", "reduced", "token_accuracy"]
