"""Scans: ways to run a loop over time, each a drop-in for `jax.lax.scan`."""

from jaxrnn.scans.checkpoint import checkpointed
from jaxrnn.scans.fission import fissioned, scan
from jaxrnn.scans.loops import python_loop
from jaxrnn.scans.truncate import truncated

__all__ = ["checkpointed", "fissioned", "python_loop", "scan", "truncated"]
