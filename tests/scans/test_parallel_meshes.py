"""`parallel` on four devices: batches spread over them in every kind of mesh, and time itself spread over them."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from tests.scans.test_meshes import ROOT

PLACES = ["shard_map, check_vma=True", "shard_map, check_vma=False", "explicit mesh", "automatic mesh, batch"]


@functools.cache
def found():
    """The number of devices is fixed when JAX starts, so all checks share one process of their own."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.scans.parallel_on_a_mesh"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(line["place"], line["name"], line["steps"]): line for line in lines}, done.stderr[-3000:]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["gated", "gated, in segments", "iterated"])
def test_values_and_gradients_with_the_batch_over_devices(name, place):
    lines, complaint = found()
    assert (place, name, 40) in lines, complaint
    line = lines[place, name, 40]
    assert line["equal"] and "'d'" in line.get("sharding", "'d'")
    assert not line.get("exchanges"), "the batch's sequences do not need one another"


def test_time_over_devices_exchanges_single_states():
    """Sequences that lie in quarters on four devices: an exchange moves two states at most, and log T of them do."""
    lines, complaint = found()
    short, long = (lines.get(("automatic mesh, time", "gated", steps)) for steps in (512, 4096))
    assert short and long, complaint
    assert short["equal"] and long["equal"]
    assert max(long["exchanges"]) <= 2 * 8 * 4 and len(long["exchanges"]) <= len(short["exchanges"]) + 16


# --- parallel(over=...): each device its own stretch of the steps -------------------------------------------------

CASES = ["min_gru, in order", "lru, in order", "two layers, in order", "smallest, in order"]
CASES += ["min_gru, reversed", "min_gru, lengths", "min_gru, resets"]


@pytest.mark.parametrize("case", CASES)
def test_stretches_on_devices_give_the_loop_s_values_and_gradients(case):
    lines, complaint = found()
    assert ("over", case, 64) in lines, complaint
    assert lines["over", case, 64]["apart"] < 1e-5


def test_a_recurrence_exchanges_one_composed_step_per_pass_whatever_t():
    """Forward and backward a gather of slopes and of offsets, and a state handed on; the weights' gradient once."""
    lines, complaint = found()
    short, long = (lines["over", "min_gru, in order", steps]["sent"] for steps in (64, 4096))
    assert short == long, complaint
    state = 4 * 4 * 4
    gathers = [nbytes for kind, nbytes, times, _, _ in long if kind == "all-gather" and times == 1]
    assert gathers == [4 * state] * 4
    assert [nbytes for kind, nbytes, *_ in long if kind == "collective-permute"] == [state] * 2
    assert sum(kind == "all-reduce" for kind, *_ in long) <= 2 and len(long) <= 8


def under(scan, cell, steps, devices=4):
    xs = jnp.ones((steps, 2, 3))
    params = cell.init(jax.random.key(0), xs[0])
    mesh = jax.sharding.AbstractMesh((devices,), ("time",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(lambda params: rnn.unroll(cell, params, xs, scan=scan), params)


def test_refused_are_no_mesh_no_axis_a_remainder_and_what_has_no_form():
    cell = rnn.cells.min_gru(4)
    with pytest.raises(ValueError, match="over should name an axis of the mesh that is set, got 'time'; none is set"):
        rnn.unroll(cell, cell.init(jax.random.key(0), jnp.ones(3)), jnp.ones((8, 3)), scan=rnn.parallel(over="time"))
    with pytest.raises(ValueError, match="got 'tim'; the mesh has 'time'"):
        under(rnn.parallel(over="tim"), cell, 8)
    with pytest.raises(ValueError, match="T should be a multiple of 4, the devices along over='time', got 6"):
        under(rnn.parallel(over="time"), cell, 6)
    with pytest.raises(ValueError, match="needs a closed form of every component.*dot_general"):
        under(rnn.parallel(over="time"), rnn.gru(4), 8)
    with pytest.raises(ValueError, match="goes with neither segment nor newton"):
        rnn.parallel(4, over="time")
