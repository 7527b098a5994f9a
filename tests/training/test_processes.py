"""`fit` in two processes of two devices each: the result of one, who reads and writes what, kill -9 of one of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jaxrnn as rnn
from jaxrnn.training import processes

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def started(folder, what, **environment):
    """Two processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "tests.training.in_processes", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([*command, str(n), str(port), str(folder), what], cwd=ROOT, env=env, **pipes) for n in range(2)
    ]


def ended(children):
    """What each of them says, by check."""
    found = []
    for child in children:
        out, err = child.communicate(timeout=600)
        assert child.returncode == 0, err[-3000:]
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        found.append({line["check"]: line for line in lines})
    return found


def on_one_device(**changed):
    """The same training in this process, by itself."""
    from tests.training.on_devices import given

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return rnn.training.fit(**given(**changed))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two processes")
    on_one_device(run=folder / "alone")
    on_one_device(run=folder / "one device", steps=5)
    return folder, ended(started(folder, "trains")), rnn.training.read_metrics(folder / "alone")


@pytest.mark.parametrize("name", ["replicated", "fsdp", "tensor"])
def test_two_processes_train_as_one_and_go_on_to_the_bit(trained, name):
    _, found, alone = trained
    for process, lines in enumerate(found):
        line = lines[name]
        np.testing.assert_allclose(line["losses"], [record["loss"] for record in alone], rtol=1e-5)
        assert line["same_bits"] and line["step"] == 12
        share = [process, process + 1, 2] if name == "tensor" else [2 * process, 2 * process + 2, 4]
        assert line["read"] == share  # each process reads its own streams


def test_one_device_s_checkpoint_is_gone_on_from_by_two_processes_and_theirs_by_one_device(trained):
    folder, found, alone = trained
    losses = found[0]["from one device"]["losses"]  # at steps 4, 5 (where it was cut), 8 and 12
    np.testing.assert_allclose(losses[::3], [alone[0]["loss"], alone[-1]["loss"]], rtol=1e-5)
    (folder / "fsdp cut" / "checkpoints" / "12").rename(folder / "of the end")
    (folder / "fsdp cut" / "checkpoints" / "10").rename(folder / "of another")
    state = on_one_device(run=folder / "fsdp cut")
    np.testing.assert_allclose(optax.tree.norm(state.params), optax.tree.norm(on_one_device().params), rtol=1e-5)


def test_the_first_process_writes_each_line_once(trained):
    folder, found, alone = trained
    assert [r["step"] for r in rnn.training.read_metrics(folder / "fsdp")] == [r["step"] for r in alone]
    assert found[0]["files"]["steps"] == [5, 10, 12] == found[1]["files"]["steps"]


def test_each_process_s_iterator_goes_on_from_its_own_place(tmp_path):
    assert all(lines["iterators"]["same_bits"] for lines in ended(started(tmp_path, "iterates")))
    with rnn.training.Run(tmp_path / "iterators", read_only=True) as run:
        places = run.beside()["batches"]["of each process"]
    assert [place["of"] for place in places] == [0, 1]


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    for lines in ended(started(tmp_path, "interrupts")):
        line = lines["interrupted"]
        assert line["text"].endswith("interrupted, start it again to go on") and line["signum"] == signal.SIGTERM
        assert line["step"] == 5
    with rnn.training.Run(tmp_path / "interrupted", read_only=True) as run:
        assert run.steps() == [5]


def test_processes_that_disagree_are_told_and_write_nothing(tmp_path):
    complaints = {
        "steps": "fit: the processes disagree: steps is 12 in process 0 and 13 in process 1; start all",
        "key": "fit: the processes disagree: key is 'uint32[2] with check sum",
        "weights": "fit: the processes disagree: params/0/U is 'float32[1,32] with check sum",
        "batch": "fit: the processes disagree: batch[0][0] is 'float32[10,4,1]' in process 0 and 'float32[10,8,1]' in",
        "no mesh": "fit: there are 2 processes but no mesh; give mesh=, over jax.devices()",
        "config": "Run: the processes disagree: size is 0 in process 0 and 1 in process 1",
        "folder": "is not a run folder (it holds thesis.txt but no run.json); choose an empty or new folder",
    }
    for lines in ended(started(tmp_path, "disagrees")):
        for name, complaint in complaints.items():
            line = lines[f"refused: {name}"]
            assert complaint in line["error"] and "\n" not in line["error"]
    assert [p.name for p in tmp_path.iterdir()] == ["strange"]


def test_kill_nine_of_one_process_ends_the_other_and_all_go_on(tmp_path):
    children = started(tmp_path, "for_ever")
    try:
        deadline = time.time() + 300
        while not (tmp_path / "killed" / "checkpoints" / "10").exists() and time.time() < deadline:
            time.sleep(0.05)
        children[1].send_signal(signal.SIGKILL)
        _, err = children[0].communicate(timeout=300)
        assert children[0].returncode != 0
        assert "RunError: another of the 2 processes has ended (" in err, err[-3000:]
        assert "; start all of them again, to go on from the last checkpoint" in err
    finally:
        for child in children:
            child.kill()
            child.communicate()
    with rnn.training.Run(tmp_path / "killed", read_only=True) as run:
        reached = run.steps()[-1]
    steps = reached + 7
    for lines in ended(started(tmp_path, "for_ever", STEPS=str(steps))):
        assert lines["to the end"]["step"] == steps
        plain = on_one_device(steps=steps)
        np.testing.assert_allclose(lines["to the end"]["weights"], float(optax.tree.norm(plain.params)), rtol=1e-3)
    records = [record["step"] for record in rnn.training.read_metrics(tmp_path / "killed")]
    assert records == sorted(set(records)) and records[-1] == steps


def test_a_process_by_itself_asks_nobody():
    assert processes.count() == 1 and processes.is_first() and processes.texts("mine") == ["mine"]
    processes.agree("fit", {"steps": object()})
    with pytest.raises(rnn.training.RunError, match="as it is"):
        processes.by_the_first(lambda: (_ for _ in ()).throw(rnn.training.RunError("as it is")))
