"""CTC without end, in little: a row per net, going on, what it reads and what it says to bad arguments."""

import itertools

import jax
import numpy as np
import pytest

import jaxrnn as rnn
from experiments import endless_ctc
from tests.experiments.program import complains, is_picture, launched, table

SMALL = "--seeds 1 --updates 4 --points 2 --batch 2 --frames 200 --size 4".split()


@pytest.mark.slow
def test_a_row_for_each_net_and_going_on(tmp_path):
    folder = tmp_path / "run"
    arguments = ["--windows", "0/100/0", "8/8/8", "--partial", "prefixes", "truncated", *SMALL, "--run", folder]
    code, out, err = launched("endless_ctc", *arguments)
    assert code == 0, err
    rows = table(folder / "table.csv")
    wanted = list(itertools.product(("0/100/0", "8/8/8"), ("prefixes", "truncated")))
    assert [(r["window"], r["partial"]) for r in rows] == wanted
    assert all(0 < float(r["label_error"]) < 100 and r["updates"] == "4" for r in rows) and "after 4 updates" in out
    assert is_picture(folder / "curves.png")
    assert launched("endless_ctc", *arguments).code == 0 and table(folder / "table.csv") == rows


def test_label_error_is_edits_per_label():
    seen = rnn.losses.utterances([[1, 2], [3], [1]], [3, 2, 4])
    seen = jax.tree.map(lambda a: a[:8, None], seen)  # the last utterance is cut off and does not count
    read = np.array([1, -1, 2, -1, -1, 1, 1, 1])[:, None]
    assert endless_ctc.label_error(read, seen) == 1 / 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--windows", "8/0/8"], "--windows takes reach/emit/lookahead in frames, e.g. 32/32/32, got '8/0/8'"),
        (["--windows", "8/8"], "got '8/8'"),
        (["--windows", "0/100/0", "--frames", "99"], "--frames is 99, shorter than the window 0/100/0"),
        (["--updates", "0"], "must be at least 1"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, tmp_path):
    complains(launched("endless_ctc", *arguments, "--run", tmp_path / "run"), complaint)
