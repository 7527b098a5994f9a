"""Cells: gated and not, linear in their state, oscillating; and other people's layers and functions as cells."""

from jaxrnn.cells.convolutional import conv_gru, conv_lstm
from jaxrnn.cells.diagonal import ComplexState, lru, s5
from jaxrnn.cells.elementwise import elementwise_gru, elementwise_lstm
from jaxrnn.cells.gated import LSTMState, gru, lstm, mgu
from jaxrnn.cells.layers import layer, lift, recurrent
from jaxrnn.cells.linear import min_gru, min_lstm, sru
from jaxrnn.cells.normalisation import layer_norm_lstm
from jaxrnn.cells.oscillating import ClockworkState, CoRNNState, clockwork, co_rnn
from jaxrnn.cells.selective import rg_lru, selective_ssm
from jaxrnn.cells.simple import elman, ind_rnn, jordan
from jaxrnn.cells.xlstm import MLSTMState, SLSTMState, mlstm, slstm

__all__ = [
    "ClockworkState",
    "CoRNNState",
    "ComplexState",
    "LSTMState",
    "MLSTMState",
    "SLSTMState",
    "clockwork",
    "co_rnn",
    "conv_gru",
    "conv_lstm",
    "elementwise_gru",
    "elementwise_lstm",
    "elman",
    "gru",
    "ind_rnn",
    "jordan",
    "layer",
    "layer_norm_lstm",
    "lift",
    "lru",
    "lstm",
    "mgu",
    "min_gru",
    "min_lstm",
    "mlstm",
    "recurrent",
    "rg_lru",
    "s5",
    "selective_ssm",
    "slstm",
    "sru",
]
