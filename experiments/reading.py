"""Speech as characters: examples for a net, what it reads, and a small language model to read with."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jiwer
import numpy as np

import jaxrnn as rnn
from experiments.datasets import asterisk, sound

STACK, HIGH = 3, 3800.0  # frames of 10 ms side by side are one step; hertz, what a telephone lets through
SILENCE, FLOOR = math.log(1e-12), math.log(1e-10)  # of the sound's energies; what is weaker than the floor is silence
CLASSES = len(asterisk.SYMBOLS) + 1  # the blank is 0


def bounds(data: dict[str, Any]) -> list[int]:
    """Numbers of steps to pad to: of few shapes, for each is compiled."""
    longest = max(map(len, data["xs"]))
    return [*(n for n in (48, 100) if n < longest), longest]


def examples(
    frames: Sequence[np.ndarray], texts: Sequence[str], like: Sequence[np.ndarray], pause: int
) -> dict[str, Any]:
    """Fields of a `Bucketed`: steps of three frames, scaled as those of `like` are spread, and what is said in them.

    pause: how many frames of silence are put on each side.
    """
    mean, spread = sound.spread([np.logaddexp(x, FLOOR) for x in like])
    steps = []
    for x in frames:
        x = np.pad(x, ((pause, pause + -(len(x) + 2 * pause) % STACK), (0, 0)), constant_values=SILENCE)
        steps.append(((np.logaddexp(x, FLOOR) - mean) / spread).reshape(-1, STACK * x.shape[1]).astype(np.float32))
    labels = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = [asterisk.SYMBOLS.index(c) + 1 for c in text]
    return {"xs": steps, "labels": labels, "count": np.array([len(text) for text in texts], np.int32)}


class Letters:
    """p(c | what is before) by up to `order` characters, each length mixed with the next shorter.

    Witten and Bell 1991. A language model for `PrefixBeams`; its state is the last characters.
    """

    def __init__(self, texts: Sequence[str], order: int = 5) -> None:
        self.order, self.counts = order, defaultdict(Counter)
        for text in texts:
            for i, c in enumerate(text):
                for n in range(min(i, order) + 1):
                    self.counts[text[i - n : i]][c] += 1

    def __call__(self, before: str, label: int) -> tuple[str, float]:
        c = asterisk.SYMBOLS[label - 1]
        p = 1 / len(asterisk.SYMBOLS)
        for n in range(len(before) + 1):
            found = self.counts.get(before[len(before) - n :])
            if not found:
                break
            p = (found[c] + len(found) * p) / (found.total() + len(found))
        return (before + c)[-self.order :], math.log(p)


class Reader:
    """What a net reads of examples, greedily or by beams; compiled once for all nets."""

    def __init__(self, net: rnn.SequenceLayer, data: dict[str, Any], *, width: int) -> None:
        batches = rnn.training.Bucketed(data, size=min(16, len(data["xs"])), bounds=bounds(data))
        self.batches = [(numbers, batch["xs"]) for numbers, batch in batches.once()]
        self.run = jax.jit(lambda params, xs, lengths: rnn.unroll(net, params, xs, lengths=lengths)[1])
        self.width, self.steps = width, [len(x) for x in data["xs"]]

    def logits(self, params: Any) -> list[np.ndarray]:
        """[n_i, CLASSES] of each example."""
        found: dict[int, np.ndarray] = {}
        for numbers, (xs, lengths) in self.batches:
            ys = np.asarray(self.run(params, xs, lengths))
            found |= {int(i): ys[: self.steps[i], b] for b, i in enumerate(numbers)}
        return [found[i] for i in range(len(found))]

    def by_beams(self, logits: np.ndarray, letters: Letters, weight: float) -> str:
        """`weight`: of the language model; 2 nats of it, what a letter has, are given back for each."""
        beams = rnn.losses.PrefixBeams(
            self.width, language_model=letters, model_state="", weight=weight, bonus=2 * weight, prune=6.0
        )
        return spelt(beams.feed(logits).best())


def greedily(logits: np.ndarray) -> str:
    best = logits.argmax(axis=-1)
    return spelt(best[np.diff(best, prepend=0) != 0])


def spelt(labels: Any) -> str:
    return " ".join("".join(asterisk.SYMBOLS[k - 1] for k in labels if k > 0).split())


def errors(texts: Sequence[str], read: Sequence[str]) -> dict[str, float]:
    texts, read = list(texts), list(read)
    return {"characters": float(jiwer.cer(texts, read)), "words": float(jiwer.wer(texts, read))}


def hidden(key: Any, xs: jax.Array, bands: int = 8, steps: int = 8) -> jax.Array:
    """xs [T, B, STACK * D] with zeros, the mean, in some bands and steps of each example.

    Park et al. 2019, "SpecAugment".
    """
    time, batch, _ = xs.shape
    frames = xs.reshape(time, batch, STACK, -1)
    for k, size, most, axis in zip(
        jax.random.split(key, 4), 2 * (time, frames.shape[-1]), 2 * (steps, bands), 2 * (0, 3), strict=True
    ):
        k_start, k_length = jax.random.split(k)
        start = jax.random.randint(k_start, (batch,), 0, size)[:, None]
        length = jax.random.randint(k_length, (batch,), 0, most + 1)[:, None]
        at = jnp.arange(size)[None]
        kept = ~((start <= at) & (at < start + length))  # [B, size]
        shape = (size, batch, 1, 1) if axis == 0 else (1, batch, 1, size)
        frames = frames * (kept.T if axis == 0 else kept).reshape(shape)
    return frames.reshape(xs.shape)


def draw(steps: np.ndarray, logits: np.ndarray, said: str, axes: Any) -> None:
    """A spectrogram; over it each character where it is read, and beneath it what was said."""
    seconds = len(steps) * STACK * sound.HOP
    axes.imshow(steps.reshape(len(steps) * STACK, -1).T, origin="lower", aspect="auto", extent=(0, seconds, 0, 1))
    best = logits.argmax(axis=-1)
    for t in np.flatnonzero((np.diff(best, prepend=0) != 0) & (best > 0)):
        axes.text((t + 0.5) * STACK * sound.HOP, 1.04, asterisk.SYMBOLS[best[t] - 1], ha="center", family="monospace")
    axes.set(xlabel=f"seconds\n\nsaid: {said}\nread: {greedily(logits)}", yticks=[], ylim=(0, 1.1))
