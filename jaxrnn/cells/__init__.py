"""Cells: recurrent ones without gates and with, and other people's layers and functions as cells."""

from jaxrnn.cells.gated import LSTMState, gru, lstm, mgu
from jaxrnn.cells.layers import layer, lift, recurrent
from jaxrnn.cells.simple import elman, ind_rnn, jordan

__all__ = ["LSTMState", "elman", "gru", "ind_rnn", "jordan", "layer", "lift", "lstm", "mgu", "recurrent"]
