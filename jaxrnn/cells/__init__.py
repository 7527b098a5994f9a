"""Recurrent cells: one file for those without gates, one for those with."""

from jaxrnn.cells.gated import LSTMState, gru, lstm, mgu
from jaxrnn.cells.simple import elman, ind_rnn, jordan

__all__ = ["LSTMState", "elman", "gru", "ind_rnn", "jordan", "lstm", "mgu"]
