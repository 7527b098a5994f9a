"""Scans: ways to run a loop over time, each a drop-in for `jax.lax.scan`."""

from jaxrnn.scans.checkpoint import checkpointed
from jaxrnn.scans.fission import fissioned, scan
from jaxrnn.scans.loops import python_loop
from jaxrnn.scans.revolve import revolve
from jaxrnn.scans.sums import summed
from jaxrnn.scans.truncate import truncated
from jaxrnn.scans.within import Plans, within

__all__ = [
    "Plans",
    "checkpointed",
    "fissioned",
    "python_loop",
    "revolve",
    "scan",
    "summed",
    "truncated",
    "within",
]
