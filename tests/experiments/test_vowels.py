"""Vowels: a few steps on made-up utterances, going on, the distances by hand, bad arguments."""

import itertools
import json

import numpy as np

from experiments import training, vowels
from experiments.datasets import series
from tests.experiments.program import complains, is_picture, launched

SMALL = "--steps 4 --seeds 2 --size 4 --batch 5".split()


def made_up():
    rng = np.random.default_rng(0)

    def some(each):
        speaker = np.repeat(np.arange(9), each).astype(np.int32)
        frames = [(rng.normal(size=(rng.integers(7, 10), 12)) + s).astype(np.float32) for s in speaker]
        return series.Utterances(frames, speaker)

    return some(3), some(2)


def test_nets_vote_and_a_run_goes_on(monkeypatch, tmp_path):
    found = made_up()
    monkeypatch.setattr(series, "vowels", lambda: found)
    code, out, err = launched("vowels", *SMALL, "--run", tmp_path / "run")
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["nearest, stretched to 12 frames"] > 0.8 and len(results["seeds"]) == 2 and results["test"] == 18
    assert "the vote of 2" in results and "scratch memory" in out and is_picture(tmp_path / "run" / "vowels.png")
    monkeypatch.setattr(training, "announce", lambda *_: None)
    assert launched("vowels", *SMALL, "--run", tmp_path / "run").code == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_distances_are_the_least_of_all_ways():
    rng = np.random.default_rng(1)
    ones, others = ([rng.normal(size=(n, 2)).astype(np.float32) for n in lengths] for lengths in ((3, 2), (1, 4, 3)))

    def least(x, y, i=0, j=0):
        here = np.linalg.norm(x[i] - y[j])
        moves = [(i + a, j + b) for a, b in ((0, 1), (1, 0), (1, 1)) if i + a < len(x) and j + b < len(y)]
        return here + min((least(x, y, *move) for move in moves), default=0)

    wanted = [least(x, y) for x, y in itertools.product(ones, others)]
    np.testing.assert_allclose(vowels.distances(ones, others).ravel(), wanted, rtol=1e-5)


def test_stretching_keeps_the_ends():
    np.testing.assert_allclose(vowels.stretched(np.array([[0.0, 1], [2, 5]]), 3), [0, 1, 2, 1, 3, 5])


def test_bad_arguments_are_one_sentence(monkeypatch, tmp_path):
    found = made_up()
    monkeypatch.setattr(series, "vowels", lambda: found)
    tried = lambda *arguments: launched("vowels", *arguments, "--run", tmp_path / arguments[0])
    complains(tried("--seeds", 0), "--seeds and --batch must be at least 1")
    complains(tried("--batch", 30), "27 examples make no batch")
    complains(tried("--size", 0, "--batch", 5), "size must be a whole number of at least 1, got 0")
