"""The experiments from the command line: a few steps of each, going on, and what they say to bad arguments."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import lax

import jaxrnn as rnn
from experiments import common, data, peers, speed, tasks, unrolling

ROOT = Path(__file__).parent.parent


def run(*arguments, wait=True):
    command = [sys.executable, "-m", *map(str, arguments)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "default"}
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not wait:
        return child
    out, err = child.communicate(timeout=400)
    return child.returncode, out, err


TINY = "--size 24 --embedding 8 --batch 16 --window 16 --steps 20 --evaluations 1 --save-every 5".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, run("experiments.char_lm", *TINY, "--run", folder)


def test_char_lm_trains_reports_and_writes(trained):
    folder, (code, out, err) = trained
    assert code == 0, err
    for expected in (
        "gzip -9",
        "xz -9",
        "as trained",
        "learning on as it reads",
        "scratch memory",
        "gradient as one product per segment",
        "def __init__(self",
    ):
        assert expected in out
    bits = json.loads((folder / "results.json").read_text())
    assert 1.5 < bits["xz -9"] < bits["gzip -9"] < 2.5 and 2 < bits["gru 24, learning on as it reads"] < 8
    assert rnn.training.read_metrics(folder)[-1]["held_out_bits"] == pytest.approx(bits["gru 24, as trained"])
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_char_lm_completes_from_a_saved_run(trained):
    code, out, err = run("experiments.char_lm", "--run", trained[0], "--complete", "def f(", "--length", 30)
    assert code == 0, err
    assert out.startswith("def f(")


def test_char_lm_interrupted_goes_on(tmp_path):
    long = [*TINY, "--steps", "100000", "--run", tmp_path / "run"]
    child = run("experiments.char_lm", *long, wait=False)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.time() + 200
    while not (checkpoints / "5").exists() and not (checkpoints / "15").exists() and time.time() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=100)
    assert child.returncode == 130 and "start it again to go on" in err, err
    with rnn.training.Run(tmp_path / "run", json.loads((tmp_path / "run" / "run.json").read_text())) as opened:
        assert opened.steps()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--scan", "lax.skan"], "scan 'lax.skan' is not understood; known are lax.scan"),
        (["--scan", "checkpointed(0)"], "segment must be a whole number of at least 1, got 0"),
        (["--scan", "truncated"], "is not understood"),
        (["--scan", "__import__('os').system('true')"], "is not understood"),
        (["--size", "0"], "size must be a whole number of at least 1, got 0"),
        (["--window", "100000000"], "too few for"),
        (["--dropout", "1.5"], "rate is the share that is dropped"),
        (["--complete", "x", "--run", "no/such/run"], "is not a run folder"),
        (["--run", "pyproject.toml/run"], "cannot be written"),
        (["--run", "tests"], "is not a run folder"),
    ],
)
def test_char_lm_says_what_is_wrong_in_one_sentence(arguments, complaint):
    code, out, err = run("experiments.char_lm", *arguments)
    assert code == 1, (out, err)
    assert complaint in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize("arguments", [["--cell", "lstn"], ["--no-such-option", "1"], ["--steps", "many"]])
def test_unknown_options_are_refused(arguments):
    code, _, err = run("experiments.char_lm", *arguments)
    assert code == 2 and err.strip()


@pytest.mark.parametrize("experiment", ["char_lm", "memory_vs_compute", "speed", "unrolling"])
def test_help_says_what_it_does(experiment):
    code, out, _ = run(f"experiments.{experiment}", "--help")
    assert code == 0 and "--run" in out and "checkpoint" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shapes", "1,2,3"], "four whole numbers of at least 1, e.g. 200,4,128,256, got '1,2,3'"),
        (["--shapes", "0,1,1,1"], "four whole numbers of at least 1"),
        (["--peers", "tensorflow"], "are not known; known are textbook"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--scans", "fast"], "is not understood"),
    ],
)
def test_speed_says_what_is_wrong_in_one_sentence(arguments, complaint, tmp_path):
    code, out, err = run("experiments.speed", *arguments, "--run", tmp_path / "run")
    assert code == 1, (out, err)
    assert complaint in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1, err


def table(folder):
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


SMALL = "--size 32 --batch 8 --inputs 16 --rounds 1 --lengths 20 200".split()


def test_memory_vs_compute_writes_a_row_per_length_and_strategy(tmp_path):
    arguments = ["experiments.memory_vs_compute", *SMALL, "--run", tmp_path / "run"]
    code, out, err = run(*arguments)
    assert code == 0, err
    rows = table(tmp_path / "run")
    at = {r["strategy"]: r for r in rows if r["T"] == "200"}
    assert {r["T"] for r in rows} == {"20", "200"} and len(at) >= 6 + 4  # its own scans, and the planner's plans
    planned = [r for r in rows if r["strategy"].startswith(("plan: ", "within 5%: "))]
    assert planned and all(abs(int(r["predicted_bytes"]) / int(r["temp_bytes"]) - 1) < 0.15 for r in planned)
    assert int(at["checkpointed"]["temp_bytes"]) < int(at["lax.scan"]["temp_bytes"]) / 5
    assert int(at["lax.scan"]["flops"]) < int(at["checkpointed"]["flops"]) < int(at["checkpointed(levels=2)"]["flops"])
    assert all(float(r["difference"]) < 1e-5 for r in rows)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    again = run(*arguments)
    assert again[0] == 0 and table(tmp_path / "run") == rows


def test_a_million_steps_begin_with_a_hundred(tmp_path):
    """The same program and table as for a million, at lengths that suit a test; it goes on from what it has."""
    arguments = ["experiments.memory_vs_compute", "--million", "--limit", "400KiB", "--run", tmp_path / "run"]
    code, _, err = run(*arguments, "--lengths", 100)
    assert code == 0, err
    code, out, err = run(*arguments, "--lengths", 100, 3000)
    assert code == 0, err
    with (tmp_path / "run" / "million.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["T"] for r in rows] == ["100", "3000"] and float(rows[1]["passes"]) > 0 and rows[1]["plan"] in out
    assert all(int(r["temp_bytes"]) <= 400 * 1024 and float(r["difference"]) < 1e-4 for r in rows)
    assert (tmp_path / "run" / "million.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(*arguments[:3], "1KiB", "--lengths", 100, "--run", tmp_path / "none")
    assert code == 1 and err.startswith("error: within: no plan") and len(err.strip().splitlines()) == 1, err


def test_char_lm_within_a_budget_prints_its_plan_first(tmp_path):
    arguments = ["experiments.char_lm", *TINY, "--window", 400, "--memory", "3MiB", "--steps", 2]
    code, out, err = run(*arguments, "--run", tmp_path / "run")
    assert code == 0, err
    taken = float(out.split("scratch memory of one gradient: within(3MiB) ")[1].split()[0])
    assert taken <= 3.05 and out.index("extra passes") < out.index("step 2/2")
    code, _, err = run(*arguments[:-3], "1KiB", "--steps", 2, "--run", tmp_path / "none")
    assert code == 1 and "within: no plan" in err and len(err.strip().splitlines()) == 1, err


def test_what_does_not_fit_is_predicted_not_run(tmp_path):
    code, out, err = run("experiments.memory_vs_compute", *SMALL, "--budget", "0.5", "--run", tmp_path / "run")
    assert code == 0, err
    rows = {(r["T"], r["strategy"]): r for r in table(tmp_path / "run")}
    plain = rows["200", "lax.scan"]
    assert plain["note"].startswith("not run: needs") and not plain["seconds"] and "not run: needs" in out
    assert rows["200", "checkpointed(levels=2)"]["seconds"] and int(plain["temp_bytes"]) > 2**19


def test_speed_checks_times_and_writes(tmp_path):
    small = ["--shapes", "9,2,3,4", "--cells", "lstm", "gru", "elman", "--peers", "textbook", "flax", "cudnn"]
    code, out, err = run("experiments.speed", *small, "--rounds", 1, "--run", tmp_path / "speed")
    assert code == 0, err
    rows = table(tmp_path / "speed")
    assert {r["contender"] for r in rows} >= {"lax.scan", "fissioned", "textbook", "flax"}
    assert {(r["cell"], r["mode"]) for r in rows} == {(c, m) for c in ("lstm", "gru", "elman") for m in speed.MODES}
    assert all(float(r["difference"]) < 1e-5 and float(r["seconds"]) > 0 for r in rows)
    assert "cuDNN's LSTM needs a GPU" in out
    assert (tmp_path / "speed" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_speed_of_a_whole_model(tmp_path):
    small = ["--cells", "model", "--shapes", "6,2,3,4", "--scans", "fissioned(3)"]
    code, _, err = run("experiments.speed", *small, "--rounds", 1, "--run", tmp_path / "speed")
    assert code == 0, err
    rows = table(tmp_path / "speed")
    assert {r["contender"] for r in rows} == {"lax.scan", "fissioned(3)", "by hand"}
    assert all(float(r["difference"]) < 1e-5 for r in rows)


TINIER = "--delays 2 5 --nets tanh gru --size 6 --batch 4 --steps 2".split()


def test_unrolling_draws_checks_trains_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    code, out, err = run("experiments.unrolling", *TINIER, "--run", folder)
    assert code == 0, err
    assert out.count("scan and unrolled graph differ by") == 3 and "as stated" in out and "error left" in out
    rows = table(folder)
    wanted = [(t, d, n) for t in ("adding", "copy") for d in ("2", "5") for n in ("tanh", "gru")]
    assert [(r["task"], r["delay"], r["net"]) for r in rows] == wanted
    assert all(0 < float(r["error"]) < 100 for r in rows)
    assert all((r["rate_start"] != "") == (r["lyapunov_trained"] != "") == (r["delay"] == "5") for r in rows)
    for name in ("learning", "spectra", "copies", "exponents"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert all((folder / f"{name}.svg").read_text().startswith("<svg") for name in ("elman", "lstm", "gru"))
    # Killed while it wrote the last net's line: the others keep even their seconds, the last one is trained again.
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    assert run("experiments.unrolling", *TINIER, "--run", folder)[0] == 0
    again = table(folder)
    assert again[:-1] == rows[:-1] and again[-1]["error"] == rows[-1]["error"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--delays", "0"], "--delays, --size and --batch must be at least 1"),
        (["--steps", "0"], "steps must be a whole number of at least 1, got 0"),
        (["--run", "tests"], "is not a run folder"),
    ],
)
def test_unrolling_says_what_is_wrong_in_one_sentence(arguments, complaint, tmp_path):
    code, out, err = run("experiments.unrolling", *(["--run", tmp_path / "run"] + arguments))
    assert code == 1, (out, err)
    assert complaint in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1, err


def test_a_net_that_diverges_is_a_row_like_any_other(tmp_path, capsys):
    given = {"tasks": ("adding",), "delays": (3,), "nets": ("relu",), "size": 4, "batch": 2, "steps": 4}
    config = unrolling.Config(**given, plain_learning_rate=1e25)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        row = unrolling.trained(config, "adding", 3, "relu")
    assert row["error"] == np.inf and row["note"].startswith("the loss of step") and not row["trained"]
    unrolling.show([row], config, common.console())
    assert "diverged" in capsys.readouterr().out and "inf" in unrolling.as_csv([row])
    common.picture(tmp_path / "spectra.png", unrolling.draw_gradients([row], config, "spectrum"), columns=2)
    common.picture(tmp_path / "learning.png", unrolling.draw_learning([row], config))


def test_tasks_ask_for_what_was_shown():
    (xs, sums), key = tasks.adding(jax.random.key(0), 500, 7), jax.random.key(1)
    assert xs.shape == (17, 500, 2) and (xs[..., 1].sum(axis=0) == 2).all() and not xs[10:, :, 1].any()
    np.testing.assert_allclose((xs[..., 0] * xs[..., 1]).sum(axis=0), sums, rtol=1e-6)
    error = tasks.TASKS["adding"].error
    assert float(error(np.ones((17, 500, 1), "f4"), sums)) == pytest.approx(1, abs=0.15)  # the mean as an answer
    assert float(error(np.broadcast_to(sums[:, None], (17, 500, 1)), sums)) == 0
    xs, symbols = tasks.copy(key, 50, 7)
    read = np.asarray(xs.argmax(axis=-1))
    assert read.shape == (13, 50) and (read[:3] == symbols).all() and (read[3:10] == 4).all() and (read[10:] == 5).all()
    error = tasks.TASKS["copy"].error
    assert float(error(np.zeros((13, 50, 4), "f4"), symbols)) == pytest.approx(1)  # a guess
    right = np.zeros((13, 50, 4), "f4")
    right[10:] = 50 * np.eye(4)[symbols]
    assert float(error(right, symbols)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_peers_compute_the_same_function(cell, name):
    layer = common.CELLS[cell](6)
    xs = jax.random.normal(jax.random.key(0), (5, 2, 3))
    params = layer.init(jax.random.key(1), xs[0])
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape), params)
    with jax.numpy_rank_promotion("allow"):  # not everyone is as strict with ranks as these tests
        try:
            theirs, forward = peers.PEERS[name](cell, params)
        except peers.Absent as why:
            pytest.skip(str(why))
        got, expected = forward(theirs, xs), rnn.unroll(layer, params, xs)[1]
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_scans_are_named_by_their_expression():
    assert common.scan_named("lax.scan") is lax.scan
    assert common.scan_named("checkpointed") == rnn.checkpointed()
    assert common.scan_named(" checkpointed( 25 , levels = 2 ) ") == rnn.checkpointed(25, levels=2)
    nested = rnn.truncated(20, inner=rnn.checkpointed(inner=rnn.python_loop()))
    assert common.scan_named("truncated(20, inner=checkpointed(inner=python_loop))") == nested


def test_the_corpus_is_held_out_by_module():
    train, held = data.standard_library()
    assert train.characters > 2_000_000 and 0.02 < held.characters / train.characters < 0.12
    assert train.starts[0] and held.starts[0] and train.fingerprint != held.fingerprint
    pieces = data.shuffled(train, 2048, seed=0)
    assert len(pieces.content) == len(train.content)
    assert np.bincount(np.frombuffer(pieces.content, np.uint8)).tolist() == (
        np.bincount(np.frombuffer(train.content, np.uint8)).tolist()
    )
    assert np.diff(np.flatnonzero(pieces.starts)).max() <= 2048
    assert data.shuffled(train, 2048, seed=0).fingerprint == pieces.fingerprint
