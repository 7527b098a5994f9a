"""Learners with the batch on four devices. All checks run in one other process."""

import subprocess
import sys

from tests.online.test_learner import METHODS


def test_losses_and_gradients_are_those_of_one_device():
    command = [sys.executable, "-m", "tests.online.on_four_devices"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(METHODS)
    wrong = [line for line in lines if not line.endswith(": fine")]
    assert not wrong, "\n".join(wrong).replace("\\n", "\n")
