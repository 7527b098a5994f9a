"""Losses of sequences."""

from jaxrnn.losses.alignment import CTCState, ctc, ctc_loss, ctc_nll, ctc_prefix_nll
from jaxrnn.losses.ctc_decoding import PrefixBeams, ctc_greedy, labels_read
from jaxrnn.losses.endless import OnlineStates, Utterances, Window, ctc_stream, online_ctc, online_start, utterances
from jaxrnn.losses.lattice import TransducerState, transducer, transducer_loss, transducer_nll
from jaxrnn.losses.linear_chain import CRFState, crf, crf_log_z, crf_loss, crf_marginals, crf_nll, viterbi
from jaxrnn.losses.stepwise import bits_per_character, cross_entropy, reduced, token_accuracy

__all__ = [
    "CRFState",
    "CTCState",
    "OnlineStates",
    "PrefixBeams",
    "TransducerState",
    "Utterances",
    "Window",
    "bits_per_character",
    "crf",
    "crf_log_z",
    "crf_loss",
    "crf_marginals",
    "crf_nll",
    "cross_entropy",
    "ctc",
    "ctc_greedy",
    "ctc_loss",
    "ctc_nll",
    "ctc_prefix_nll",
    "ctc_stream",
    "labels_read",
    "online_ctc",
    "online_start",
    "reduced",
    "token_accuracy",
    "transducer",
    "transducer_loss",
    "transducer_nll",
    "utterances",
    "viterbi",
]
