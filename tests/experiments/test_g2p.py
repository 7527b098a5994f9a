"""Spelling to sound, in little: it trains, says every word, goes on to the same bits, and what errors are counted."""

import json

import numpy as np
import pytest

from experiments import g2p, letter_trees
from tests.experiments.program import complains, is_picture, launched, table

TINY = "--size 6 --embedding 4 --tokens 64 --width 2 --learning-rate 0.03".split()
SOUNDS = {"a": ("AH",), "b": ("B",), "c": ("K",), "x": ("K", "S"), "h": ()}  # what each letter speaks


def made_up(number, seed):
    """Words of these letters, each with what it speaks; the first has another way to say it."""
    rng = np.random.default_rng(seed)
    words = {"".join(rng.choice(list(SOUNDS), rng.integers(2, 7))) + "a": [] for _ in range(number)}
    found = {word: [tuple(p for letter in word for p in SOUNDS[letter])] for word in words}
    found[next(iter(found))].append(("B",))
    return found


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(g2p.cmudict, "split", lambda: (made_up(60, 0), made_up(8, 1), made_up(9, 2)))
    monkeypatch.setattr(g2p, "BOUNDS", (8,))


@pytest.mark.slow
def test_trains_says_and_goes_on(short, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = [*TINY, "--steps", 6, "--save-every", 3]
    code, out, err = launched("g2p", *arguments, "--run", whole)
    assert code == 0, err
    assert "scratch memory" in out and "decision tree" in out
    results = json.loads((whole / "results.json").read_text())
    assert results["decision tree over letters"] == {"phoneme_errors": 0.0, "word_errors": 0.0}  # it has no exceptions
    assert 0 < results["gru 6, beam of 2"]["phoneme_errors"] < 3
    rows = table(whole / "spoken.csv")
    assert [row["word"] for row in rows] == list(made_up(9, 2)) and rows[0]["right"].endswith(" / B")
    assert is_picture(whole / "curve.png") and is_picture(whole / "attention.png")

    fit, stopped = g2p.rnn.training.fit, []

    def interrupted(*given, evaluate, **options):
        """The first time it is stopped, as by Ctrl-C, after the checkpoint of step 3."""

        def evaluated(params):
            stopped.append(True)
            if len(stopped) == 4:
                raise KeyboardInterrupt
            return evaluate(params)

        return fit(*given, evaluate=evaluated, **options)

    monkeypatch.setattr(g2p.rnn.training, "fit", interrupted)
    assert launched("g2p", *arguments, "--run", parts).code == 130 and not (parts / "results.json").exists()
    assert launched("g2p", *arguments, "--run", parts).code == 0
    assert (parts / "spoken.csv").read_text() == (whole / "spoken.csv").read_text()
    assert (parts / "results.json").read_text() == (whole / "results.json").read_text()


def test_errors_are_counted_against_the_nearest_pronunciation():
    words = {"a": [("AH",), ("EY", "B")], "ab": [("AE", "B", "S")], "c": [("K",)]}
    found = g2p.judged(words)([("EY",), ("AE", "S", "S"), ("K",)])
    assert found == {"phoneme_errors": 2 / 5, "word_errors": 2 / 3}  # "a": one error of either; the first counts


def test_the_alignment_finds_what_each_letter_speaks():
    words = [(word, ways[0]) for word, ways in made_up(200, 3).items()]
    assert letter_trees.speak(words, ["xbhca", "hab"]) == [("K", "S", "B", "K", "AH"), ("AH", "B")]
    assert letter_trees.aligned("a", ("A", "B", "C"), {}) == []  # more than two phonemes a letter


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "0"], "size must be a whole number of at least 1, got 0"),
        (["--dropout", "2"], "rate is the share that is dropped"),
        (["--steps", "0"], "must ask for at least one step"),
        (["--tokens", "4"], "tokens must be a whole number of at least 8"),
        (["--scan", "lax.skan"], "is not understood"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, short, tmp_path):
    complains(launched("g2p", *TINY, *arguments, "--run", tmp_path / "run"), complaint)
