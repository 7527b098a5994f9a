"""Reading voices, in little: both ways to learn, what is read, going on, what it says to bad arguments."""

import csv
import itertools
import json
import math

import numpy as np
import pytest

from experiments import reading, voices
from experiments.datasets import asterisk, espeak
from tests.experiments.program import complains, is_picture, launched

SMALL = "--size 4 --steps 2 --tokens 512 --folds 2 --width 2 --scan lax.scan".split()
WORDS = ("press one", "press two", "the number is", "hold on", "goodbye", "please try again", "no", "thank you")


def made(count, high):
    del high
    rng = np.random.default_rng(0)
    texts = [WORDS[i % len(WORDS)] for i in range(16)]
    frames = [rng.normal(-15, 3, (6 * len(text), 40)).astype(np.float32) for text in texts]
    return espeak.Corpus(frames, [], [], np.zeros(16, np.int32), texts, (), ())


def recorded(longest):
    del longest
    rng = np.random.default_rng(1)
    texts = [f"{a} {b}" for a, b in itertools.product(WORDS[:5], WORDS[4:])]
    return [asterisk.Recording(t, t, rng.normal(0, 0.1, 8000).astype(np.float32)) for t in texts]


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(espeak, "utterances", made)
    monkeypatch.setattr(asterisk, "recordings", recorded)


@pytest.mark.slow
def test_every_prompt_is_read_once_and_a_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    code, out, err = launched("voices", *SMALL, "--run", folder)
    assert code == 0, err
    assert "scratch memory" in out and "from scratch" in out
    results = json.loads((folder / "results.json").read_text())
    assert len(results) == 4 and all(
        0 < r["characters"] and len(r["characters by fold"]) == 2 for r in results.values()
    )
    with (folder / "readings.csv").open() as file:
        rows = list(csv.DictReader(file))
    tested = [p.name for p in recorded(8.0) if asterisk.part(p.text) != voices.DEVELOP]
    assert sorted(r["name"] for r in rows) == sorted(tested)
    assert all(asterisk.part(r["said"]) % 2 == int(r["fold"]) for r in rows)
    assert is_picture(folder / "spectrogram.png") and is_picture(folder / "curve.png")
    assert launched("voices", *SMALL, "--run", folder).code == 0
    assert json.loads((folder / "results.json").read_text()) == results


def test_letters_are_a_distribution_that_prefers_what_it_has_seen():
    letters = reading.Letters(["press one", "press two"], order=3)
    for before in ("", "p", "pre", "zzz", "s t"):
        p = [math.exp(letters(before, k)[1]) for k in range(1, reading.CLASSES)]
        assert sum(p) == pytest.approx(1) and min(p) > 0
    best = max(range(1, reading.CLASSES), key=lambda k: letters("pre", k)[1])
    assert asterisk.SYMBOLS[best - 1] == "s" and letters("pre", best)[0] == "res"


def test_what_is_read_off_logits():
    path = [0, 3, 3, 0, 1, 1, 0, 1, 4, 4, 0, 4]  # the blank, a, two blanks between words, b, b
    logits = np.where(np.arange(reading.CLASSES) == np.array(path)[:, None], 0.0, -30.0)
    assert reading.greedily(logits) == "a bb" == reading.spelt([3, 1, 1, 4, 4])
    reader = reading.Reader.__new__(reading.Reader)
    reader.width = 4
    assert reader.by_beams(logits, letters=reading.Letters(["a bb"]), weight=0.1) == "a bb"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--folds", "1"], "--folds must be 2 to 5, got 1"),
        (["--size", "0"], "size must be a whole number of at least 1"),
        (["--steps", "0"], "must ask for at least one step"),
        (["--dropout", "2"], "rate is the share that is dropped"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, tmp_path):
    complains(launched("voices", *arguments, "--run", tmp_path / "run"), complaint)
