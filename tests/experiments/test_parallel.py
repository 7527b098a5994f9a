"""Parallel in time, in little: its parts, going on, and the pieces that they are made of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from experiments import digits_in_a_row, parallel, parallel_pictures
from tests.experiments.program import complains, is_picture, launched, table

SMALL = "--size 4 --inputs 3 --segment 8 --rounds 1 --wait 3 --seconds 0.01".split()
COMPARED = ["lax.scan", "jaxrnn.scan", "parallel()", "parallel(segment=8)", "associative_scan"]


def test_certificates_and_going_on(tmp_path):
    folder = tmp_path / "run"
    arguments = ["--parts", "newton", "--lengths", "12", *SMALL, "--gains", "1", "40", "--run", folder]
    code, out, err = launched("parallel", *arguments)
    assert code == 0, err
    assert "iterations" in out and "bound" in out
    mild, wild = rows = table(folder / "table.csv")
    assert mild["met"] == "True" and 0 < int(mild["iterations"]) < 12 and float(mild["error"]) < 1e-5
    assert float(mild["residual"]) <= 16 * np.finfo(np.float32).eps
    assert int(wild["iterations"]) >= int(mild["iterations"]) and float(wild["error"]) < 1e-3
    assert len(json.loads((folder / "results.json").read_text())) == 2 and is_picture(folder / "newton.png")
    assert launched("parallel", *arguments).code == 0  # nothing is measured again: also the times are the same
    assert table(folder / "table.csv") == rows


@pytest.mark.slow
def test_every_part(tmp_path):
    folder = tmp_path / "run"
    parts = list(parallel.MEASURES)
    code, out, err = launched("parallel", "--parts", *parts, "--lengths", "9", "72", *SMALL, "--run", folder)
    assert code == 0, err
    rows = table(folder / "table.csv")
    assert [r["way"] for r in rows if r["part"] == "cost"] == 2 * COMPARED
    short, long = ({r["way"]: r for r in rows if r["part"] == "cost" and r["of"] == T} for T in ("9", "72"))
    grown = {way: int(long[way]["gradient_depth"]) / int(short[way]["gradient_depth"]) for way in COMPARED}
    assert grown["lax.scan"] > 7 and grown["parallel()"] < 3 and grown["associative_scan"] < 3
    assert int(long["lax.scan"]["gradient_depth"]) > 72
    assert all(float(r["gradient_difference"]) < 1e-5 for r in rows if r["part"] == "cost")
    errors = {(r["dtype"], r["way"]): float(r["error"]) for r in rows if r["part"] == "accuracy"}
    assert len(errors) == 6 and all((e < 1e-5) == (dtype == "float32") for (dtype, _), e in errors.items())
    nets = {r["of"]: r for r in rows if r["part"] == "digits"}
    assert list(nets) == list(digits_in_a_row.NETS) and all(0 <= float(r["right"]) <= 1 for r in nets.values())
    assert all(is_picture(folder / f"{part}.png") for part in parts)


def test_what_is_written_by_hand_is_the_same_cell():
    cell, xs = rnn.cells.min_gru(4), jax.random.normal(jax.random.key(0), (9, 2, 3))
    params = cell.init(jax.random.key(1), xs[0])
    by_hand = parallel.by_hand(params, xs)
    h = np.zeros((2, 4))
    for x, found in zip(np.asarray(xs), by_hand, strict=True):
        z, n = np.split(x @ np.asarray(params["U"]) + np.asarray(params["b"]), 2, axis=-1)
        z = 1 / (1 + np.exp(-z))
        h = (1 - z) * h + z * n
        np.testing.assert_allclose(found, h, rtol=1e-5, atol=1e-6)


def test_what_needs_more_memory_than_there_is_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parallel, "ways", lambda cell, segment: {"associative_scan": parallel.by_hand})
    monkeypatch.setattr(rnn.analysis, "memory_free", lambda: 1)
    (row,) = parallel.cost(parallel.Config(size=4, inputs=3), 8)
    assert "not run: needs" in row["note"] and "gradient_seconds" not in row
    assert row["gradient_depth"] > row["forward_depth"] > 8 and row["gradient_flops"] > row["forward_flops"] > 0
    row = {"part": "cost", "of": 8, **row}
    assert parallel.shown("cost", row)["seconds"] == "-"
    assert parallel_pictures.draw([row], tmp_path) == ["cost.png"] and is_picture(tmp_path / "cost.png")


def test_digits_come_pixel_by_pixel_and_then_nothing():
    (images, labels), (others, _) = digits_in_a_row.digits()
    assert images.shape == (1797 - 360, 64) and others.shape == (360, 64) and 0 <= images.min() < images.max() <= 1
    xs = digits_in_a_row.in_a_row(images[:2], 5)
    assert xs.shape == (69, 2, 2) and not xs[64:].any() and (xs[:64, :, 1] == 1).all()
    np.testing.assert_array_equal(xs[:64, 1, 0], images[1])
    assert set(np.unique(labels)) == set(range(10))


def test_gates_open_for_as_long_as_the_sequence():
    params = {"b": jnp.zeros(200), "U": jnp.ones((3, 200))}
    found = digits_in_a_row.opened(params, (-1, 1, 0, 0), 500, jax.random.key(0))
    closed, kept, *rest = jnp.split(found["b"], 4)
    assert (closed == -kept).all() and not any(r.any() for r in rest) and (found["U"] == params["U"]).all()
    assert kept.min() >= 0 and 0.8 * np.log(499) < kept.max() <= np.log(499)
    assert digits_in_a_row.opened(params, (), 500, jax.random.key(0)) is params


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--parts"], "--parts needs at least one"),
        (["--lengths", "0"], "must be at least 1"),
        (["--wait", "-1"], "--wait must be 0 or more"),
        (["--run", "tests"], "is not a run folder"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, tmp_path):
    complains(launched("parallel", *(["--run", tmp_path / "run"] + arguments)), complaint)
