"""Looking into a net and its program: what leaves the loop, bytes, operations, times, gradients of every copy."""

from jaxrnn.analysis.communication import Collective, Collectives, collectives
from jaxrnn.analysis.dynamics import lyapunov
from jaxrnn.analysis.explanation import Explanation, explain
from jaxrnn.analysis.flow import Flow, decay_rate, gradient_flow
from jaxrnn.analysis.gradients import copy_gradients, leaf_norms
from jaxrnn.analysis.learners import Compared, Comparison, Nearness, compare
from jaxrnn.analysis.memory import kept_per_step, memory_free, plan, temp_bytes
from jaxrnn.analysis.operations import depth, flops
from jaxrnn.analysis.timing import Timing, interleaved

__all__ = [
    "Collective",
    "Collectives",
    "Compared",
    "Comparison",
    "Explanation",
    "Flow",
    "Nearness",
    "Timing",
    "collectives",
    "compare",
    "copy_gradients",
    "decay_rate",
    "depth",
    "explain",
    "flops",
    "gradient_flow",
    "interleaved",
    "kept_per_step",
    "leaf_norms",
    "lyapunov",
    "memory_free",
    "plan",
    "temp_bytes",
]
