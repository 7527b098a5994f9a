"""`parallel` on four devices: batches spread over them in every kind of mesh, and time itself spread over them."""

import functools
import json
import os
import subprocess
import sys

import pytest

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
