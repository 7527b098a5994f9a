"""Scans: ways to run a loop over time, each a drop-in for `jax.lax.scan`."""

from jaxrnn.scans.budget import Plans, within
from jaxrnn.scans.checkpointing import checkpointed
from jaxrnn.scans.fission import fissioned, scan
from jaxrnn.scans.loops import python_loop
from jaxrnn.scans.revolving import revolve
from jaxrnn.scans.truncation import truncated

__all__ = [
    "Plans",
    "checkpointed",
    "fissioned",
    "python_loop",
    "revolve",
    "scan",
    "truncated",
    "within",
]
