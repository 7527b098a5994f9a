"""CTC without end: how well does a net learn to read a stream through windows shorter than its utterances?

Streams of utterances of about 80 frames, end to end; each label is two short codes in order, so that a frame alone
does not tell it. A GRU is trained by windows of reach/emit/lookahead frames, in each of the three ways to judge an
utterance that is still open at the window's end, over several seeds. The label error is the edit distance of what
is read greedily off streams that were not trained on, per label.

    python -m experiments.endless_ctc
    python -m experiments.endless_ctc --windows 0/256/0 16/16/16 --partial truncated --updates 2000 --run runs/longer

Writes table.csv and curves.png into the run folder. Stopped and started again it keeps the nets it has trained.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rapidfuzz.distance import Levenshtein

import jaxrnn as rnn
from experiments import harness

CLASSES, FEATURES, MOST = 7, 8, 12  # a blank and six labels; features per frame; labels per utterance
PAIRS = ((0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (2, 0))
CODES = np.random.default_rng(7).standard_normal((4, FEATURES))
COLUMNS = ("window", "partial", "seed", "updates", "label_error")


@dataclasses.dataclass(frozen=True)
class Config:
    windows: tuple[str, ...] = ("0/256/0", "32/32/32", "16/16/16", "0/32/0")
    """reach/emit/lookahead; the first is the wide one that the others are measured by."""
    partial: tuple[Literal["prefixes", "truncated", "progress"], ...] = ("prefixes", "truncated", "progress")
    """What becomes of utterances that are open at a window's end."""
    seeds: int = 3  # Nets per window and way, each with a stream of its own.
    updates: int = 500  # Training steps of each net, one window each.
    batch: int = 16  # Streams side by side.
    frames: int = 8000  # Frames of each stream; read again from the start when it is through.
    size: int = 48  # Hidden units.
    learning_rate: float = 5e-3  # Adam's.
    points: int = 10  # How often the label error is measured.
    run: str = "runs/endless_ctc"  # Run folder: table.csv, curves.png, metrics.jsonl.


def utterance(rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """Labels, and the frames that show them: two codes each, then a pause."""
    labels, rows = rng.integers(1, CLASSES, rng.integers(MOST // 2, MOST + 1)).tolist(), []
    for label in labels:
        for code in PAIRS[label - 1]:
            rows += [CODES[code]] * rng.integers(2, 5)
        rows += [np.zeros(FEATURES)] * rng.integers(1, 5)
    return labels, np.array(rows)


def streams(seed: int, batch: int, frames: int) -> tuple[jax.Array, rnn.losses.Utterances]:
    """Streams side by side, [frames, batch, ...], and what is known of each frame."""
    rng, each = np.random.default_rng(seed), []
    for _ in range(batch):
        labels, rows = [], []
        while sum(map(len, rows)) < frames:
            for part, found in zip((labels, rows), utterance(rng), strict=True):
                part.append(found)
        xs = np.concatenate(rows).astype(np.float32)
        each.append((xs, rnn.losses.utterances(labels, [len(row) for row in rows], most=MOST)))
    xs, seen = jax.tree.map(lambda *a: jnp.asarray(np.stack([b[:frames] for b in a], axis=1)), *each)
    return xs + 0.3 * jax.random.normal(jax.random.key(seed), xs.shape), seen


def sizes_of(window: str, option: str = "--windows") -> dict[str, int]:
    """ "16/32/16" as reach, emit and lookahead."""
    parts = [int(n) if n.strip().isdecimal() else -1 for n in window.split("/")]
    if len(parts) != 3 or min(parts) < 0 or parts[1] == 0:
        raise harness.UsageError(f"{option} takes reach/emit/lookahead in frames, e.g. 32/32/32, got {window!r}")
    return dict(zip(("reach", "emit", "lookahead"), parts, strict=True))


def label_error(read: np.ndarray, seen: rnn.losses.Utterances) -> float:
    """Edits per label, over all utterances that were read whole; read [T, B]: the label that begins, or -1."""
    edits = count = 0
    for b in range(read.shape[1]):
        for start, stop in zip(np.flatnonzero(seen.begins[:, b]), np.flatnonzero(seen.ends[:, b]), strict=False):
            labels = np.asarray(seen.labels[start, b])[: int(seen.label_lengths[start, b])].tolist()
            edits += Levenshtein.distance(labels, [int(k) for k in read[start : stop + 1, b] if k >= 0])
            count += len(labels)
    return edits / count


def trained(config: Config, window: str, way: str, seed: int) -> dict[str, Any]:
    """One net, trained through one kind of window: its label errors as it learns."""
    net, sizes = rnn.stack(rnn.gru(config.size), rnn.layer(nn.Dense(CLASSES))), sizes_of(window)
    xs, seen = streams(seed + 1, config.batch, config.frames)
    test_xs, test_seen = streams(10_000, 8, 1200)
    params = net.init(jax.random.key(seed), xs[0])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    length = sum(sizes.values())
    positions = (config.frames - length) // sizes["emit"] + 1
    fresh = rnn.losses.online_start(net, params, seen)

    def loss(params: Any, states: Any, cut: Any) -> tuple[jax.Array, Any]:
        losses, found = rnn.losses.online_ctc(net, params, states, *cut, partial=way, **sizes)
        return jnp.sum(losses) / (config.batch * sizes["emit"]), found.states

    def update(carry: Any, n: jax.Array) -> tuple[Any, tuple[()]]:
        params, moments, states = carry
        states = jax.tree.map(lambda a, b: jnp.where(n % positions == 0, a, b), fresh, states)
        start = n % positions * sizes["emit"]
        cut = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, length), (xs, seen))
        grads, states = jax.grad(loss, has_aux=True)(params, states, cut)
        change, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, change), moments, states), ()

    some = jax.jit(lambda carry, numbers: lax.scan(update, carry, numbers)[0])
    reader = rnn.stack(net, rnn.losses.ctc_greedy())
    read = jax.jit(lambda params: rnn.unroll(reader, (params, ()), test_xs)[1])
    each = math.ceil(config.updates / config.points)
    carry, errors = (params, optimizer.init(params), fresh), {}
    for start in range(0, config.updates, each):
        carry = some(carry, jnp.arange(start, min(start + each, config.updates)))
        errors[min(start + each, config.updates)] = label_error(np.asarray(read(carry[0])), test_seen)
    return {"updates": config.updates, "label_error": errors[config.updates], "curve": list(errors.items())}


def draw_curves(records: list[dict[str, Any]], axes: Any) -> None:
    """Label error as the nets learn, the mean over seeds: a colour per window, a style per way."""
    windows, ways = (list(dict.fromkeys(r[name] for r in records)) for name in ("window", "partial"))
    for i, window in enumerate(windows):
        for way, style in zip(ways, ("-", "--", ":"), strict=False):
            curves = [np.array(r["curve"]) for r in records if (r["window"], r["partial"]) == (window, way)]
            if curves:
                at, mean = curves[0][:, 0], np.mean([curve[:, 1] for curve in curves], axis=0)
                axes.plot(at, mean, style, color=f"C{i}", label=f"{window} {way}")
    axes.axhline(0.05, color="0.7", lw=1)
    axes.set(xlabel="updates", ylabel="label error", ylim=(0, 1.05), title="reach/emit/lookahead, open utterances")
    axes.legend(fontsize="small")


def main(config: Config) -> None:
    console = harness.console()
    for window in config.windows:
        if sum(sizes_of(window).values()) > config.frames:
            raise harness.UsageError(f"--frames is {config.frames}, shorter than the window {window}")
    if min(config.seeds, config.updates, config.points, config.batch) < 1:
        raise harness.UsageError("--seeds, --updates, --points and --batch must be at least 1")
    work = [
        {"window": window, "partial": way, "seed": seed}
        for window in config.windows
        for way in config.partial
        for seed in range(config.seeds)
    ]
    about = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run", "windows", "partial", "seeds")}
    with rnn.training.Run(config.run, about | {"experiment": "endless_ctc"}) as run:
        measure = lambda window, partial, seed: trained(config, window, partial, seed)
        write = lambda done: run.write("table.csv", harness.as_csv(done, COLUMNS))
        table = harness.records(run, work, measure, console, then=write)
        harness.picture(run.folder / "curves.png", partial(draw_curves, table))
    rows = []
    for window in config.windows:
        found = {way: [r for r in table if (r["window"], r["partial"]) == (window, way)] for way in config.partial}
        shown = {way: " ".join(f"{r['label_error']:.1%}" for r in each) for way, each in found.items()}
        rows.append({"reach/emit/lookahead": window, **shown})
    harness.print_table(console, f"label error after {config.updates} updates, by seed", rows)
    console.print(f"written: {run.folder / 'table.csv'} and curves.png beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
