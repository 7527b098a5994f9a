"""Running cells over sequences."""

from jaxrnn.sequence.generation import generate, greedy, temperature, top_k
from jaxrnn.sequence.unrolling import unroll

__all__ = ["generate", "greedy", "temperature", "top_k", "unroll"]
