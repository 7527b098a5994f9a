"""One writer for a run folder: who holds it is named, a process that was killed is in nobody's way."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from jaxrnn.training import locks
from tests.training.problems import bits, contents, tiny

ROOT = Path(__file__).parents[2]
Run, RunError = rnn.training.Run, rnn.training.RunError

HOLDER = """
import os, sys
from jaxrnn.training import Run
import numpy as np
run = Run(sys.argv[1])
if not run.steps():
    run.save(1, {"w": np.ones(3, "f4")})
print("held", flush=True)
worker = os.fork() if len(sys.argv) > 2 else None
if worker == 0:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_by_another_process(folder, *options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", HOLDER, str(folder), *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        try:
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_a_second_process_is_kept_out_may_read_and_comes_in_after_kill_nine(tmp_path):
    folder = tmp_path / "run"
    with held_by_another_process(folder, "and a worker") as child:
        worker = int(child.stdout.readline())
        before = contents(folder)
        with pytest.raises(RunError) as refused:
            Run(folder)
        assert str(refused.value) == (
            f"run folder {folder} is in use by process {child.pid} on {socket.gethostname()}; wait until it has ended, "
            "or stop it, or choose another folder (read_only=True opens it for reading)"
        )
        with pytest.raises(RunError, match=f"in use by process {child.pid} on"):
            rnn.training.fit(**tiny(), run=folder)
        with Run(folder, read_only=True) as run:
            assert run.steps() == [1] and run.restore({"w": jnp.zeros(3)})["w"].tolist() == [1, 1, 1]
        assert rnn.training.read_config(folder) == {} and rnn.training.read_metrics(folder) == []
        assert contents(folder) == before
        child.send_signal(signal.SIGKILL)
        child.wait()
        # The worker that it forked lives on, as a data loader might; it does not keep the folder.
        os.kill(worker, 0)
        with Run(folder) as run:
            assert run.steps() == [1]
        os.kill(worker, signal.SIGKILL)


def test_one_process_cannot_open_a_folder_twice(tmp_path):
    with Run(tmp_path / "run") as run:
        with pytest.raises(RunError, match=r"run is open in this process already; close that Run first or use it here"):
            Run(tmp_path / "run")
        with pytest.raises(RunError, match="open in this process already"):
            rnn.training.fit(**tiny(), run=tmp_path / "run")
        run.log({"step": 1})  # the refused ones took nothing away
        with pytest.raises(RunError, match="open in this process already"):
            Run(tmp_path / "run")
    Run(tmp_path / "run").close()
    forgotten = Run(tmp_path / "run")
    del forgotten
    Run(tmp_path / "run").close()


def test_a_run_that_is_closed_or_read_only_writes_nothing(tmp_path):
    with Run(tmp_path / "run", {"size": 3}) as run:
        run.save(1, {"w": jnp.ones(3)})
    before = contents(tmp_path / "run")
    reader = Run(tmp_path / "run", {"size": 3}, read_only=True)
    for shut, how in ((run, "closed; open it again"), (reader, "open for reading only; open it without read_only")):
        for write in (
            lambda r: r.save(2, {"w": jnp.ones(3)}),
            lambda r: r.log({"step": 2}),
            lambda r: r.write("a.txt", "a"),
            lambda r: r.forget_after(0),
            lambda r: rnn.training.fit(**tiny(params={"w": jnp.ones(3)}), run=r),
        ):
            with pytest.raises(RunError, match=f"is {how}|holds another model"):
                write(shut)
    assert contents(tmp_path / "run") == before
    with pytest.raises(RunError, match=r"holds a different run \(size: 3 there, 4 here\)"):
        Run(tmp_path / "run", {"size": 4}, read_only=True)
    with pytest.raises(RunError, match=r"nowhere is not a run folder \(no run.json in it\); train a run there first"):
        Run(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_reader_is_in_nobody_s_way(tmp_path):
    with Run(tmp_path / "run"), Run(tmp_path / "run", read_only=True), Run(tmp_path / "run", read_only=True):
        pass
    with Run(tmp_path / "run", read_only=True):
        Run(tmp_path / "run").close()


@pytest.mark.parametrize("left", ["", "1234567 elsewhere\n", "no name at all", "\udcff"])
def test_a_lock_file_that_was_left_behind_is_no_obstacle(tmp_path, left):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").write_bytes(left.encode(errors="surrogateescape"))
    (tmp_path / "run" / "run.json.new").write_text('{"ha')  # nor is a draft, of a kill at the very first file
    with Run(tmp_path / "run", {"size": 3}):
        assert rnn.training.read_config(tmp_path / "run") == {"size": 3}


def test_a_folder_in_place_of_the_lock_file_is_named(tmp_path):
    Run(tmp_path / "run").close()
    (tmp_path / "run" / "run.lock").unlink()
    (tmp_path / "run" / "run.lock").mkdir()
    with pytest.raises(RunError, match=r"run.lock cannot be opened \(Is a directory\); choose another folder"):
        Run(tmp_path / "run")


def test_where_there_are_no_locks_it_says_so_and_works(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with (
        pytest.warns(UserWarning, match=r"cannot be locked \(this system has none\), so nothing keeps a second"),
        Run(tmp_path / "run") as run,
    ):
        state = {"w": jnp.ones(3)}
        run.save(1, state)
        assert bits(run.restore(state)) == bits(state)


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
    def unsupported(descriptor, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match=r"cannot be locked \(Operation not supported\)"):
        Run(tmp_path / "run").close()
