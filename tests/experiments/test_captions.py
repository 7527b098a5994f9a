"""Captions in little: trained, said, written, gone on from; how captions are judged; bad arguments."""

import json

import numpy as np
import pytest

import jaxrnn as rnn
from experiments import captions, harness, naming
from experiments.datasets.emoji import Emoji, Split
from tests.experiments.program import complains, is_picture, launched, table

SMALL = "--size 8 --embedding 8 --batch 8 --width 2 --steps 3 --save-every 2".split()
COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
PLACES = {"above": (0, 8), "left": (8, 0), "middle": (8, 8), "below": (16, 8)}


def squares(names):
    pictures = np.full((len(names), 32, 32, 3), 0.5, np.float32)
    for picture, name in zip(pictures, names, strict=True):
        color, place = name.split(" square: ")
        y, x = PLACES[place]
        picture[y : y + 16, x : x + 16] = COLORS[color]
    return Emoji(list(names), list(names), pictures)


@pytest.fixture
def cut_down(monkeypatch):
    names = [f"{color} square: {place}" for color in COLORS for place in PLACES]
    parts = Split(squares(names[:8]), squares(names[8:10]), squares(names[6:12:3]), squares(names[11:]))
    monkeypatch.setattr(captions, "emoji", lambda size: parts)
    monkeypatch.setattr(captions, "READ", 2)


@pytest.mark.slow
def test_trains_speaks_writes_and_goes_on(tmp_path, cut_down, monkeypatch):
    folder = tmp_path / "run"
    code, out, err = launched("captions", *SMALL, "--run", folder)
    assert code == 0, err
    assert "scratch memory of one gradient" in out and "nearest picture" in out
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {f"{m}, unseen {p}" for m in ("nearest picture", "net") for p in ("combinations", "bases")}
    assert all(0 <= r["bleu"] <= 100 and 0 <= r["exact"] <= 1 for r in results.values())
    said = table(folder / "captions.csv")
    assert [row["part"] for row in said] == ["combinations"] * 2 + ["bases"]
    assert said[0]["name"] == said[0]["nearest"] == "green square: middle"  # it is in the training part here
    assert all(is_picture(folder / name) for name in ("captions.png", "attention.png", "curve.png"))
    monkeypatch.setattr(harness, "picture", lambda *_, **__: None)  # they are there
    assert launched("captions", *SMALL, "--run", folder).code == 0
    assert json.loads((folder / "results.json").read_text()) == results


def test_words_and_figures_of_captions():
    name = "man: medium-light skin tone, red hair"
    parts = naming.words(name)
    assert parts == ["man", ":", "medium-light", "skin", "tone", ",", "red", "hair"] and naming.said(parts) == name
    other = "woman: medium-light skin tone, bald"
    assert naming.figures([name, other], [name, other]) == {"bleu": pytest.approx(100), "exact": 1, "skin_tones": 1}
    assert naming.figures([other, "tree"], [name, "oak tree"])["skin_tones"] == 1
    wrong = naming.figures(["man: dark skin tone, red hair", "tree"], [name, "tree"])
    assert wrong["exact"] == 0.5 and wrong["skin_tones"] == 0 and wrong["bleu"] < 100


@pytest.mark.slow
def test_any_scan_trains_the_same_net(tmp_path, cut_down, monkeypatch):
    monkeypatch.setattr(harness, "picture", lambda *_, **__: None)
    losses = []
    for i, way in enumerate((["--scan", "fissioned"], ["--scan", "lax.scan"], ["--memory", "8MiB"])):
        code, _, err = launched("captions", *SMALL, *way, "--run", tmp_path / f"{i}")
        assert code == 0, err
        losses.append([r["loss"] for r in rnn.training.read_metrics(tmp_path / f"{i}") if "loss" in r])
    assert losses[0] and losses[1:] == [pytest.approx(losses[0], rel=1e-4)] * 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "0"], "size must be a whole number of at least 1, got 0"),
        (["--dropout", "1.5"], "rate is the share that is dropped"),
        (["--batch", "100"], "make them smaller"),
        (["--steps", "0"], "must ask for at least one step, got 0"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, tmp_path, cut_down):
    complains(launched("captions", *SMALL, *arguments, "--run", tmp_path / "run"), complaint)
