"""Stopping at any moment, and going on as if nothing had been: the same bits."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import jaxrnn as rnn
from tests.training.problems import bits, interrupting, recurrent, tiny, tiny_batches

ROOT = Path(__file__).parents[2]
STOPS = [signal.SIGINT, signal.SIGTERM]
fit, Interrupted = rnn.training.fit, rnn.training.Interrupted


@pytest.fixture(scope="module")
def whole():
    """The bits at the end of a run that nothing stopped."""
    return bits(fit(**tiny()))


def test_a_recurrent_net_goes_on_to_the_same_bits(tmp_path):
    given = recurrent(steps=8)
    with pytest.raises(Interrupted, match=r"stopped after step 5 of 8; saved in .*cut, start it again"):
        fit(**given | {"batches": interrupting(given["batches"], 5, signal.SIGINT)}, run=tmp_path / "cut")
    assert bits(fit(**given, run=tmp_path / "cut")) == bits(fit(**given))


@pytest.mark.parametrize(("signum", "places"), [(signal.SIGINT, (4, 13, 22)), (signal.SIGTERM, (13,))])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, whole, signum, places):
    for at in places:
        with pytest.raises(
            Interrupted, match=rf"stopped after step {at} of 30; saved in .*cut, start it again"
        ) as stop:
            fit(**tiny(batches=interrupting(tiny_batches, at, signum)), run=tmp_path / "cut")
        assert stop.value.signum == signum and int(stop.value.state.step) == at
        with rnn.training.Run(tmp_path / "cut") as run:
            assert run.steps()[-1] == at
    assert bits(fit(**tiny(), run=tmp_path / "cut")) == whole
    steps = [r["step"] for r in rnn.training.read_metrics(tmp_path / "cut")]
    assert steps == sorted(set(steps)) and steps[-1] == 30
    assert bits(fit(**tiny(), run=tmp_path / "cut")) == whole  # finished: nothing is done again


@pytest.mark.parametrize("at", [0, 7, 29])
def test_without_a_run_folder_the_state_is_carried(whole, at):
    with pytest.raises(Interrupted, match=r"^stopped (after step \d+ of 30|before the first of 30 steps)$") as stop:
        fit(**tiny(batches=interrupting(tiny_batches, at, signal.SIGINT)))
    assert int(stop.value.state.step) == at
    assert bits(fit(**tiny(params=stop.value.state))) == whole


def test_a_stop_before_the_first_step_does_none_of_them(tmp_path, whole):
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="^stopped before the first of 30 steps$"):
        fit(**tiny(batches=interrupting(tiny_batches, 0, signal.SIGTERM)), run=run)
    with rnn.training.Run(run) as opened:
        assert opened.steps() == []
    with pytest.raises(Interrupted, match=r"stopped after step 5 of 30"):
        fit(**tiny(batches=interrupting(tiny_batches, 5, signal.SIGTERM)), run=run)
    with pytest.raises(Interrupted, match=r"stopped after step 5 of 30; saved in"):  # before the first of this start
        fit(**tiny(batches=interrupting(tiny_batches, 5, signal.SIGTERM)), run=run)
    assert bits(fit(**tiny(), run=run)) == whole


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGINT, 30), (signal.SIGTERM, 15)])
def test_a_stop_during_evaluate(tmp_path, whole, signum, step):

    def evaluate(params):
        signal.raise_signal(signum)
        return {"size": 3.0}

    with pytest.raises(Interrupted, match=f"stopped after step {step} of 30; saved in"):
        fit(**tiny(evaluate=evaluate, evaluate_every=step), run=tmp_path / "run")
    assert rnn.training.read_metrics(tmp_path / "run")[-1]["size"] == 3.0
    assert bits(fit(**tiny(), run=tmp_path / "run")) == whole


@pytest.mark.parametrize("signum", STOPS)
def test_a_stop_during_save_waits_until_it_is_complete(tmp_path, whole, signum, monkeypatch):
    rename = Path.rename

    def stopped(self, target):
        signal.raise_signal(signum)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(Interrupted, match="stopped after step 10 of 30; saved in"):
        fit(**tiny(), run=tmp_path / "run")
    monkeypatch.undo()
    with rnn.training.Run(tmp_path / "run") as run:
        assert run.steps() == [10]
    assert bits(fit(**tiny(), run=tmp_path / "run")) == whole


def test_a_second_ctrl_c_stops_at_once_and_in_the_middle_of_a_save(tmp_path, whole, monkeypatch):
    def twice(self, target):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Path, "rename", twice)
    with pytest.raises(KeyboardInterrupt) as stop:
        fit(**tiny(), run=tmp_path / "run")
    assert not isinstance(stop.value, Interrupted)
    monkeypatch.undo()
    assert bits(fit(**tiny(), run=tmp_path / "run")) == whole


def test_signals_are_what_they_were_afterwards():
    before = [signal.getsignal(signum) for signum in STOPS]
    fit(**tiny(steps=1))
    assert [signal.getsignal(signum) for signum in STOPS] == before
    with pytest.raises(Interrupted):
        fit(**tiny(batches=interrupting(tiny_batches, 1, signal.SIGTERM)))
    assert [signal.getsignal(signum) for signum in STOPS] == before


def test_in_another_thread_signals_are_left_alone(whole):
    done = []
    thread = threading.Thread(target=lambda: done.append(bits(fit(**tiny()))))
    thread.start()
    thread.join()
    assert done == [whole]


KILLED = """
import time
from tests.training.problems import recurrent
import jaxrnn as rnn
given = recurrent(save_every=3)
batches = given["batches"]
def slow(step):
    time.sleep(0.05)
    return batches(step)
rnn.training.fit(**(given | {{"batches": slow}}), run={run!r})
"""


@pytest.mark.slow
def test_kill_nine_of_a_training_ends_in_the_same_bits(tmp_path):
    run = tmp_path / "killed"
    for _ in range(2):
        before = _newest(run)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([sys.executable, "-c", KILLED.format(run=str(run))], env=environment)
        deadline = time.time() + 120
        while _newest(run) < before + 6 and child.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        assert child.poll() is None, "ended before it could be killed"
        child.kill()
        child.wait()
    assert bits(fit(**recurrent(save_every=3), run=run)) == bits(fit(**recurrent()))


def _newest(run):
    folder = run / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0
