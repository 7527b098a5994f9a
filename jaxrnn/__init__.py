"""jaxrnn: write one time step as a pure function; unroll it, differentiate it, fit it in memory."""

from jaxrnn.cells import LSTMState, elman, gru, ind_rnn, jordan, lstm, mgu
from jaxrnn.compose import dropout, residual, stack, with_loss, zoneout
from jaxrnn.draw import draw
from jaxrnn.dynamics import lyapunov
from jaxrnn.explain import Explanation, explain
from jaxrnn.flow import Flow, decay_rate, gradient_flow
from jaxrnn.generate import generate, greedy, temperature, top_k
from jaxrnn.gradients import copy_gradients, leaf_norms
from jaxrnn.graph import GraphState, graph
from jaxrnn.guards import masked, resettable
from jaxrnn.layers import layer, lift, recurrent
from jaxrnn.losses import bits_per_character, cross_entropy, reduced
from jaxrnn.measure import flops, interleaved, kept_per_step, memory_free, plan, temp_bytes
from jaxrnn.scans import (
    Plans,
    checkpointed,
    fissioned,
    python_loop,
    revolve,
    scan,
    summed,
    truncated,
    within,
)
from jaxrnn.store import Run, RunError, read_config, read_metrics
from jaxrnn.streams import Streams
from jaxrnn.train import Interrupted, TrainState, adam, create, fit, make_train_step
from jaxrnn.types import Cell, Scan
from jaxrnn.unroll import unroll
from jaxrnn.unrolled import unrolled
from jaxrnn.wiring import prev

__all__ = [
    "Cell",
    "Explanation",
    "Flow",
    "GraphState",
    "Interrupted",
    "LSTMState",
    "Plans",
    "Run",
    "RunError",
    "Scan",
    "Streams",
    "TrainState",
    "adam",
    "bits_per_character",
    "checkpointed",
    "copy_gradients",
    "create",
    "cross_entropy",
    "decay_rate",
    "draw",
    "dropout",
    "elman",
    "explain",
    "fissioned",
    "fit",
    "flops",
    "generate",
    "gradient_flow",
    "graph",
    "greedy",
    "gru",
    "ind_rnn",
    "interleaved",
    "jordan",
    "kept_per_step",
    "layer",
    "leaf_norms",
    "lift",
    "lstm",
    "lyapunov",
    "make_train_step",
    "masked",
    "memory_free",
    "mgu",
    "plan",
    "prev",
    "python_loop",
    "read_config",
    "read_metrics",
    "recurrent",
    "reduced",
    "resettable",
    "residual",
    "revolve",
    "scan",
    "stack",
    "summed",
    "temp_bytes",
    "temperature",
    "top_k",
    "truncated",
    "unroll",
    "unrolled",
    "with_loss",
    "within",
    "zoneout",
]
