"""jaxrnn: write one time step as a pure function; unroll it, differentiate it, fit it in memory.

What every program needs is here; the rest is in rooms: `jaxrnn.training`, `jaxrnn.analysis`,
`jaxrnn.graphs`, `jaxrnn.losses`.
"""

from jaxrnn import analysis, graphs, losses, training
from jaxrnn.cells import LSTMState, elman, gru, ind_rnn, jordan, layer, lift, lstm, mgu, recurrent
from jaxrnn.combinators import dropout, masked, resettable, residual, stack, with_loss, zoneout
from jaxrnn.graphs import graph, prev
from jaxrnn.losses import cross_entropy
from jaxrnn.scans import checkpointed, fissioned, python_loop, revolve, scan, truncated, within
from jaxrnn.sequence import generate, greedy, temperature, top_k, unroll
from jaxrnn.types import Cell, Scan

__all__ = [
    "Cell",
    "LSTMState",
    "Scan",
    "analysis",
    "checkpointed",
    "cross_entropy",
    "dropout",
    "elman",
    "fissioned",
    "generate",
    "graph",
    "graphs",
    "greedy",
    "gru",
    "ind_rnn",
    "jordan",
    "layer",
    "lift",
    "losses",
    "lstm",
    "masked",
    "mgu",
    "prev",
    "python_loop",
    "recurrent",
    "resettable",
    "residual",
    "revolve",
    "scan",
    "stack",
    "temperature",
    "top_k",
    "training",
    "truncated",
    "unroll",
    "with_loss",
    "within",
    "zoneout",
]
