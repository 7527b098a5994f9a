"""jaxrnn: write one time step as a pure function; unroll it, differentiate it, fit it in memory.

What every program needs is here; the rest is in rooms: `jaxrnn.cells`, `jaxrnn.training`, `jaxrnn.online`,
`jaxrnn.analysis`, `jaxrnn.graphs`, `jaxrnn.losses`, `jaxrnn.sequence`, `jaxrnn.interop`, `jaxrnn.serving`.
"""

from jaxrnn import analysis, cells, graphs, interop, losses, online, sequence, serving, training
from jaxrnn.cells import LSTMState, elman, gru, ind_rnn, jordan, layer, lift, lstm, mgu, recurrent
from jaxrnn.combinators import (
    alongside,
    dropout,
    masked,
    resettable,
    residual,
    scheduled_sampling,
    stack,
    with_loss,
    zoneout,
)
from jaxrnn.graphs import graph, prev
from jaxrnn.losses import cross_entropy
from jaxrnn.scans import (
    checkpointed,
    fissioned,
    parallel,
    python_loop,
    randomly_truncated,
    revolve,
    scan,
    sharded,
    truncated,
    within,
)
from jaxrnn.sequence import (
    attending,
    beam_search,
    bidirectional,
    chain,
    generate,
    greedy,
    pack,
    temperature,
    top_k,
    unroll,
)
from jaxrnn.types import Cell, Learner, Scan, SequenceLayer

__version__ = "0.2.0"

__all__ = [
    "Cell",
    "LSTMState",
    "Learner",
    "Scan",
    "SequenceLayer",
    "alongside",
    "analysis",
    "attending",
    "beam_search",
    "bidirectional",
    "cells",
    "chain",
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
    "interop",
    "jordan",
    "layer",
    "lift",
    "losses",
    "lstm",
    "masked",
    "mgu",
    "online",
    "pack",
    "parallel",
    "prev",
    "python_loop",
    "randomly_truncated",
    "recurrent",
    "resettable",
    "residual",
    "revolve",
    "scan",
    "scheduled_sampling",
    "sequence",
    "serving",
    "sharded",
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
