"""Weights and gradients go between devices once: what is computed on a mesh, and what its program sends."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

import jaxrnn as rnn
from jaxrnn.analysis import Collective, Collectives, collectives
from jaxrnn.analysis.communication import collectives_in
from tests.scans.spread import NETS, SCANS, WAYS, B, H

ROOT = Path(__file__).parent.parent.parent
FAST = [
    ("lstm", "data", "scan", "auto"),
    ("vectors", "data", "scan", "explicit"),
    ("gru", "fully sharded", "checkpointed", "auto"),
    ("lstm", "data and units", "scan", "auto"),
]
CASES = [("lstm", "data", scan, "auto") for scan in SCANS]
# The Python loop runs the step as it was written, T times: it is what the others are compared with.
CASES += [("vectors", "data", scan, "explicit") for scan in SCANS if scan not in ("lax.scan", "python_loop")]
CASES += [(net, way, "scan", "auto") for net in NETS for way in WAYS]
CASES += [("gru", way, "checkpointed", "auto") for way in WAYS]
CASES = list(dict.fromkeys(CASES))


@functools.cache
def lines(fast):
    """The number of devices is fixed when JAX starts: all fast checks share a process of their own; the slow too."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env["XLA_FLAGS"] = env.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    chosen = [json.dumps(case) for case in CASES if (case in FAST) == fast]
    command = [sys.executable, "-m", "tests.scans.spread", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def found(case):
    net, way, scan, kind = case
    wanted = {"net": net, "way": way, "scan": scan, "explicit": kind == "explicit"}
    (line,) = [line for line in lines(case in FAST) if wanted.items() <= line.items()]
    return line, [Collective(*each) for each in line["sent"]]


EVERY = [pytest.param(case, marks=() if case in FAST else pytest.mark.slow, id=", ".join(case)) for case in CASES]


@pytest.mark.parametrize("case", EVERY)
def test_values_and_gradients_are_one_device_s(case):
    assert found(case)[0]["distance"] < 1e-10


@pytest.mark.parametrize("case", [each for each in EVERY if "units" not in each.id])
def test_with_examples_spread_every_gradient_is_summed_once(case):
    """Whatever the scan does: segments, recomputation, schedules. (A mask of a bit per example is no weight.)"""
    line, sent = found(case)
    sums = [c for c in sent if c.kind in ("all-reduce", "reduce-scatter")]
    assert {c.times for c in sums} == {1} and all(c.known for c in sums)
    assert sum(c.nbytes for c in sums) == line["bytes"]
    assert all(c.nbytes < 64 for c in sent if c.times > 1)


@pytest.mark.parametrize("case", [each for each in EVERY if "fully" in each.id])
def test_weights_that_are_spread_are_gathered_once(case):
    line, sent = found(case)
    gathers = [c for c in sent if c.kind == "all-gather"]
    assert {c.times for c in gathers} == {1}
    assert 0 < sum(c.nbytes for c in gathers) <= line["bytes"]


@pytest.mark.parametrize("case", [each for each in EVERY if "lstm, " in each.id and "units, scan" in each.id])
def test_with_units_spread_a_step_sends_states_alone(case):
    """Forward a gather of the state, backward a sum of its gradient; per segment what products over its steps read."""
    _, sent = found(case)
    state = B * H * 8 // (2 if "data" in case[1] else 1)
    each_step = [c for c in sent if c.times == 10]
    assert sorted((c.kind, c.nbytes) for c in each_step) == [("all-gather", state), ("all-reduce", state)]
    assert all(c.nbytes <= 5 * state for c in sent if c.times == 2)  # a segment has five steps
    assert {c.times for c in sent} == {1, 2, 10}


# --- what is said of a program -------------------------------------------------------------------


def test_kinds_bytes_and_times_are_those_of_the_program():
    (line,) = [line for line in lines(True) if "sends" in line]
    nbytes = 3 * 5 * 4
    sends = {tuple(each) for each in line["sends"]}
    assert ("collective-permute", nbytes, 14, 1, True) in sends
    assert ("all-gather", 4 * nbytes, 7, 1, True) in sends
    assert ("all-reduce", nbytes, 1, 1, True) in sends  # of the branch that has one
    assert ("all-reduce", nbytes, 1, 1, False) in sends  # in a loop whose trips nobody knows
    assert line["times"] == 14 + 7 + 2 and line["nbytes"] == nbytes * (14 + 28 + 2)
    assert "1+" in line["table"] and "in all" in line["table"]


def test_a_step_that_says_where_its_product_lies():
    told = [line for line in lines(True) if "placed" in line]
    assert len(told) == 2
    for line in told:
        assert line["apart"] < 1e-12
        assert line["sums"] == [1], "the gradient of the weights is summed once"


def test_explain_says_what_is_sent_between_devices():
    told = [line for line in lines(True) if "explains" in line]
    assert len(told) == 2
    for line in told:
        assert line["explains"] == [["all-reduce", line["bytes"], 1, 3, True]]
        assert "between devices, of a gradient over 24 steps:\n    collective  arrays" in line["text"]


def test_a_program_on_one_device_sends_nothing():
    nothing = collectives(lambda x: jnp.sum(x @ x), jnp.ones((3, 3)))
    assert nothing == Collectives() and nothing.nbytes == 0 and str(nothing) == "no collectives"


def test_an_operation_in_two_halves_counts_once():
    """As compilers for accelerators write them; the halves' types hold operands and results."""
    text = """HloModule m
ENTRY %main (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %s = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p), channel_id=1, dimensions={0}
  %d = bf16[16,8]{1,0} all-gather-done(%s)
  %r = bf16[16,8]{1,0} all-reduce-start(%d), channel_id=2, to_apply=%add
  ROOT %e = bf16[16,8]{1,0} all-reduce-done(%r)
}
"""
    assert collectives_in(text) == Collectives(
        [Collective("all-gather", 256, 1, 1, True), Collective("all-reduce", 256, 1, 1, True)]
    )


# --- what is refused ------------------------------------------------------------------------------

CELL = rnn.lstm(8)
PARAMS = CELL.init(jax.random.key(0), jnp.ones((6, 3)))
INPUTS = jnp.ones((5, 6, 3))


def on(mesh, scan):
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(lambda params: rnn.unroll(CELL, params, INPUTS, scan=scan), PARAMS)


FOUR = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))


def test_refused_without_an_axis_a_mesh_or_a_batch_that_it_divides():
    with pytest.raises(ValueError, match="batch or units should name an axis of the mesh, got neither"):
        rnn.sharded()
    with pytest.raises(TypeError, match="sharded: inner"):
        rnn.sharded("data", inner=3)
    with pytest.raises(ValueError, match=r"a mesh should be set, and none is; .*jax.set_mesh\(mesh\)"):
        rnn.unroll(CELL, PARAMS, INPUTS, scan=rnn.sharded("data"))
    with pytest.raises(ValueError, match="batch should name axes of the mesh, 'data', got 'date'"):
        on(FOUR, rnn.sharded("date"))
    with pytest.raises(ValueError, match="units should name axes of the mesh, 'data', got 'model'"):
        on(FOUR, rnn.sharded("data", units="model"))
    with pytest.raises(ValueError, match="should be a multiple of 4, the devices along batch='data', got 6"):
        on(FOUR, rnn.sharded("data"))
    explicit = AbstractMesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match="should name an automatic axis, got 'data', which is explicit"):
        on(explicit, rnn.sharded("data"))


def test_on_a_mesh_of_one_device_it_is_the_plain_scan():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        _, found = jax.jit(lambda params: rnn.unroll(CELL, params, INPUTS, scan=rnn.sharded("data", "data")))(PARAMS)
    np.testing.assert_allclose(found, rnn.unroll(CELL, PARAMS, INPUTS)[1], rtol=1e-6)
