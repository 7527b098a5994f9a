"""Training: the step, the loop that can be stopped and goes on, run folders, streams of windows."""

from jaxrnn.training.fitting import Interrupted, fit
from jaxrnn.training.optimizers import adam
from jaxrnn.training.runs import Run, RunError, read_config, read_metrics
from jaxrnn.training.step import TrainState, create, make_train_step
from jaxrnn.training.streams import Streams

__all__ = [
    "Interrupted",
    "Run",
    "RunError",
    "Streams",
    "TrainState",
    "adam",
    "create",
    "fit",
    "make_train_step",
    "read_config",
    "read_metrics",
]
