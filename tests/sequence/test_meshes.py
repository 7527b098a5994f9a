"""unroll on four devices: explicit and automatic meshes, `jax.shard_map`. Each scan is checked in another process."""

import functools
import subprocess
import sys

import pytest

CHECKS = {"lax.scan": 10, "checkpointed(2)": 4}  # how many there are for each scan


@functools.cache
def report(scan):
    command = [sys.executable, "-m", "tests.sequence.on_four_devices", scan]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("scan", ["lax.scan", pytest.param("checkpointed(2)", marks=pytest.mark.slow)])
def test_values_gradients_and_shardings_on_meshes(scan):
    """As on one device; outputs lie where the batch lies."""
    found = [line for line in report(scan) if line.startswith(f"{scan}: ")]
    assert len(found) == CHECKS[scan]
    wrong = [line for line in found if not line.endswith(": fine")]
    assert not wrong, "\n".join(wrong).replace("\\n", "\n")
