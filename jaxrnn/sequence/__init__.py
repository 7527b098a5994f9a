"""Running cells over sequences, and layers of whole sequences."""

from jaxrnn.sequence.attention import attending, shifted
from jaxrnn.sequence.beams import Beams, beam_search
from jaxrnn.sequence.collecting import states_at_ends
from jaxrnn.sequence.directions import bidirectional, concatenate
from jaxrnn.sequence.frames import convolution, every
from jaxrnn.sequence.generation import Sampler, generate, greedy, temperature, top_k
from jaxrnn.sequence.layers import chain, over_time
from jaxrnn.sequence.packing import Packed, buckets, pack, pad
from jaxrnn.sequence.pooling import pooled
from jaxrnn.sequence.unrolling import unroll

__all__ = [
    "Beams",
    "Packed",
    "Sampler",
    "attending",
    "beam_search",
    "bidirectional",
    "buckets",
    "chain",
    "concatenate",
    "convolution",
    "every",
    "generate",
    "greedy",
    "over_time",
    "pack",
    "pad",
    "pooled",
    "shifted",
    "states_at_ends",
    "temperature",
    "top_k",
    "unroll",
]
