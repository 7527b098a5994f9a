"""Log-mel frames against closed forms, and the speech of eSpeak NG: what is pinned of it, and that it fits itself."""

import hashlib

import numpy as np
import pytest

from experiments.datasets import espeak, sound
from experiments.datasets.packages import Missing
from tests.experiments.program import held

CLAUSES = "11eadb220051e669bb95ddb62e81b0063383555824ac6789b4e7ff2ca3739444"  # of the first 3,000, a line each


def tone(frequency, rate, seconds=0.5, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8000, 22050])
def test_a_tone_is_in_its_band_and_as_strong_at_any_rate(rate):
    energies = np.exp(sound.log_mel(tone(1000, rate), rate, bands=30, high=4000.0))
    centres = np.linspace(*(2595 * np.log10(1 + np.array([60, 4000]) / 700)), 32)[1:-1]
    nearest = int(np.argmin(np.abs(centres - 2595 * np.log10(1 + 1000 / 700))))
    assert (energies.argmax(axis=1) == nearest).all() and len(energies) == 48
    assert energies[:, nearest] == pytest.approx(np.full(48, 5.4e-4), rel=0.25)  # the same at both rates


def test_white_noise_has_its_power_per_hertz_in_every_band():
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000 * 4)
    mean = np.exp(sound.log_mel(noise, 16_000)).mean(axis=0)
    assert mean == pytest.approx(np.full(40, 0.01 / 16_000), rel=0.15)


def test_samples_of_16_bits_are_the_same_sound_and_frames_lie_at_their_centres():
    rate, click = 22_050, np.zeros(22_050)
    click[11_025] = 0.9
    frames = sound.log_mel(click, rate)
    heard = np.flatnonzero(frames[:, 10] > frames[:, 10].max() - 3)
    assert sound.centres(len(frames))[heard].mean() == pytest.approx(0.5, abs=0.006)
    assert np.abs(frames - sound.log_mel(np.round(click * 2**15).astype(np.int16), rate)).max() < 1e-3
    assert sound.log_mel(np.zeros(3), rate).shape == (1, 40)
    with pytest.raises(ValueError, match="do not fit a rate of 8000"):
        sound.log_mel(click, 8000)


def had(make):
    return held(make)


@pytest.mark.slow
def test_the_clauses_are_those_that_were_written_for():
    texts = had(lambda: espeak.clauses(3000))
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == CLAUSES
    assert len(set(texts)) == 3000 and espeak.clauses(10) == texts[:10]
    with pytest.raises(ValueError, match="there are 67,984, got count=1000000"):
        espeak.clauses(10**6)


@pytest.mark.slow
def test_what_is_said_is_where_the_sound_is(tmp_path, monkeypatch):
    monkeypatch.setattr(espeak, "cache", lambda: tmp_path)  # where the corpus is kept
    corpus = had(lambda: espeak.utterances(56))
    (file,) = tmp_path.iterdir()
    made = file.stat().st_mtime_ns
    again = espeak.utterances(56)
    assert file.stat().st_mtime_ns == made and [*tmp_path.iterdir()] == [file]
    assert again.text == corpus.text and all(map(np.array_equal, again.frames, corpus.frames))
    assert len(set(corpus.voice.tolist())) == 28 and corpus.labels[0] == "_"
    silent, hissing, voiced = [], [], []
    for xs, phonemes, alignment in zip(corpus.frames, corpus.phonemes, corpus.alignment, strict=True):
        assert len(xs) == len(alignment) and xs.shape[1] == 40 and (phonemes > 0).all()
        runs = alignment[np.append(True, np.diff(alignment) != 0)]
        spoken = phonemes[np.append(True, np.diff(phonemes) != 0)]
        assert abs(len(runs[runs > 0]) - len(spoken)) <= 2  # a frame may jump over a short one
        names = np.array(corpus.labels)[alignment]
        silent += xs[names == "_"].tolist()
        hissing += xs[names == "s"].tolist()
        voiced += xs[names == "i:"].tolist()
    low, high = slice(0, 10), slice(30, 40)
    silent, hissing, voiced = (np.mean(part, axis=0) for part in (silent, hissing, voiced))
    assert hissing[high].mean() > voiced[high].mean() + 1 and voiced[low].mean() > hissing[low].mean() + 1
    assert silent[low].mean() < voiced[low].mean() - 2
    file.write_bytes(file.read_bytes()[:1000])  # damaged: it is made anew
    assert espeak.utterances(56).text == corpus.text and file.stat().st_size > 1000


def test_the_split_holds_out_sentences_and_voices():
    count = 3000
    nothing = [np.zeros(0)] * count
    voice = np.arange(count, dtype=np.int32) % 28
    texts = [str(i) for i in range(count)]
    parts = espeak.split(espeak.Corpus(nothing, nothing, nothing, voice, texts, ("_",), espeak.VOICES))
    assert {name: len(part.text) for name, part in parts.items()} == {
        "train": 2092,
        "develop": 168,
        "sentences": 312,
        "voices": 428,
    }
    assert sorted(text for part in parts.values() for text in part.text) == sorted(texts)
    heard = {name: {espeak.VOICES[v] for v in part.voice} for name, part in parts.items()}
    assert heard["train"] == heard["develop"] == heard["sentences"] == set(espeak.VOICES) - set(espeak.UNSEEN)
    assert heard["voices"] == set(espeak.UNSEEN)


def test_a_platform_without_a_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(espeak.platform, "machine", lambda: "abacus")
    espeak._library.cache_clear()
    with pytest.raises(Missing, match="not known for .* on abacus"):
        espeak.speak("one", "f1")
    espeak._library.cache_clear()
