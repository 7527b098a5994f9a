"""Bits per character of a held-out text: a trained net, the same learning on as it reads, gzip and xz; the table."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track

import jaxrnn as rnn
from experiments import devices, harness
from experiments.data import Text, side_by_side

bits = rnn.losses.bits_per_character


def compressed(text: Text) -> dict[str, float]:
    """What compressors need, which learn a text's names as they read it and start from nothing."""
    return {
        "gzip -9": 8 * len(gzip.compress(text.content, 9)) / text.characters,
        "xz -9": 8 * len(lzma.compress(text.content, preset=9)) / text.characters,
    }


def as_trained(cell: rnn.Cell, text: Text, mesh: Mesh | None = None) -> Callable[[Any], dict[str, float]]:
    """params -> bits per character over all of the text, the parameters as they are. The cell's output is its loss.

    On a mesh its devices share the text, and each process lays out its own part of it.
    """
    rows = 128 if mesh is None else -(-128 // mesh.size) * mesh.size
    batch = side_by_side(text, rows, 1)
    if mesh is not None:
        own = rnn.training.part_of(mesh).slice("the held-out text", rows)
        batch = rnn.training.on_mesh(jax.tree.map(lambda a: a[..., own], batch), mesh)

    @jax.jit
    def total_nats(params: Any, batch: Any) -> jax.Array:
        xs, starts, lengths = batch
        _, nats = rnn.unroll(cell, params, xs, resets=starts, lengths=lengths)
        return rnn.losses.reduced(nats, lengths=lengths, reduction="sum")

    return lambda params: {"held_out_bits": bits(float(total_nats(params, batch)), text.characters)}


def learning_on(cell: rnn.Cell, params: Any, text: Text, scan: rnn.Scan, console: Console) -> float:
    """Bits per character where the net goes on learning from the text as it reads, each window after predicting it.

    Every byte is predicted before it is learned from, so this is a code length that a decoder could
    follow, as it is for gzip and xz, which learn a text's words as they go and know none before.
    Krause et al. 2018, "Dynamic evaluation of neural sequence models".
    """
    window = 64
    (inputs, targets), starts, lengths = side_by_side(text, 8, window)
    counted = np.arange(len(inputs))[:, None] < lengths

    def loss(params: Any, batch: Any, key: Any, state: Any) -> Any:
        del key
        xs, starts, counted = batch
        state, nats = rnn.unroll(cell, params, xs, state, resets=starts, scan=scan)
        total = rnn.losses.reduced(nats, mask=counted, reduction="sum")
        return rnn.losses.reduced(nats, mask=counted), state, {"nats": total}

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, b2=0.99))
    train_step = rnn.training.make_train_step(loss, optimizer)
    first = cell.initial_state(params, (inputs.shape[1],))
    state = rnn.training.create(params, optimizer, jax.random.key(0), first)
    nats = 0.0
    for start in track(range(0, len(inputs), window), "reading the held-out text", console=console, transient=True):
        part = slice(start, start + window)
        state, metrics = train_step(state, ((inputs[part], targets[part]), starts[part], counted[part]))
        nats += float(metrics["nats"])
    return bits(nats, text.characters)


def report(name: str, run: rnn.training.Run, read: int, held_out: Text, learned: float, console: Console) -> None:
    """The table of bits per character, in results.json too, and the curve; `read` characters make a step."""
    metrics = rnn.training.read_metrics(run.folder)
    windows = [(r["step"] * read, r["bits"]) for r in metrics if "bits" in r]
    checked = [(r["step"] * read, r["held_out_bits"]) for r in metrics if "held_out_bits" in r]
    others = compressed(held_out)
    found = others | {f"{name}, as trained": checked[-1][1], f"{name}, learning on as it reads": learned}
    run.write("results.json", json.dumps(found, indent=2) + "\n")
    rows = [{"model": m, "bits": f"{b:.3f}"} for m, b in sorted(found.items(), key=lambda item: -item[1])]
    harness.print_table(console, "bits per character of the held-out modules", rows, left=["model"])
    console.print(f"last training windows: {windows[-1][1]:.3f} bits per byte; curve in {run.folder / 'curve.png'}")

    def draw(axes: Any) -> None:
        axes.plot(*zip(*windows, strict=True), lw=1, label="training windows")
        axes.plot(*zip(*checked, strict=True), "o-", label="held out")
        axes.plot(checked[-1][0], learned, "*", ms=12, label="held out, learning on as it reads")
        for (other, value), style in zip(others.items(), ("--", ":"), strict=True):
            axes.axhline(value, color="0.4", ls=style, label=other)
        axes.set(xlabel="characters read", ylabel="bits per character", ylim=(1, 4), title=name)
        axes.legend()

    if devices.speaks():  # results.json is written by all processes together, which is to say by the first
        harness.picture(run.folder / "curve.png", draw)
