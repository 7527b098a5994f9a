"""Phonemes of synthetic speech: does it help to hear the end first? Frame by frame, and without any alignment (CTC).

The speech is eSpeak NG's (see datasets/espeak.py), which says where each phoneme begins. For each of two tasks an LSTM
that reads forwards and one that reads both ways, with the same number of parameters, are trained and asked about
sentences that were not heard, by voices that were and by voices that were not:

    frames   the phoneme of every frame, beside a perceptron that sees five frames (scikit-learn's)
    ctc      the sequence of phonemes, trained without their places; the error is edits per phoneme (jiwer's)

    python -m experiments.speech
    python -m experiments.speech --task ctc --minutes 20 --run runs/speech_longer

Writes results.json, confusion.png (which phonemes are taken for which) and spectrogram.png (one utterance, with the
phonemes that were said and those that each net reads), and a folder per net. Started again it goes on.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jiwer
import numpy as np
from rich.console import Console

import jaxrnn as rnn
from experiments import harness, hearing, training
from experiments.datasets import espeak, sound

Task = Literal["frames", "ctc"]
Heard = dict[str, list[np.ndarray]]  # test -> [n, classes] of each utterance
PER_MINUTE = {"frames": 225, "ctc": 400}  # steps of each of the two nets of a task, in a minute for both
NETS = ("both ways", "forwards")
TESTS = {"sentences": "unseen sentences", "voices": "unseen voices"}


@dataclasses.dataclass(frozen=True)
class Config(training.Settings):
    minutes: float = 2.0  # Of training each task, on two cores as the README's were: it sets how many steps are done.
    learning_rate: float = 6e-3  # Adam's peak rate, after a warm-up and before a cosine decay.
    task: tuple[Task, ...] = ("frames", "ctc")  # What to learn.
    size: int = 128  # Units of each of the two LSTMs that read both ways; the single one gets as many as it takes.
    utterances: int = 3000  # How many are made, some 1.4 seconds each.
    tokens: int = 4096  # Frames in a batch, padding included.
    noise: float = 0.1  # What is added to every input in training, in standard deviations of its band.
    dropout: float = 0.1  # Share of the LSTM's outputs that are dropped in training.
    stride: int = 2  # Frames that are one step for CTC.
    baseline: int = 5  # Passes over all frames in which the perceptron is trained.
    width: int = 8  # Prefixes that the beam search for CTC keeps.
    run: str = "runs/speech"  # Run folder.


def model(config: Config, task: Task, both: bool, bands: int, classes: int) -> rnn.SequenceLayer:
    """Frames [T, *B, bands] -> logits [T, *B, classes], or every `stride` frames; sizes for equally many parameters."""
    inputs = bands * (config.stride if task == "ctc" else 1)
    count = lambda n, size: n * 4 * size * (inputs + size + 1) + (n * size + 1) * classes
    wanted = count(2, config.size)
    size = min(range(1, 3 * config.size), key=lambda size: abs(count(1, size) - wanted))
    reader = rnn.bidirectional(rnn.lstm(config.size), rnn.lstm(config.size)) if both else rnn.lstm(size)
    parts = [rnn.sequence.every(config.stride)] if task == "ctc" else []
    readout = rnn.dropout(rnn.layer(nn.Dense(classes)), config.dropout, on="input")
    return rnn.chain(*parts, reader, readout)


class Data(NamedTuple):
    parts: dict[str, espeak.Corpus]  # train, develop and TESTS, each band with mean 0 and deviation 1 in training
    labels: tuple[str, ...]
    bounds: list[int]  # lengths to pad to, the same for all parts
    as_heard: list[np.ndarray]  # the frames of "sentences" as they came


def data_of(config: Config) -> Data:
    corpus = espeak.utterances(config.utterances)
    parts = espeak.split(corpus)
    mean, deviation = sound.spread(parts["train"].frames)
    scaled = lambda part: part._replace(frames=[(xs - mean) / deviation for xs in part.frames])
    shares = np.quantile([len(xs) for xs in corpus.frames], (0.6, 0.93, 1))  # three shapes that need little padding
    bounds = sorted(set(shares.astype(int).tolist()))
    return Data({k: scaled(v) for k, v in parts.items()}, corpus.labels, bounds, parts["sentences"].frames)


def batches_of(config: Config, corpus: espeak.Corpus, bounds: list[int]) -> rnn.training.Bucketed:
    phonemes, counts = rnn.sequence.pad(corpus.phonemes)
    fields = {"frames": corpus.frames, "alignment": corpus.alignment, "phonemes": phonemes.T, "count": counts}
    return rnn.training.Bucketed(fields, tokens=config.tokens, bounds=bounds, seed=config.seed)


def loss_fn(net: rnn.SequenceLayer, task: Task, noise: float, scan: rnn.Scan, params: Any, batch: Any, key: Any) -> Any:
    """Mean nats per frame; or per phoneme, where CTC's forward variables are the state of one more cell."""
    k_noise, key = jax.random.split(key)
    xs, lengths = batch["frames"]
    xs = xs + noise * jax.random.normal(k_noise, xs.shape)
    if task == "frames":
        _, logits = rnn.unroll(net, params, xs, lengths=lengths, key=key, scan=scan)
        return rnn.cross_entropy(logits, batch["alignment"].xs, lengths=lengths)
    whole = rnn.chain(net, rnn.losses.ctc(batch["phonemes"], label_lengths=batch["count"]))
    states, _ = rnn.unroll(whole, (params, ()), xs, lengths=lengths, key=key, scan=scan, outputs="none")
    nats = rnn.losses.ctc_nll(states[-1], batch["count"])
    nats = jnp.where(jnp.isinf(nats), 0, nats)  # inf: too few frames for so many phonemes
    return jnp.sum(nats) / jnp.sum(batch["count"]).astype(nats.dtype)


def wrong(task: Task, corpus: espeak.Corpus, logits: list[np.ndarray], read: Any = hearing.greedily) -> float:
    """The share of frames that are taken for another phoneme; or CTC's edits per phoneme."""
    if task == "frames":
        right = [x.argmax(axis=1) == k for x, k in zip(logits, corpus.alignment, strict=True)]
        return float(1 - np.concatenate(right).mean())
    words = lambda sequences: [" ".join(map(str, each)) for each in sequences]
    return float(jiwer.wer(words(corpus.phonemes), words(read(logits))))


def by_voice(task: Task, corpus: espeak.Corpus, logits: list[np.ndarray]) -> dict[str, float]:
    members = {corpus.voices[v]: np.flatnonzero(corpus.voice == v) for v in sorted(set(corpus.voice.tolist()))}
    return {name: wrong(task, corpus.of(some), [logits[i] for i in some]) for name, some in members.items()}


def perceptron(config: Config, parts: dict[str, espeak.Corpus]) -> dict[str, float]:
    """Five frames, one hidden layer: the share of frames that it takes for another phoneme."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    beside = lambda xs: np.lib.stride_tricks.sliding_window_view(np.pad(xs, ((2, 2), (0, 0)), "edge"), 5, axis=0)
    seen = lambda corpus: np.concatenate([beside(xs).reshape(len(xs), -1) for xs in corpus.frames])
    net = MLPClassifier((256,), batch_size=256, max_iter=config.baseline, random_state=config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is stopped after so many passes
        net.fit(seen(parts["train"]), np.concatenate(parts["train"].alignment))
    return {name: float(1 - net.score(seen(parts[name]), np.concatenate(parts[name].alignment))) for name in TESTS}


def heard_by(config: Config, run: rnn.training.Run, data: Data, task: Task, name: str, console: Console) -> Heard:
    """Trains one net, in a folder of its own: its logits for the utterances of each test."""
    bands = data.as_heard[0].shape[1]
    net = model(config, task, name == "both ways", bands, len(data.labels))
    params, hear = net.init(jax.random.key(config.seed), jnp.zeros((1, bands))), hearing.compiled(net)
    loss = lambda scan: partial(loss_fn, net, task, config.noise, scan)
    batches = {part: batches_of(config, corpus, data.bounds) for part, corpus in data.parts.items()}
    first = lambda scan: lambda params: loss(scan)(params, batches["train"](0), jax.random.key(0))
    if name == NETS[0]:  # the other one needs about as much
        training.announce(console, config, f"{task}, {name}", first, params)
    error = lambda params: wrong(task, data.parts["develop"], hearing.logits_of(hear, params, batches["develop"]))
    steps = training.steps_of(config, PER_MINUTE[task])
    about = training.about(config, "speech", steps) | {"net": name}
    with rnn.training.Run(run.folder / f"{task} {name}".replace(" ", "_"), about) as own:
        figures = {"evaluate": lambda params: {"error": error(params)}, "evaluations": 8}
        best, scan = rnn.training.Best("error"), training.scan_of(config)
        params = training.trained(config, own, loss(scan), params, batches["train"], steps, best=best, **figures)
    return {test: hearing.logits_of(hear, params, batches[test]) for test in TESTS}


def draw(run: rnn.training.Run, data: Data, read: dict[str, list[np.ndarray]]) -> None:
    """Pictures of what the nets read in unseen sentences; the utterance is one of the longer ones."""
    corpus = data.parts["sentences"]
    if "frames, both ways" in read:
        draw_confusion = partial(hearing.draw_confusion, corpus, read["frames, both ways"])
        harness.picture(run.folder / "confusion.png", draw_confusion)
    i = int(np.argsort([len(xs) for xs in corpus.frames])[len(corpus.frames) * 3 // 4])
    draw_spectrogram = partial(hearing.draw_spectrogram, corpus, data.as_heard, read, i)
    harness.picture(run.folder / "spectrogram.png", draw_spectrogram)


def main(config: Config) -> None:
    console = harness.console()
    training.at_least(config, size=1, stride=1, baseline=1, width=1, noise=0)
    with harness.usage():
        data = data_of(config)
        batches_of(config, data.parts["train"], data.bounds)(0)
        for task, name in [(task, name) for task in config.task for name in NETS]:
            model(config, task, name == NETS[0], data.as_heard[0].shape[1], len(data.labels))
    counts = {part: len(corpus.text) for part, corpus in data.parts.items()}
    console.print(f"utterances: {counts}; {len(data.labels)} labels", highlight=False)
    heard, voices, rows = {}, {}, []
    with rnn.training.Run(config.run, training.about(config, "speech", 0)) as run:
        if "frames" in config.task:
            about = "frames, five at once (MLP)"
            (row,) = harness.records(run, [{"net": about}], lambda net: perceptron(config, data.parts), console)
            rows.append(row)
        for task, name in [(task, name) for task in config.task for name in NETS]:
            heard[net := f"{task}, {name}"] = each = heard_by(config, run, data, task, name, console)
            beams = {", beams": partial(hearing.by_beams, config.width)} if task == "ctc" else {}
            for way, read in ({"": hearing.greedily} | beams).items():
                errors = {test: wrong(task, data.parts[test], each[test], read) for test in TESTS}
                rows.append({"net": net + way} | errors)
            voices[net] = by_voice(task, data.parts["voices"], each["voices"])
        results = {row["net"]: {test: row[test] for test in TESTS} for row in rows}
        training.write_results(run, results | {"each unseen voice": voices})
        draw(run, data, {name: each["sentences"] for name, each in heard.items()})
    shown = [{"": row["net"]} | {about: f"{row[test]:.1%}" for test, about in TESTS.items()} for row in rows]
    harness.print_table(console, "frames or phonemes that are read wrongly", shown, left=[""])
    console.print(f"written: {run.folder / 'results.json'}, pictures beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
