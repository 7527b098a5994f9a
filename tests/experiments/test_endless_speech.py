"""CTC without end on speech, in little: what is read and when, results, going on, what it says to bad arguments."""

import itertools
import json

import numpy as np
import pytest

import jaxrnn as rnn
from experiments import endless_speech, streaming
from experiments.datasets import espeak
from tests.experiments.program import complains, is_picture, launched

SMALL = "--size 4 --steps 3 --streams 4 --tokens 64 --window 2/4/2 --pause 0.06 --width 2 --scan lax.scan".split()


def tones(count=24 * 12, bands=4):
    """Utterances of three or four tones of 60 ms, each a phoneme of its own."""
    rng = np.random.default_rng(0)
    phonemes = [rng.integers(1, 4, rng.integers(3, 5)).astype(np.int32) for _ in range(count)]
    alignment = [np.repeat(z, 6) for z in phonemes]
    frames = [np.eye(bands, dtype=np.float32)[a] for a in alignment]
    voices = np.arange(count, dtype=np.int32) % len(espeak.VOICES)
    return espeak.Corpus(frames, phonemes, alignment, voices, ["la"] * count, ("_", "a", "b", "c"), espeak.VOICES)


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch):
    monkeypatch.setattr(espeak, "utterances", lambda count: tones())


@pytest.mark.slow
def test_both_nets_are_trained_and_compared_and_a_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    code, out, err = launched("endless_speech", *SMALL, "--run", folder)
    assert code == 0, err
    assert "scratch memory" in out and "a stream's errors" in out
    results = json.loads((folder / "results.json").read_text())
    assert all(0 < results[way][part]["error"] < 3 for way in endless_speech.WAYS for part in ("sentences", "voices"))
    assert set(results["stream over whole"]) == {"sentences", "voices"}
    assert all(is_picture(folder / f"{name}.png") for name in ("stream", "delays", "curve"))
    metrics = (folder / "stream" / "metrics.jsonl").read_text()
    assert launched("endless_speech", *SMALL, "--run", folder).code == 0
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "stream" / "metrics.jsonl").read_text() == metrics


def test_what_is_written_down_and_when():
    corpus = tones(9)
    data = streaming.prepared(corpus, 0.06, np.zeros(4), np.ones(4))
    assert data.steps.sum() == len(data.xs) and data.xs.shape[1] == 3 * 4
    for alignment, spoken in zip(corpus.alignment, data.spoken, strict=True):
        runs = [(k, len(list(run))) for k, run in itertools.groupby(alignment.tolist())]
        assert [k for k, _ in spoken] == [k for k, _ in runs]
        ends = np.cumsum([n for _, n in runs])
        assert np.allclose([end for _, end in spoken], 0.01 * ends + 0.0075), (
            "half a window before the next frame's middle"
        )
    net = rnn.lift(lambda x: x)
    test = streaming.Test(net, data, piece=4, width=4, lag=3, streams=2)
    logits = test.logits((), told=False)
    assert np.array_equal(logits, test.xs), "the pieces are the whole"
    perfect = [[(k, end + 0.1) for k, end in stream] for stream in test.spoken]
    assert np.allclose(test.delays(perfect), 0.1)
    assert test.error([[(k, 0.0) for k in said] for said in test.said]) == 0
    assert test.error([[] for _ in test.said]) == 1
    sure = np.full((len(test.xs), 2, 4), -20.0)
    sure[:, :, 0] = 0
    for b, (said, n) in enumerate(zip(test.said, test.lengths, strict=True)):
        at = np.linspace(0, n - 2, len(said)).astype(int)
        sure[at, b, said], sure[at, b, 0] = 0, -20
    for decode in (test.greedily, test.by_beams):
        read = decode(sure)
        assert test.error(read) == 0
        assert all(
            streaming.known(0) <= when <= streaming.known(n)
            for r, n in zip(read, test.lengths, strict=True)
            for _, when in r
        )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--window", "8/0/8"], "--window takes reach/emit/lookahead in frames"),
        (["--steps", "0"], "must ask for at least one step"),
        (["--scan", "lax.skan"], "is not understood"),
        (["--size", "0"], "size must be a whole number of at least 1"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, complaint, tmp_path):
    complains(launched("endless_speech", *arguments, "--run", tmp_path / "run"), complaint)
