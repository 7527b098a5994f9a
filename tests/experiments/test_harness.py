"""What experiments share: names of scans, exit codes, rows that are measured once, numbers on the command line."""

import os
import signal
import sys
import typing

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxrnn as rnn
from experiments import harness, speed
from tests.experiments.program import complains, ended, launched, started

EXPERIMENTS = ["char_lm", "memory_vs_compute", "speed", "unrolling"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_says_what_it_does(experiment):
    code, out, _ = launched(experiment, "--help")
    assert code == 0 and "--run" in out and "checkpoint" in out


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_is_a_program(experiment):
    code, out, _ = ended(started(experiment, "--help"))
    assert code == 0 and "--run" in out and "checkpoint" in out


def test_what_is_wrong_is_one_sentence_of_a_real_program(tmp_path):
    complains(ended(started("speed", "--scans", "fast", "--run", tmp_path / "run")), "is not understood")


def test_scans_are_named_by_their_expression():
    assert harness.scan_named("lax.scan") is lax.scan
    assert harness.scan_named("checkpointed") == rnn.checkpointed()
    assert harness.scan_named(" checkpointed( 25 , levels = 2 ) ") == rnn.checkpointed(25, levels=2)
    nested = rnn.truncated(20, inner=rnn.checkpointed(inner=rnn.python_loop()))
    assert harness.scan_named("truncated(20, inner=checkpointed(inner=python_loop))") == nested
    at_once = rnn.parallel(64, newton=rnn.scans.newton(12), inner=rnn.checkpointed())
    assert harness.scan_named("parallel(64, newton=newton(12), inner=checkpointed)") == at_once
    with pytest.raises(harness.UsageError, match="is not a scan"):  # only an argument of one
        harness.scan_named("newton")


@pytest.mark.parametrize("name", typing.get_args(harness.CellName))
def test_every_cell_of_the_command_line_takes_inputs_of_any_width(name):
    cell, x = harness.CELLS[name](8), jax.ShapeDtypeStruct((2, 5), jnp.float32)
    params = jax.eval_shape(cell.init, jax.random.key(0), x)
    state, y = jax.eval_shape(lambda p, x: cell.step(p, cell.initial_state(p, (2,)), x), params, x)
    assert y.shape == (2, 8) and y.dtype == jnp.float32
    assert len(harness.CELLS) == len(typing.get_args(harness.CellName))


@pytest.mark.parametrize("text", ["1,2,3", "0,1,1,1", "1,2,3,4,5", "a,1,1,1", "1,1,1,-1", "", "1.5,1,1,1"])
def test_sizes_are_whole_numbers(text):
    with pytest.raises(harness.UsageError, match="four whole numbers of at least 1, e.g. 200,4,128,256"):
        speed.sizes_of(text)
    assert speed.sizes_of("7, 6,5,4") == [7, 6, 5, 4]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "a scheduler"]
)
def test_an_interruption_is_one_sentence_and_its_own_exit_code(signum, code, monkeypatch):
    def main(config):
        os.kill(os.getpid(), signum)
        raise AssertionError("not reached")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(speed, "main", main)
    result = launched("speed")
    assert result.code == code and result.err.strip() == "stopped; start it again to go on from what is saved"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main(config):
        raise ZeroDivisionError

    monkeypatch.setattr(speed, "main", main)
    with pytest.raises(ZeroDivisionError):
        launched("speed")


def test_rows_are_measured_once_and_written_one_by_one(tmp_path):
    measured, written = [], []

    def measure(a, b):
        if len(measured) == 2:
            raise rnn.training.Interrupted("stopped after step 3 of 7")
        measured.append((a, b))
        return {"sum": a + b}

    work = [{"a": a, "b": b} for a in (1, 2) for b in (3, 4)]
    collect = lambda done: written.append(len(done))
    with rnn.training.Run(tmp_path / "run") as run:
        with pytest.raises(rnn.training.Interrupted, match="stopped at a 2, b 3; start it again to go on after what"):
            harness.records(run, work, measure, harness.console(), then=collect)
        assert measured == [(1, 3), (1, 4)] and written == [1, 2]
        measured = [None] * 3  # the rest, and only the rest
        rows = harness.records(run, work, measure, harness.console())
        assert [row["sum"] for row in rows] == [4, 5, 5, 6] and measured[3:] == [(2, 3), (2, 4)]
        assert rnn.training.read_metrics(run.folder) == rows


def test_tables_and_numbers():
    rows = [{"T": 1, "note": "x"}, {"T": 2, "more": "?"}]
    assert harness.as_csv(rows).splitlines() == ["T,note", "1,x", "2,"]
    assert harness.as_csv(rows, ["T", "more"]).splitlines() == ["T,more", "1,", "2,?"]
    assert harness.text(None, ".1f") == "-" and harness.text(0.26, ".1f") == "0.3"
    plain = {"a": jnp.array([1.0, -4.0]), "b": jnp.array(2.0)}
    assert harness.difference({"a": jnp.array([1.0, -4.0]), "b": jnp.array(1.0)}, plain) == pytest.approx(0.25)


def test_without_matplotlib_a_picture_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    harness.picture(tmp_path / "curve.png", lambda axes: pytest.fail("drawn"))
    assert capsys.readouterr().out == "curve.png is not drawn: matplotlib is not installed\n"
    assert not list(tmp_path.iterdir())
