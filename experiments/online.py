"""Learning online: what each way to find a gradient while time runs is worth, and what it costs.

    table    how near each method's gradient comes to BPTT's, before and after training, and what it takes
    stream   a stream that never ends, an update after every step: the bit of five steps ago is asked for
    copy     delayed copy, sequences end to end, an update after each
    adding   the adding problem as Hochreiter and Schmidhuber 1997 set it, T = 100, four memory cells
    drift    the stream's delay changes: learning on, against parameters that stay as they were
    text     the standard library read once, character by character, each predicted before it is learned from

    python -m experiments.online
    python -m experiments.online --parts adding
    python -m experiments.online --parts stream --delay 8 --size 24 --run runs/longer

Writes results.json, table.csv and pictures into the run folder. Each method of each part is a checkpoint: stopped and
started again it keeps those it has.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxrnn as rnn
from experiments import harness, online_pictures, scoring
from experiments.data import Text, standard_library
from experiments.following import followed
from experiments.streams_to_learn import Stream, adding, copying, reading, remembering
from experiments.tasks import TASKS

METHODS: dict[str, rnn.online.Method] = {
    "rtrl": rnn.online.rtrl(),
    "kf_rtrl": rnn.online.kf_rtrl(),
    "uoro": rnn.online.uoro(),
    "snap(1)": rnn.online.snap(1),
    "eprop": rnn.online.eprop(),
    "tbptt(10)": rnn.online.tbptt(10),
    "tbptt(1)": rnn.online.tbptt(1),
    "immediate": rnn.online.immediate(),
    "windows of 8": rnn.online.tbptt(8, every=8),
    "windows of 64": rnn.online.tbptt(64, every=64),
}
FROZEN = "rtrl, then frozen"
Part = Literal["table", "stream", "copy", "adding", "drift", "text"]
COMPARED: dict[str, tuple[str, ...]] = {
    "table": ("rtrl", "kf_rtrl", "uoro", "snap(1)", "eprop", "tbptt(10)", "immediate"),
    "stream": ("rtrl", "kf_rtrl", "uoro", "snap(1)", "eprop", "tbptt(10)", "tbptt(1)", "immediate"),
    "copy": ("rtrl", "kf_rtrl", "uoro", "snap(1)", "eprop", "immediate"),
    "adding": ("rtrl", "snap(1)", "eprop"),
    "drift": ("rtrl", "snap(1)", "tbptt(10)", FROZEN),
    "text": ("min_gru rtrl", "gru snap(1)", "gru immediate", "gru windows of 8", "gru windows of 64"),
}
DRIFT = (3, 3, 5, 5, 2, 2)  # the delay in each stretch
HELD_OUT = 100_000  # bytes of text that is not learned from


@dataclasses.dataclass(frozen=True)
class Config:
    parts: tuple[Part, ...] = ("table", "stream", "copy", "drift", "text")
    """What to do, in this order; also adding, which takes as long as the others together."""
    size: int = 16  # Units of the GRUs that learn streams; the table's has twice as many, the text's four times.
    batch: int = 8  # Streams side by side.
    seeds: int = 3  # Nets per method, each with a stream of its own.
    stretch: int = 5000  # Steps after which an endless stream is looked at; there are five, and six of the drift.
    delay: int = 5  # How many steps ago the stream's target was.
    learning_rate: float = 3e-3  # Adam's; three times as much for sequences, the root of a window's steps for text.
    copies: int = 1500  # Sequences of delayed copy, over 10 steps.
    sums: int = 1500  # Sequences of the adding problem.
    training: int = 1000  # Steps of BPTT between the table's two halves.
    characters: int = 8 * 8 * 1024  # Of the text that is read.
    run: str = "runs/online"  # Run folder: results.json, table.csv, pictures, metrics.jsonl.


@functools.cache
def stream_of(config: Config, part: str, cell: str = "") -> Stream:
    size, batch = config.size, config.batch
    if part == "copy":
        return copying(size, batch, 10, config.copies)
    if part == "adding":
        return adding(2 * batch, 100, config.sums)
    if part == "text":
        recurrent = {"gru": rnn.gru, "min_gru": rnn.cells.min_gru}[cell](4 * size)
        return reading(recurrent, batch, standard_library()[0], config.characters)
    return remembering(size, batch, config.stretch, DRIFT if part == "drift" else (config.delay,) * 5)


def learned(config: Config, part: str, method: str) -> dict[str, Any]:
    """One method on one stream: what is left of the loss, and of the text also of some that is held out."""
    cell, _, way = method.partition(" ") if part == "text" else ("", "", method)
    stream, frozen = stream_of(config, part, cell), way == FROZEN
    how = METHODS["rtrl" if frozen else way]
    rate = config.learning_rate * (3 if stream.length > 1 else getattr(how, "every", 1) ** 0.5)
    freeze = DRIFT.count(DRIFT[0]) if frozen else None
    row, params = followed(stream, how, rate, 1 if part == "text" else config.seeds, freeze)
    if part == "text":
        held = standard_library()[1]
        score = scoring.as_trained(stream.net, Text(held.content[:HELD_OUT], held.starts[:HELD_OUT]))
        row |= {"held_out": score(jax.tree.map(lambda a: a[0], params))["held_out_bits"]}
    return row


@functools.cache
def adder(config: Config) -> tuple[rnn.Cell, Any, dict[str, Any]]:
    """A GRU that adds over 100 steps: (the cell, inputs to compare on, parameters before and after BPTT)."""
    net, problem = rnn.stack(rnn.gru(2 * config.size), rnn.layer(nn.Dense(1))), TASKS["adding"]
    key, rule = jax.random.key(0), rnn.training.adam(6e-3, steps=config.training)
    params = jax.jit(net.init)(key, problem.batch(key, 8, 90)[0][0])

    def update(now: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        xs, sums = problem.batch(key, 32, 90)
        loss = lambda params: problem.error(rnn.unroll(net, params, xs)[1], sums)
        error, grads = jax.value_and_grad(loss)(now[0])
        change, moments = rule.update(grads, now[1], now[0])
        return (optax.apply_updates(now[0], change), moments), error

    keys = jax.random.split(key, config.training)
    (trained, _), errors = jax.jit(partial(jax.lax.scan, update))((params, rule.init(params)), keys)
    xs, sums = problem.batch(jax.random.key(1), 8, 90)
    last = jnp.zeros(xs.shape[:2]).at[-1].set(1.0)
    cell = rnn.with_loss(net, lambda y, t: 6 * t[1] * jnp.square(y[..., 0] - t[0]))
    about = {"error": float(jnp.mean(errors[-20:])), "start": params, "trained": trained}
    return cell, (xs, (jnp.broadcast_to(sums, last.shape), last)), about


def compared(config: Config, method: str) -> dict[str, Any]:
    """One method's gradient beside BPTT's, of all weights and of the recurrent ones; and what it takes."""
    cell, xs, about = adder(config)
    row: dict[str, Any] = {"error": about["error"]}
    for when in ("start", "trained"):
        key = jax.random.key(2)
        found = rnn.analysis.compare(cell, about[when], xs, {method: METHODS[method]}, key=key, draws=16)[method]
        recurrent = next(near for name, near in found.leaves.items() if "'W'" in name)
        row |= {f"cosine_{when}": found.whole.cosine, f"ratio_{when}": found.whole.ratio}
        row |= {f"recurrent_{when}": recurrent.cosine, "carried": found.carried, "steps": found.flops}
    return row


def as_csv(rows: list[dict[str, Any]]) -> str:
    figures = ("cosine_start", "cosine_trained", "recurrent_start", "recurrent_trained", "ratio_start", "ratio_trained")
    columns = ["part", "method", "left", "whole", "held_out", *figures, "carried", "steps", "seconds"]
    flat = lambda row: row | {"left": " ".join(f"{left:.5f}" for left in row.get("left", []))}
    return harness.as_csv([flat(row) for row in rows], columns)


def show(rows: list[dict[str, Any]], console: Any) -> None:
    """A table for each part."""
    titles = {
        "table": "gradients beside BPTT's, adding over 100 steps: at the start > after training",
        "stream": "an endless stream: bits left of one",
        "copy": "delayed copy: error left (1: as without input)",
        "adding": "the adding problem: error left (1: as without input)",
        "drift": "a delay that changes: bits left of one",
        "text": "the standard library, read once: bits per character",
    }
    for part in dict.fromkeys(row["part"] for row in rows):
        lines = []
        for row in (row for row in rows if row["part"] == part):
            line = {"method": row["method"]}
            if part == "table":
                both = lambda name, row=row: f"{row[name + '_start']:.3f} > {row[name + '_trained']:.3f}"
                line |= {"cosine": both("cosine"), "recurrent weights'": both("recurrent"), "norm ratio": both("ratio")}
                line |= {"bytes carried": f"{row['carried']:,}", "forward steps": f"{row['steps']:.1f}"}
            else:
                line |= {"last fifth": " ".join(f"{left:.4f}" for left in row["left"]), "whole": f"{row['whole']:.3f}"}
                line |= {"held out": harness.text(row.get("held_out"), ".3f")} if part == "text" else {}
                line |= {"bytes carried": f"{row['carried']:,}", "seconds": f"{row['seconds']:.0f}"}
            lines.append(line)
        harness.print_table(console, titles[part], lines, left=["method"])


def main(config: Config) -> None:
    console = harness.console()
    sizes = ("size", "batch", "seeds", "stretch", "copies", "sums", "training")
    if not config.parts or min(getattr(config, name) for name in sizes) < 1:
        raise harness.UsageError(f"--parts needs at least one; {', '.join(sizes)} must be at least 1")
    if not 0 < config.delay <= 64 or config.characters < 8 * 64 * config.batch:
        raise harness.UsageError("--delay must be 1 to 64, --characters at least 512 times the batch")
    about = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run", "parts")}
    measured = dataclasses.replace(config, parts=(), run="")  # so that what is cached does not depend on them
    work = [{"part": part, "method": method} for part in config.parts for method in COMPARED[part]]
    measure = lambda part, method: compared(measured, method) if part == "table" else learned(measured, part, method)
    with rnn.training.Run(config.run, {"experiment": "online", **about}) as run:
        write = lambda rows: run.write("table.csv", as_csv(rows))
        rows = harness.records(run, work, measure, console, then=write)
        run.write("results.json", json.dumps([{k: v for k, v in r.items() if k != "curve"} for r in rows], indent=1))
        show(rows, console)
        written = online_pictures.draw(rows, config.stretch, DRIFT, run.folder)
        console.print(f"written: {run.folder / 'table.csv'}; results.json, {', '.join(written)} beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
