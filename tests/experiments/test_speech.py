"""The experiment on speech: a few steps on made-up phonemes, its files, going on, what its parts compute."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from experiments import hearing, speech
from experiments.datasets import espeak
from experiments.datasets.packages import Missing
from tests.experiments.program import complains, is_picture, launched

TINY = "--size 6 --tokens 200 --utterances 280 --steps 4 --baseline 1 --width 2 --save-every 2".split()


def made_up(count=280, **_):
    """Four phonemes, each a band of its own for four frames; one in ten is shorter, so all have one bound."""
    rng = np.random.default_rng(0)
    phonemes = [rng.integers(1, 5, 2 if i % 10 == 0 else 3).astype(np.int32) for i in range(count)]
    alignment = [np.repeat(ks, 4) for ks in phonemes]
    frames = [np.eye(6)[ks] + 0.1 * rng.standard_normal((len(ks), 6)) for ks in alignment]
    voice = np.arange(count, dtype=np.int32) % len(espeak.VOICES)
    frames = [xs.astype(np.float32) for xs in frames]
    texts = [f"text {i}" for i in range(count)]
    return espeak.Corpus(frames, phonemes, alignment, voice, texts, ("_", "a", "b", "c", "d"), espeak.VOICES)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(speech.espeak, "utterances", made_up)


ROWS = {
    "frames": ["frames, five at once (MLP)", "frames, both ways", "frames, forwards"],
    "ctc": ["ctc, both ways", "ctc, both ways, beams", "ctc, forwards", "ctc, forwards, beams"],
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ROWS)
def test_speech_trains_reports_writes_and_goes_on(task, short, tmp_path):
    folder = tmp_path / "run"
    code, out, err = launched("speech", *TINY, "--task", task, "--run", folder)
    assert code == 0, err
    assert "scratch memory" in out and "unseen voices" in out
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == [*ROWS[task], "each unseen voice"]
    assert all(0 <= results[row][test] <= 1.5 for row in ROWS[task] for test in ("sentences", "voices"))
    assert set(results["each unseen voice"][f"{task}, forwards"]) == set(espeak.UNSEEN)
    assert (folder / "confusion.png").exists() == (task == "frames") and is_picture(folder / "spectrogram.png")
    (folder / f"{task}_both_ways" / "checkpoints" / "4").rename(tmp_path / "4")  # as if killed after the second step
    code, out, err = launched("speech", *TINY, "--task", task, "--run", folder)
    assert code == 0, err
    assert json.loads((folder / "results.json").read_text()) == results


def test_both_nets_of_a_task_have_as_many_parameters():
    config = speech.Config()
    for task in ("frames", "ctc"):
        sizes = []
        for both in (True, False):
            net = speech.model(config, task, both, 40, 67)
            params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 40)))
            sizes.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
        assert abs(sizes[0] - sizes[1]) < 0.01 * sizes[0]


def test_ctc_loss_is_that_of_the_logits():
    config = speech.Config(size=3, dropout=0.0, stride=1, tokens=200)
    net = speech.model(config, "ctc", True, 6, 5)
    params = net.init(jax.random.key(0), jnp.zeros((1, 6)))
    batch = speech.batches_of(config, made_up(20), [20])(0)
    got = jax.jit(partial(speech.loss_fn, net, "ctc", 0.0, rnn.scan))(params, batch, jax.random.key(1))
    of_one = jax.jit(lambda p, xs, z: rnn.losses.ctc_loss(rnn.unroll(net, p, xs)[1][:, None], z)[0])
    alone = []
    for i in range(len(batch["count"])):
        n = int(batch["frames"].lengths[i])
        labels = batch["phonemes"][i][: batch["count"][i]][None]
        alone.append(float(of_one(params, batch["frames"].xs[:n, i], labels)))
    assert float(got) == pytest.approx(sum(alone) / batch["count"].sum(), rel=1e-4)


def test_errors_are_counted_as_by_hand():
    corpus = made_up(2)._replace(
        phonemes=[np.array([1, 2, 3]), np.array([4])], alignment=[np.array([1, 1, 2, 3]), np.array([4, 4])]
    )
    logits = [np.eye(5)[[1, 0, 2, 2]], np.eye(5)[[4, 4]]]  # reads 1 2, and 4
    assert speech.wrong("ctc", corpus, logits) == pytest.approx(1 / 4)
    assert speech.wrong("frames", corpus, logits) == pytest.approx(2 / 6)
    sure = [10 * x for x in logits]
    assert hearing.by_beams(4, sure) == hearing.greedily(sure) == [[1, 2], [4]]


def test_bad_arguments_are_one_sentence(short, monkeypatch, tmp_path):
    complains(launched("speech", *TINY, "--run", tmp_path / "a", "--steps", 0), "at least one step")
    complains(launched("speech", *TINY, "--run", tmp_path / "b", "--scan", "lax.skan"), "is not understood")

    def nothing(*_, **__):
        raise Missing("espeakng-loader 0.2.4 cannot be had from PyPI: no network")

    monkeypatch.setattr(speech.espeak, "utterances", nothing)
    complains(launched("speech", *TINY, "--run", tmp_path / "c"), "cannot be had")
