"""Nets as graphs on problems of memory: a few steps of each, going on, a net that diverges, the problems themselves."""

import jax
import numpy as np
import pytest

from experiments import harness, pictures, tasks, unrolling
from tests.experiments.program import complains, is_picture, launched, table


@pytest.mark.slow
def test_unrolling_draws_checks_trains_and_goes_on(tmp_path):
    asked, nets = ("adding", "copy"), ("tanh", "gru")
    folder, names = tmp_path / "run", list(unrolling.DRAWN)
    arguments = ["--tasks", *asked, "--nets", *nets, *"--delays 1 2 --size 4 --batch 2 --steps 2".split()]
    code, out, err = launched("unrolling", *arguments, "--run", folder)
    assert code == 0, err
    assert out.count("scan and unrolled graph differ by") == len(names) and "as stated" in out and "error left" in out
    rows = table(folder / "table.csv")
    wanted = [(t, d, n) for t in asked for d in ("1", "2") for n in nets]
    assert [(r["task"], r["delay"], r["net"]) for r in rows] == wanted
    assert all(0 < float(r["error"]) < 100 for r in rows)
    assert all((r["rate_start"] != "") == (r["lyapunov_trained"] != "") == (r["delay"] == "2") for r in rows)
    for name in ("learning", "spectra", "copies", "exponents"):
        assert is_picture(folder / f"{name}.png")
    assert all((folder / f"{name}.svg").read_text().startswith("<svg") for name in names)
    # Killed while it wrote the last net's line: the others keep even their seconds, the last one is trained again.
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    assert launched("unrolling", *arguments, "--run", folder).code == 0
    again = table(folder / "table.csv")
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
    complains(launched("unrolling", *(["--run", tmp_path / "run"] + arguments)), complaint)


@pytest.mark.slow
def test_a_net_that_diverges_is_a_row_like_any_other(tmp_path, capsys):
    given = {"tasks": ("adding",), "delays": (3,), "nets": ("relu",), "size": 4, "batch": 2, "steps": 4}
    config = unrolling.Config(**given, plain_learning_rate=1e25)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        row = unrolling.trained(config, "adding", 3, "relu")
    assert row["error"] == np.inf and row["note"].startswith("the loss of step") and not row["trained"]
    row = {"task": "adding", "delay": 3, "net": "relu", **row}
    unrolling.show([row], config, harness.console())
    assert "diverged" in capsys.readouterr().out and "inf" in unrolling.as_csv([row])
    written = pictures.draw([row], config.tasks, config.delays, config.nets, "after 4 steps", tmp_path)
    assert {"spectra.png", "learning.png"} < set(written) and all(is_picture(tmp_path / name) for name in written)


def test_what_diverged_is_shown_and_drawn(tmp_path, capsys):
    row = {"task": "adding", "delay": 3, "net": "relu", "error": np.inf, "note": "no", "start": {}, "trained": {}}
    config = unrolling.Config(tasks=("adding",), delays=(3,), nets=("relu",))
    unrolling.show([row], config, harness.console())
    assert "diverged" in (out := capsys.readouterr().out) and "adding, delay 3, relu: no" in out
    assert "inf" in unrolling.as_csv([row])
    pictures.draw([row], config.tasks, config.delays, config.nets, "after 4 steps", tmp_path)
    assert is_picture(tmp_path / "learning.png")


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
