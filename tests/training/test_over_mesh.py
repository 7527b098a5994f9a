"""`fit` on four devices: the result of one, whatever lies where; checkpoints that change devices; refusals."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-5  # of weights and moments of at most 4, after 12 steps
FAST = ("fsdp", "refusals")
SLOW = (
    "replicated",
    "tensor",
    "by path",
    "going on",
    "from one",
    "state",
    "set",
    "bucketed",
    "best",
    "collectives",
    "one program",
)
slow = pytest.mark.slow


@functools.cache
def found(group):
    """The number of devices is fixed when JAX starts, so the checks of a group share a process of their own."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.on_devices", *group]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["check"]: line for line in lines}, done.stderr[-3000:]


def check(name, group=SLOW):
    lines, complaint = found(group)
    assert name in lines, complaint
    return lines[name]


SPECS = {
    "replicated": ["()"],
    "fsdp": ["('data',)", "(None, 'data')"],
    "tensor": ["('model',)", "()"],
    "by path": ["('data', 'model')", "()", "(None, 'model')"],
}


@pytest.mark.parametrize("name", ["fsdp", *(pytest.param(n, marks=slow) for n in SPECS if n != "fsdp")])
def test_four_devices_train_as_one(name):
    line = check(f"{name}: as on one device", FAST if name in FAST else SLOW)
    assert line["difference"] < ROUNDING
    assert line["weights"] == SPECS[name] and line["moments_lie_with_weights"] and line["carry"] == ["('data',)"]
    assert len(line["losses"]) == 3 and line["losses"][-1] < line["losses"][0] / 3


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        (
            "axis",
            "batches are to be divided along the mesh axis 'rows', but the mesh has 'data' of 4; give batch_axis=",
        ),
        ("streams", "Streams: a batch of 6 cannot be divided among 4 devices; take a multiple of 4, or fewer devices"),
        ("batch", "batch[0][0] (float32[5,6,1]) has 6 examples in axis 1, which cannot be divided among the 4 devices"),
        (
            "specs",
            "batch_specs should be PartitionSpecs in the structure of a batch (or of its upper levels)",
        ),
        ("mesh", "mesh must be a jax.sharding.Mesh, as jax.make_mesh gives, got list"),
        ("iterators", "batches must be a function of the step's number, got list"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(case, complaint):
    line = check(f"refused: {case}", FAST)
    assert complaint in line["error"] and "\n" not in line["error"]
    assert set(line["left"]) <= {"metrics.jsonl"}  # which is empty then


@slow
def test_gone_on_with_on_the_same_mesh_to_the_bit_and_on_others_but_for_rounding():
    assert check("fsdp: gone on with on the same")["same_bits"]
    for where, specs in {"two": ["()"], "one": [], "a square, split": SPECS["by path"]}.items():
        line = check(f"fsdp: gone on with on {where}")
        assert line["difference"] < ROUNDING and line["weights"] == specs
    line = check("one device's checkpoint on four")
    assert line["difference"] < ROUNDING and line["weights"] == SPECS["fsdp"]


@slow
def test_a_state_that_is_gone_on_from_survives():
    line = check("a state gone on from")
    assert line["same_bits"] and line["survives"]


@slow
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_under_a_mesh_that_is_set(kind):
    line = check(f"under {kind}")
    assert line["difference"] < ROUNDING and line["weights"] == SPECS["fsdp"]


@slow
def test_buckets_averages_and_best_parameters():
    assert check("buckets")["difference"] < ROUNDING
    line = check("best and average")
    assert line["difference"] < ROUNDING and line["steps"][0] == line["steps"][1]


@slow
def test_weights_in_parts_are_put_together_once_and_never_in_a_loop():
    assert check("replicated: collectives") | {"check": ""} == {
        "check": "",
        "gathers_in_loops": 0,
        "gathers": 0,
        "exchanges": 0,
    }
    line = check("fsdp: collectives")
    assert line["gathers_in_loops"] == 0 == line["exchanges"]
    assert line["gathers"] == 7  # U, W, b of the LSTM; U, W, b, c_n of the GRU


@slow
def test_trainings_with_the_same_objects_share_a_program():
    assert check("one program")["traces"] == [1, 2]  # and weights that lie elsewhere are another
