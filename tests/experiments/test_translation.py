"""Spanish to English, in little: it trains, translates, goes on to the same bits; and the two baselines."""

import json

import numpy as np
import pytest

from experiments import lookups, translation
from experiments.datasets.bible import Verse
from tests.experiments.program import complains, is_picture, launched, table

TINY = "--size 6 --embedding 4 --pieces 48 --tokens 64 --width 2 --test 5 --dropout 0.1".split()
WORDS = {"dios": "God", "dijo": "said", "la": "the", "luz": "light", "tierra": "earth", "mar": "sea", "y": "and"}


def made_up(book, number, seed):
    """Verses of these words, with full stops, each translated word for word."""
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(list(WORDS), rng.integers(2, 6)) for _ in range(number)]
    return [
        Verse(book, 1, i, " ".join(words) + ".", " ".join(WORDS[w] for w in words) + ".")
        for i, words in enumerate(chosen, 1)
    ]


@pytest.fixture
def short(monkeypatch):
    parts = made_up("Gen", 60, 0), made_up("Ruth", 6, 1), made_up("Matt", 9, 2)
    monkeypatch.setattr(translation.bible, "split", lambda: parts)
    monkeypatch.setattr(translation, "BOUNDS", (32,))
    return parts


@pytest.mark.slow
def test_trains_translates_and_goes_on(short, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = [*TINY, "--steps", 4, "--save-every", 2]
    code, out, err = launched("translation", *arguments, "--run", whole)
    assert code == 0, err
    assert "scratch memory" in out and "word for word" in out
    results = json.loads((whole / "results.json").read_text())
    assert results["word for word"]["BLEU"] > 90 > results["gru 6, beam of 2"]["BLEU"] >= 0
    assert len(table(whole / "translations.csv")) == 5
    assert is_picture(whole / "curve.png") and is_picture(whole / "attention.png")

    evaluation, stopped = translation.evaluation, []

    def interrupted(*given):
        """The first time it is stopped, as by Ctrl-C, at the third evaluation."""
        evaluate = evaluation(*given)

        def evaluated(params):
            stopped.append(True)
            if len(stopped) == 3:
                raise KeyboardInterrupt
            return evaluate(params)

        return evaluated

    monkeypatch.setattr(translation, "evaluation", interrupted)
    assert launched("translation", *arguments, "--run", parts).code == 130 and not (parts / "results.json").exists()
    assert launched("translation", *arguments, "--run", parts).code == 0
    assert (parts / "results.json").read_text() == (whole / "results.json").read_text()
    assert (parts / "translations.csv").read_text() == (whole / "translations.csv").read_text()


def test_the_baselines(short):
    known, _, test = short
    words = lambda verse: sorted(verse.spanish.strip(".").split())
    alike = [next(v.english for v in known if words(v) == words(verse)) for verse in known[:20]]
    assert lookups.most_similar(known, known[:20]) == alike
    said = lookups.word_for_word(known, [Verse("Matt", 1, 1, "Dios dijo, la luz eterna.", "")])
    assert said == ["God said , the light eterna ."]
    assert translation.scores([v.english for v in test], test)["BLEU"] == pytest.approx(100)


def test_pieces_are_read_as_they_were_written():
    pieces = translation.Pieces([verse.english for verse in made_up("Gen", 60, 0)], 48)
    numbers = pieces.write("God said. the sea.", translation.END)
    assert numbers[-1] == translation.END and (numbers[:-1] > 0).all()
    assert pieces.read(numbers[:-1]) == "God said. the sea." and pieces.names(numbers)[-1] == "end"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "0"], "size must be a whole number of at least 1, got 0"),
        (["--pieces", "100000"], "--pieces: words cannot be put together from 100000 pieces; take fewer"),
        (["--smoothing", "1"], "--smoothing"),
        (["--tokens", "4"], "tokens must be a whole number of at least 32"),
        (["--test", "0"], "--test"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, short, tmp_path):
    complains(launched("translation", *TINY, *arguments, "--run", tmp_path / "run"), complaint)
