"""Training: the step, the loop that can be stopped and goes on, run folders, streams of windows."""

from jaxrnn.training.averages import averaged, averaging, to_evaluate
from jaxrnn.training.batches import BatchIterator
from jaxrnn.training.best import Best
from jaxrnn.training.bucketed import Bucketed, Padded
from jaxrnn.training.diagnosis import NotFinite
from jaxrnn.training.files import RunError
from jaxrnn.training.fitting import fit
from jaxrnn.training.optimizers import adam
from jaxrnn.training.over_mesh import Part, gathered, on_mesh, part_of
from jaxrnn.training.records import read_config, read_metrics
from jaxrnn.training.runs import Run
from jaxrnn.training.sharding import Shardings, shardings
from jaxrnn.training.step import TrainState, create, make_train_step
from jaxrnn.training.stopping import Interrupted
from jaxrnn.training.streams import Streams

__all__ = [
    "BatchIterator",
    "Best",
    "Bucketed",
    "Interrupted",
    "NotFinite",
    "Padded",
    "Part",
    "Run",
    "RunError",
    "Shardings",
    "Streams",
    "TrainState",
    "adam",
    "averaged",
    "averaging",
    "create",
    "fit",
    "gathered",
    "make_train_step",
    "on_mesh",
    "part_of",
    "read_config",
    "read_metrics",
    "shardings",
    "to_evaluate",
]
