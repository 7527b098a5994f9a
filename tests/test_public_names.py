"""What functions of the library give and take has public names, for types in other people's code."""

import typing

import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from jaxrnn import scans

GIVEN = {
    rnn.analysis.explain: rnn.analysis.Explanation,
    rnn.analysis.gradient_flow: rnn.analysis.Flow,
    rnn.analysis.plan: scans.Plans,
    rnn.graphs.draw: rnn.graphs.Drawing,
    rnn.graphs.unrolled: rnn.graphs.Unrolled,
    rnn.interop.from_pytorch: rnn.interop.Imported,
    rnn.serving.load: rnn.serving.Model,
    rnn.training.create: rnn.training.TrainState,
}


@pytest.mark.parametrize("function", GIVEN, ids=lambda f: f.__name__)
def test_what_a_function_gives_has_a_public_name(function):
    assert typing.get_type_hints(function)["return"] is GIVEN[function]


def test_times_come_by_label():
    found = rnn.analysis.interleaved({"sum": lambda: jnp.sum(jnp.ones(3))}, rounds=3)["sum"]
    assert isinstance(found, rnn.analysis.Timing) and found.low <= found.median <= found.high


def test_what_a_function_takes_has_a_public_name():
    assert typing.get_type_hints(rnn.generate)["sample"] == rnn.sequence.Sampler
    assert typing.get_type_hints(rnn.serving.export)["model"] == rnn.Cell | rnn.SequenceLayer


def test_the_loop_of_unroll_is_any_scan():
    assert typing.get_type_hints(rnn.unroll)["scan"] is rnn.Scan
