"""Entities: a few steps on made-up sentences, going on, what taggers are judged by, bad arguments."""

import json

import numpy as np
import pytest

from experiments import entities, taggers
from experiments.datasets import hironsan
from tests.experiments.program import complains, is_picture, launched, table

SMALL = "--steps 3 --seeds 1 --size 4 --tokens 60".split()


def made_up():
    """Twenty sentences of three to eight words; every c after a b is a LOC, b too."""
    rng, found = np.random.default_rng(0), []
    for n in rng.integers(3, 9, 20):
        words = [*rng.choice(list("abcde"), n), "b", "c"]
        tags = ["O"] * len(words)
        for t in range(1, len(words)):
            if words[t - 1 : t + 1] == ["b", "c"]:
                tags[t - 1 : t + 1] = ["B-LOC", "I-LOC"]
        columns = tuple(("s", *"pqrstu") for _ in words)
        found.append(hironsan.Sentence(tuple(map(str, words)), columns, tuple(tags)))
    return found


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(hironsan, "sentences", made_up)
    monkeypatch.setattr(entities, "FOLDS", 2)


@pytest.mark.slow
def test_nets_and_baselines_are_judged(small, tmp_path):
    pytest.importorskip("pycrfsuite")
    arguments = [*SMALL, "--run", tmp_path / "run"]
    code, out, err = launched("entities", *arguments)
    assert code == 0, err
    rows = table(tmp_path / "run" / "table.csv")
    models = [*taggers.NAMES, *entities.NETS]
    assert [(r["model"], r["fold"]) for r in rows] == [(m, k) for m in models for k in "01"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results) == models and results["linear CRF"]["f1"] > max(0.8, results["word"]["f1"])
    assert "scratch memory" in out and is_picture(tmp_path / "run" / "entities.png")
    found = (tmp_path / "run" / "found.txt").read_text()
    assert found.count("is    ") == 20 and "[LOC bc]" in found


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_figures(small, tmp_path):
    pytest.importorskip("pycrfsuite")
    arguments = [*SMALL, "--run", tmp_path / "run"]
    assert launched("entities", *arguments).code == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # the last net was not done
    assert launched("entities", *arguments).code == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_spans_confusions_and_marks():
    true = [["B-LOC", "I-LOC", "O", "B-PSN"], ["O", "B-DAT"]]
    found = [["B-LOC", "I-LOC", "O", "B-LOC"], ["B-DAT", "I-DAT"]]
    assert taggers.spans(true[0]) == {(0, 1): "LOC", (3, 3): "PSN"}
    counts, kinds = taggers.confusions(true, found)
    assert kinds == ["DAT", "LOC", "PSN", "none"]
    assert counts.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert taggers.marked(["a", "b", "c", "d"], true[0]) == "[LOC ab]c[PSN d]"


def test_most_frequent_tags_by_hand():
    columns = tuple(("s", *"pqrstu") for _ in range(3))
    train = [hironsan.Sentence(("a", "b", "a"), columns, ("B-LOC", "O", "B-LOC"))]
    test = [hironsan.Sentence(("b", "a", "z"), columns, ("O",) * 3)]
    assert taggers.tagged("word", train, test) == [["O", "B-LOC", "O"]]
    assert taggers.tagged("word, else speech", train, test) == [["O", "B-LOC", "B-LOC"]]


def test_words_as_numbers():
    numbers = hironsan.Numbers(made_up())
    numbers.word |= {"ab": 90, "bd": 91}
    sentence = hironsan.Sentence(("ab", "bd", "d"), (("s", *"pqrstu"),) * 3, ("B-LOC", "O", "O"))
    ((rows, tags),) = numbers.of([sentence], {"bd"})
    assert rows.shape == (3, 5 + hironsan.COLUMNS) and [numbers.tags[k] for k in tags] == ["B-LOC", "O", "O"]
    unknown, nothing, b, d = hironsan.UNKNOWN, hironsan.NOTHING, *(numbers.character[c] for c in "bd")
    assert rows[0, :5].tolist() == [unknown, unknown, b, unknown, b]
    assert rows[1, :5].tolist() == [91, b, d, b, d]
    assert rows[2, :5].tolist() == [unknown, d, nothing, nothing, d]  # a character of a known word is no known word


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--dropout", "1.5"], "rate is the share that is dropped"),
        (["--scan", "lax.skan"], "scan 'lax.skan' is not understood"),
        (["--steps", "0"], "must ask for at least one step"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, small, tmp_path):
    complains(launched("entities", *arguments, "--run", tmp_path / "run"), complaint)
