"""Sentiment in little: trained, compared, written, gone on from; what words move; bad arguments."""

import json

import numpy as np
import pytest

import jaxrnn as rnn
from experiments import harness, sentiment, word_counts
from experiments.datasets.snippets import Rated, Snippets
from experiments.judge import Judge, words
from tests.experiments.program import complains, is_picture, launched, table

SMALL = "--nets 2 --size 6 --embedding 6 --batch 8 --steps 8 --save-every 2 --others words".split()


def made_up(count, seed):
    rng, texts, ratings = np.random.default_rng(seed), [], []
    for _ in range(count):
        rating = float(rng.choice([-3, -1, 1, 3]))
        judged = ("good", "great", "fine") if rating > 0 else ("bad", "poor", "dull")
        texts.append(
            " ".join(["the film is", *rng.choice(judged, 2), *rng.choice(["and", "so", "it"], rng.integers(3, 8))])
        )
        ratings.append(rating)
    return Rated(texts, np.array(ratings, np.float32))


@pytest.fixture
def cut_down(monkeypatch):
    lexicon = Rated(["good", "bad", "dull"] * 4, np.array([2, -2, -1] * 4, np.float32))
    data = Snippets(made_up(60, 0), made_up(20, 1), made_up(30, 2), {"words": lexicon})
    monkeypatch.setattr(sentiment, "snippets", lambda: data)
    monkeypatch.setattr(word_counts, "judged_by_rules", lambda: lambda text: 1.0 if "good" in text else -1.0)
    monkeypatch.setattr(sentiment, "BOUNDS", (16,))
    return data


@pytest.mark.slow
def test_trains_compares_writes_and_goes_on(tmp_path, cut_down, monkeypatch):
    folder = tmp_path / "run"
    code, out, err = launched("sentiment", *SMALL, "--run", folder)
    assert code == 0, err
    assert "scratch memory of one gradient" in out and "naive Bayes, on the other texts too" in out
    results = json.loads((folder / "results.json").read_text())
    shares = results["accuracy"]
    assert shares["naive Bayes"] == 1  # it is that easy
    assert 0.4 < shares["VADER"] < 1 and {"net 1", "net 2", "all nets"} <= set(shares)
    against = results["all nets against naive Bayes"]
    assert against["only all nets right"] == 0
    assert against["only naive Bayes right"] == round(30 * (1 - shares["all nets"]))
    rows = table(folder / "judgements.csv")
    right = [(float(row["all nets"]) > 0) == (float(row["rating"]) > 0) for row in rows]
    assert len(rows) == 30 and np.mean(right) == pytest.approx(shares["all nets"])
    assert is_picture(folder / "accuracy.png") and is_picture(folder / "words.png")
    monkeypatch.setattr(harness, "picture", lambda *_, **__: None)  # they are there
    assert launched("sentiment", *SMALL, "--run", folder).code == 0
    assert json.loads((folder / "results.json").read_text()) == results


def test_what_words_move_adds_up_to_a_change_of_the_judgement(cut_down, lenient):
    """To first order: with all features by a part larger, the judgement moves by that part of the sum of the moves."""
    judge = Judge(cut_down.train.texts, size=5, embedding=7, dropout=0.3, skip=0.1, slope=1.5)
    params, part = judge.init(0), 0.01
    text = cut_down.test.texts[0]
    larger = {**params, "words": {"Embed_0": {"embedding": params["words"]["Embed_0"]["embedding"] * (1 + part)}}}
    smaller = {**params, "words": {"Embed_0": {"embedding": params["words"]["Embed_0"]["embedding"] * (1 - part)}}}
    change = (judge.of(larger, [text]) - judge.of(smaller, [text]))[0] / (2 * part)
    assert judge.moves(params, text).shape == (len(words(text)),)
    assert judge.moves(params, text).sum() == pytest.approx(change, rel=2e-2, abs=1e-4)


@pytest.mark.slow
def test_any_scan_trains_the_same_net(tmp_path, cut_down, monkeypatch):
    monkeypatch.setattr(harness, "picture", lambda *_, **__: None)
    losses = []
    for i, way in enumerate((["--scan", "fissioned"], ["--scan", "lax.scan"], ["--memory", "8MiB"])):
        code, _, err = launched("sentiment", *SMALL, *way, "--run", tmp_path / f"{i}")
        assert code == 0, err
        losses.append([r["loss"] for r in rnn.training.read_metrics(tmp_path / f"{i}" / "net-1") if "loss" in r])
    assert losses[0] and losses[1:] == [pytest.approx(losses[0], rel=1e-4)] * 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nets", "0"], "--nets must be at least 1, got 0"),
        (["--size", "0"], "size must be a whole number of at least 1, got 0"),
        (["--batch", "1000"], "make them smaller"),
        (["--steps", "0"], "must ask for at least one step, got 0"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, tmp_path, cut_down):
    complains(launched("sentiment", *SMALL, *arguments, "--run", tmp_path / "run"), complaint)
