"""What the experiments on speech share: what a net makes of frames, what is read from that, and pictures of it."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

import jax
import numpy as np

import jaxrnn as rnn
from experiments.datasets import espeak


def compiled(net: rnn.SequenceLayer) -> Callable[..., Any]:
    """(params, xs, lengths) -> logits and their lengths; compiled once per shape."""
    return jax.jit(lambda p, xs, lengths: (rnn.unroll(net, p, xs, lengths=lengths)[1], net.shortened(lengths)))


def logits_of(hear: Callable[..., Any], params: Any, batches: rnn.training.Bucketed) -> list[np.ndarray]:
    """[n, classes] of each utterance, in their order."""

    def of_batch(batch: Any) -> list[np.ndarray]:
        logits, lengths = map(np.asarray, hear(params, *batch["frames"]))
        return [logits[:n, column] for column, n in enumerate(lengths)]

    return batches.per_example(of_batch)


def greedily(logits: list[np.ndarray]) -> list[list[int]]:
    xs, lengths = rnn.sequence.pad(logits)
    _, ys = rnn.unroll(rnn.losses.ctc_greedy(), (), xs)
    return rnn.losses.labels_read(ys, lengths)


def by_beams(width: int, logits: list[np.ndarray]) -> list[list[int]]:
    return [list(rnn.losses.PrefixBeams(width).feed(each).best()) for each in logits]


def draw_confusion(corpus: espeak.Corpus, logits: list[np.ndarray], axes: Any) -> None:
    """Rows: what was said; columns: what was read, as a share of the row."""
    count = len(corpus.labels)
    said, read = np.concatenate(corpus.alignment), np.concatenate(logits).argmax(axis=1)
    table = np.bincount(said * count + read, minlength=count**2).reshape(count, count)
    there = np.flatnonzero(table.sum(axis=1) > 0)
    order = there[np.argsort([corpus.labels[k].lstrip("_")[:1] not in "aeiouAEIOUV@03" for k in there], kind="stable")]
    shares = table[np.ix_(order, order)] / table[order].sum(axis=1, keepdims=True)
    names = [corpus.labels[k] for k in order]
    axes.figure.set_size_inches(9, 8.5)
    axes.figure.colorbar(axes.imshow(shares**0.5, cmap="magma", vmin=0, vmax=1), shrink=0.7, label="share, square root")
    axes.set_xticks(range(len(names)), names, fontsize=6, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set(xlabel="read by the net that reads both ways", ylabel="said", title="frames of unseen sentences")


def draw_spectrogram(
    corpus: espeak.Corpus, frames: list[np.ndarray], read: dict[str, list[np.ndarray]], i: int, axes: Any
) -> None:
    """Utterance i, what was said over it, and what each net read (its logits), what is wrong in red."""
    n, bands = frames[i].shape
    axes.figure.set_size_inches(14, 5)
    axes.imshow(frames[i].T, origin="lower", aspect="auto", cmap="magma", extent=(0, n, 0, bands))
    said = corpus.alignment[i]
    rows = {"said": said} | {name: logits[i].argmax(axis=1) for name, logits in read.items()}
    top = bands + 4 * len(rows) + 1
    for row, (name, ks) in enumerate(rows.items()):
        y, stride = top - 3 - 4 * row, round(n / len(ks))
        starts = np.flatnonzero(np.append(True, np.diff(ks) != 0))
        spans = [(a, b) for a, b in zip(starts, [*starts[1:], len(ks)], strict=True) if stride == 1 or ks[a] != 0]
        right = {k for k, (a, b) in enumerate(spans) if ks[a] in said[a:b]}
        if stride > 1:  # CTC says what, and not where
            blocks = SequenceMatcher(None, [ks[a] for a, _ in spans], corpus.phonemes[i].tolist()).get_matching_blocks()
            right = {k for block in blocks for k in range(block.a, block.a + block.size)}
        for k, (a, b) in enumerate(spans):
            color = "k" if k in right else "C3"
            at = (a + b) * stride / 2
            axes.text(at, y, corpus.labels[ks[a]], ha="center", va="center", fontsize=8, color=color)
        axes.text(-1, y, name, ha="right", va="center", fontsize=8)
    for at in np.flatnonzero(np.diff(said)) + 1:
        axes.axvline(at, 0, bands / top, color="w", lw=0.5, alpha=0.6)
    axes.set(xlabel="frames of 10 ms", ylim=(0, top), yticks=[], title=corpus.text[i])
