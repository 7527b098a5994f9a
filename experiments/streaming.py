"""Speech as one stream: utterances end to end, what is read off it while it comes, and how late it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rapidfuzz.distance import Levenshtein

import jaxrnn as rnn
from experiments.datasets import espeak, sound

STACK = 3  # frames of 10 ms side by side are one step
STEP = STACK * sound.HOP  # seconds
SILENCE = np.log(1e-12)
Written = list[list[tuple[int, float]]]  # of each stream its labels, each with the second in which it is written down


class Speech(NamedTuple):
    """Utterances end to end: T steps of all together."""

    xs: np.ndarray  # [T, D]
    seen: rnn.losses.Utterances  # [T, ...]
    labels: list[np.ndarray]  # of each utterance
    spoken: Written  # of each its phonemes, each with the second in which it ends
    start: np.ndarray  # [N] its first step
    steps: np.ndarray  # [N] how many it has

    def whole(self) -> dict[str, Any]:
        """Utterances as `Bucketed` takes them."""
        frames = np.split(self.xs, self.start[1:])
        return {"xs": frames, "labels": self.seen.labels[self.start], "count": self.seen.label_lengths[self.start]}

    def streams(self, orders: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Which steps are heard where each stream reads utterances in an order: [longest, B], 0 at the end; lengths."""
        columns = [np.concatenate([np.arange(self.steps[u]) + self.start[u] for u in order]) for order in orders]
        lengths = np.array([len(column) for column in columns])
        return np.stack([np.pad(c, (0, lengths.max() - len(c))) for c in columns], axis=1), lengths


def prepared(corpus: espeak.Corpus, pause: float, mean: np.ndarray, spread: np.ndarray) -> Speech:
    xs, labels, spoken = [], list(corpus.phonemes), []
    for frames, alignment in zip(corpus.frames, corpus.alignment, strict=True):
        count = -(-len(frames) // STACK) + round(pause / STEP)
        quiet = np.full((count * STACK - len(frames), frames.shape[1]), SILENCE)
        xs.append(((np.concatenate([frames, quiet]) - mean) / spread).reshape(count, -1).astype(np.float32))
        ends = np.flatnonzero(np.diff(alignment, append=-1))
        seconds = sound.centres(len(frames)) + sound.HOP / 2
        spoken.append([(int(alignment[t]), float(seconds[t])) for t in ends if alignment[t] != 0])
    steps = np.array([len(x) for x in xs])
    seen = rnn.losses.utterances([z.tolist() for z in labels], steps.tolist())
    return Speech(np.concatenate(xs), seen, labels, spoken, np.cumsum(steps) - steps, steps)


class Test:
    """Unseen utterances as streams, what is heard in them, and how it compares with what was said."""

    def __init__(self, net: rnn.Cell, data: Speech, *, piece: int, width: int, lag: int, streams: int = 8) -> None:
        orders = [np.arange(b, len(data.steps), streams) for b in range(min(streams, len(data.steps)))]
        at, self.lengths = data.streams(orders)
        self.net, self.piece, self.width, self.lag = net, piece, width, lag
        self.xs, self.begins = data.xs[at], data.seen.begins[at]
        self.said = [np.concatenate([data.labels[u] for u in order]).tolist() for order in orders]
        starts = [np.cumsum(data.steps[order]) - data.steps[order] for order in orders]
        self.spoken = [
            [(k, s * STEP + end) for u, s in zip(order, start, strict=True) for k, end in data.spoken[u]]
            for order, start in zip(orders, starts, strict=True)
        ]
        self.on = jax.jit(lambda params, state, xs, resets: rnn.unroll(net, params, xs, state, resets=resets))

    def logits(self, params: Any, *, told: bool) -> np.ndarray:
        """[T, B, V], by pieces as they come; `told`: the net starts anew where an utterance begins."""
        short = -len(self.xs) % self.piece
        xs, begins = (np.pad(a, [(0, short)] + [(0, 0)] * (a.ndim - 1)) for a in (self.xs, self.begins & told))
        state, found = self.net.initial_state(params, xs.shape[1:2]), []
        for t in range(0, len(xs), self.piece):
            state, ys = self.on(params, state, xs[t : t + self.piece], begins[t : t + self.piece])
            found.append(np.asarray(ys))
        return np.concatenate(found)[: len(self.xs)]

    def greedily(self, logits: np.ndarray) -> Written:
        """Each stream's labels, each with the second in which it is written down."""
        _, read = rnn.unroll(rnn.losses.ctc_greedy(), (), jnp.asarray(logits))
        columns = [column[:n] for column, n in zip(np.asarray(read).T, self.lengths, strict=True)]
        return [[(int(column[t]), known(t)) for t in np.flatnonzero(column >= 0)] for column in columns]

    def by_beams(self, logits: np.ndarray) -> Written:
        """The same by prefix beams: a label is written down when it is settled, and never changed."""
        found = []
        for b, n in enumerate(self.lengths):
            beams, written = rnn.losses.PrefixBeams(self.width, prune=6.0, lag=self.lag), []
            for t, frame in enumerate(logits[:n, b]):
                written += [(k, known(t)) for k in beams.feed(frame).stable()[len(written) :]]
            found.append(written + [(k, known(n - 1)) for k in beams.best()[len(written) :]])
        return found

    def error(self, read: Written) -> float:
        """Edits per phoneme."""
        pairs = zip(self.said, read, strict=True)
        return sum(Levenshtein.distance(said, [k for k, _ in own]) for said, own in pairs) / sum(map(len, self.said))

    def delays(self, read: Written) -> np.ndarray:
        """Seconds from the end of each phoneme that was heard until it was written down."""
        found: list[float] = []
        for spoken, written in zip(self.spoken, read, strict=True):
            for op in Levenshtein.opcodes([k for k, _ in spoken], [k for k, _ in written]):
                if op.tag == "equal":
                    pairs = zip(spoken[op.src_start : op.src_end], written[op.dest_start : op.dest_end], strict=True)
                    found += [when - end for (_, end), (_, when) in pairs]
        return np.array(found)


def known(t: int) -> float:
    """The second in which all of step t has been heard."""
    return (t + 1) * STEP + sound.WINDOW - sound.HOP


def quantiles(delays: np.ndarray) -> list[float]:
    """The median, and what nine of ten are below, in milliseconds."""
    return [1000 * float(q) for q in np.quantile(delays, (0.5, 0.9))] if len(delays) else [float("nan")] * 2


def draw_stream(test: Test, written: dict[str, Written], labels: Sequence[str], axes: Any) -> None:
    """The beginning of the first stream: its sound, each phoneme where it ends, and where each way writes it down."""
    seconds = min(3.0, len(test.xs) * STEP)
    stretch = test.xs[: round(seconds / STEP), 0]
    picture = stretch.reshape(len(stretch) * STACK, -1).T
    axes.imshow(picture, origin="lower", aspect="auto", extent=(0, seconds, 0, 1), cmap="Greys")
    for row, (name, found) in enumerate({"spoken": test.spoken[0], **{n: w[0] for n, w in written.items()}}.items()):
        shown = [(k, when) for k, when in found if when < seconds]
        for n, (k, when) in enumerate(shown):
            y = -0.1 - 0.22 * row - 0.07 * (n % 2)  # neighbours on two lines
            axes.text(when, y, labels[k], color=f"C{row}", ha="center", va="center", fontsize=8)
            axes.plot([when, when], [-0.06 - 0.22 * row, 1.0 if row == 0 else -0.02 - 0.22 * row], f"C{row}", lw=0.5)
        axes.text(-0.02 * seconds, -0.13 - 0.22 * row, name, color=f"C{row}", ha="right", va="center")
    axes.set(xlabel="seconds", yticks=[], ylim=(-0.1 - 0.22 * (len(written) + 1), 1), xlim=(0, seconds))
    axes.set_title("a stream: its phonemes where they end, and where they are written down")


def draw_delays(test: Test, written: dict[str, Written], axes: Any) -> None:
    for name, read in written.items():
        axes.hist(np.clip(1000 * test.delays(read), -200, 1000), 60, alpha=0.6, label=name)
    axes.set(xlabel="milliseconds from a phoneme's end until it is written down", ylabel="phonemes")
    axes.legend()


def draw_curves(run: rnn.training.Run, axes: Any) -> None:
    for kind, folders in {"whole utterances": ["whole"], "windows of a stream": ["early", "stream"]}.items():
        records = [r for folder in folders for r in rnn.training.read_metrics(run.folder / folder)]
        points = {r["step"]: r["phoneme_error"] for r in records if "phoneme_error" in r}
        axes.plot([step / max(points) for step in points], points.values(), "o-", label=kind)
    axes.set(xlabel="share of the training", ylabel="phoneme error on the development part", yscale="log")
    axes.legend()
