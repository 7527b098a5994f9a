"""Scans: ways to run a loop over time, each a drop-in for `jax.lax.scan`."""

from jaxrnn.engine.newton_iteration import Certificate, newton
from jaxrnn.scans.budget import Plans, within
from jaxrnn.scans.checkpointing import checkpointed
from jaxrnn.scans.fission import fissioned, scan
from jaxrnn.scans.linear_recurrences import linear_scan
from jaxrnn.scans.loops import python_loop
from jaxrnn.scans.parallel_in_time import parallel
from jaxrnn.scans.random_truncation import randomly_truncated
from jaxrnn.scans.revolving import revolve
from jaxrnn.scans.sharding import sharded
from jaxrnn.scans.truncation import truncated

__all__ = [
    "Certificate",
    "Plans",
    "checkpointed",
    "fissioned",
    "linear_scan",
    "newton",
    "parallel",
    "python_loop",
    "randomly_truncated",
    "revolve",
    "scan",
    "sharded",
    "truncated",
    "within",
]
