"""Online learning: gradients while time runs, for any cell, in memory that does not grow with time."""

from jaxrnn.online.influences import eprop, layerwise, rtrl, snap
from jaxrnn.online.kronecker import kf_rtrl
from jaxrnn.online.learner import Carry, Method, learn, online, window_loss
from jaxrnn.online.rank_one import uoro
from jaxrnn.online.truncation import immediate, tbptt
from jaxrnn.types import Learner

__all__ = [
    "Carry",
    "Learner",
    "Method",
    "eprop",
    "immediate",
    "kf_rtrl",
    "layerwise",
    "learn",
    "online",
    "rtrl",
    "snap",
    "tbptt",
    "uoro",
    "window_loss",
]
