"""Every scan on four devices: in shard_map, checked and not, on meshes of both kinds, in pmap."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.choice import slow_but_for
from tests.scans.on_a_mesh import SCANS

ROOT = Path(__file__).parent.parent.parent
# Fission, recomputation and its schedule; the rest is slow.
FAST = ["scan", "checkpointed", "revolve"]
EVERY = slow_but_for(FAST, SCANS)
PLACES = ["shard_map, check_vma=True", "shard_map, check_vma=False", "explicit mesh", "automatic mesh", "pmap"]


@functools.cache
def found(fast):
    """The number of devices is fixed when JAX starts, so all fast checks share a process of their own; the slow too."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.scans.on_a_mesh", *(name for name in SCANS if (name in FAST) == fast)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(line["place"], line["scan"]): line for line in lines}, done.stderr[-3000:]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scan", EVERY)
def test_values_and_gradients_are_one_device_s(scan, place):
    lines, complaint = found(scan in FAST)
    assert (place, scan) in lines, complaint
    assert lines[place, scan]["equal"]


@pytest.mark.parametrize("scan", EVERY)
def test_outputs_stay_where_the_batch_is_and_nothing_is_gathered(scan):
    lines, complaint = found(scan in FAST)
    for place in ("explicit mesh", "automatic mesh"):
        assert "'d'" in lines[place, scan]["sharding"], complaint
    assert lines["automatic mesh", scan]["gathers"] == 0
