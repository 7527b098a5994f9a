"""Speed: one forward pass and one train step of a recurrent layer, ours and other people's, side by side.

All contenders have the same weights and inputs and run in one process, in turn, so that the machine's
moods hit all alike. Before anything is timed, its gradient is compared with that of `lax.scan`. A train
step is value and gradient by all parameters of a loss on every output.

    python -m experiments.speed
    python -m experiments.speed --cells gru elman --shapes 200,4,128,256 --peers flax torch
    python -m experiments.speed --cells model --shapes 100,16,128,256

"model" is a whole net as one cell: embedding (D features) of 10,000 words, two LSTM layers, readout and
loss; beside it the same net batched by hand: all words embedded, a scan per layer, all logits, the loss.

Peers that are not installed are left out, and named; pip install -e ".[peers]" and, for the CPU,
torch==2.13.0 bring them. Writes table.csv and speed.png; stopped and started again it goes on.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxrnn
from experiments import common, peers

PLAIN = "lax.scan"
MODES = ("forward", "train")
WORDS = 10_000  # of the model


@dataclasses.dataclass(frozen=True)
class Config:
    cells: tuple[Literal["lstm", "gru", "elman", "model"], ...] = ("lstm",)
    """Recurrent cells; model: a whole net as one."""
    shapes: tuple[str, ...] = (
        "1000,1,64,64",
        "1000,1,64,128",
        "200,4,128,256",
        "200,16,128,256",
        "100,32,128,256",
        "100,64,256,512",
        "50,128,128,512",
    )
    """T,B,D,H: steps, batch, inputs, units."""
    scans: tuple[str, ...] = (PLAIN, "fissioned", "checkpointed(50, inner=fissioned)")
    """Our cell under these strategies; lax.scan is always there: times are relative to it."""
    peers: tuple[str, ...] = ("textbook", "flax", "flax optimized", "haiku", "equinox", "keras", "torch", "cudnn")
    """Other people's layers; "textbook" is the cell as tutorials write it, under lax.scan."""
    rounds: int = 9
    """Timed runs of each contender, interleaved, after one that does not count."""
    run: str = "runs/speed"
    """Run folder: table.csv, speed.png, metrics.jsonl."""


@dataclasses.dataclass
class Contender:
    """Something to time, forward and train, and what it says about itself."""

    calls: dict[str, Any]
    temp_bytes: dict[str, int | None]
    compile_seconds: dict[str, float | None]
    gradient: Any  # to compare: by the inputs, or by the parameters where those are the same for all


def sizes_of(shape: str) -> tuple[int, int, int, int]:
    try:
        steps, batch, inputs, units = (int(n) for n in shape.split(","))
        if min(steps, batch, inputs, units) < 1:
            raise ValueError
    except ValueError:
        raise common.UsageError(
            f"--shapes takes T,B,D,H as four whole numbers of at least 1, e.g. 200,4,128,256, got {shape!r}"
        ) from None
    return steps, batch, inputs, units


def ours(cell: jaxrnn.Cell, scan: jaxrnn.Scan) -> peers.Run:
    return lambda params, xs: jaxrnn.unroll(cell, params, xs, scan=scan)[1]


def compiled(run: peers.Run, params: Any, xs: Any, weights: Any, compare: int = 1) -> Contender:
    """Compiles the forward pass and the train step; the inputs are data, so their gradient is not part of it."""
    loss = lambda params, xs: jnp.sum(run(params, xs) * weights)
    calls, needed, taken = {}, {}, {}
    for mode, fn in zip(MODES, (loss, jax.value_and_grad(loss)), strict=True):
        start = time.perf_counter()
        program = jax.jit(fn).lower(params, xs).compile()
        taken[mode] = time.perf_counter() - start
        needed[mode] = program.memory_analysis().temp_size_in_bytes
        calls[mode] = partial(program, params, xs)
    gradient = jax.jit(jax.grad(loss, argnums=compare))(params, xs)
    return Contender(calls, needed, taken, ravel_pytree(gradient)[0])


def model_contenders(config: Config, shape: str) -> dict[str, Contender]:
    """A net as one cell under each strategy, and the same net batched by hand."""
    steps, batch, features, units = sizes_of(shape)
    lstm = jaxrnn.lstm(units)
    readout = jaxrnn.layer(nn.Dense(WORDS))
    net = jaxrnn.stack(jaxrnn.layer(nn.Embed(WORDS, features)), lstm, lstm, readout)
    loss = optax.softmax_cross_entropy_with_integer_labels
    cell = jaxrnn.with_loss(net, loss)
    words = jax.random.randint(jax.random.key(0), (steps + 1, batch), 0, WORDS)
    xs = (words[:-1], words[1:])
    params = cell.init(jax.random.key(1), (words[0], words[1]))

    def by_hand(params: Any, xs: Any) -> jax.Array:
        embedding, first, second, out = params
        ys = embedding["embedding"][xs[0]]
        for layer in (first, second):
            step = lambda state, x, layer=layer: lstm.step(layer, state, x)
            ys = lax.scan(step, lstm.initial_state(layer, (batch,)), ys)[1]
        return loss(readout.step(out, (), ys)[1], xs[1])

    runs = {text: ours(cell, common.scan_named(text)) for text in dict.fromkeys((PLAIN, *config.scans))}
    runs["by hand"] = by_hand
    return {name: compiled(run, params, xs, 1 / (steps * batch), compare=0) for name, run in runs.items()}


def contenders(config: Config, cell: str, shape: str) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that can be had, by name; and why the others cannot."""
    if cell == "model":
        return model_contenders(config, shape), {}
    steps, batch, inputs, units = sizes_of(shape)
    xs = jax.random.normal(jax.random.key(0), (steps, batch, inputs))
    weights = jax.random.normal(jax.random.key(1), (steps, batch, units))
    layer = common.CELLS[cell](units)
    params = layer.init(jax.random.key(2), xs[0])
    found, absent = {}, {}
    for text in dict.fromkeys((PLAIN, *config.scans)):
        found[text] = compiled(ours(layer, common.scan_named(text)), params, xs, weights)
    for name in config.peers:
        try:
            if name == "torch":
                forward, train, by_inputs = peers.torch(cell, params, xs, weights)
                nothing: dict[str, Any] = dict.fromkeys(MODES)
                found[name] = Contender({"forward": forward, "train": train}, nothing, nothing, by_inputs.reshape(-1))
            else:
                theirs, run = peers.PEERS[name](cell, params)
                found[name] = compiled(run, theirs, xs, weights)
        except peers.Absent as why:
            absent[name] = str(why)
    return found, absent


def difference(got: Contender, plain: Contender) -> float:
    """Of the gradient that is compared, relative to its largest entry."""
    largest = float(jnp.max(jnp.abs(plain.gradient)))
    return float(jnp.max(jnp.abs(jnp.asarray(got.gradient) - plain.gradient))) / largest


def rows(config: Config, cell: str, shape: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    found, absent = contenders(config, cell, shape)
    differences = {name: difference(each, found[PLAIN]) for name, each in found.items()}
    wrong = [f"{name} by {d:.0e}" for name, d in differences.items() if not d < 1e-3]
    if wrong:
        raise common.UsageError(f"not timed: gradients differ from lax.scan's: {', '.join(wrong)} ({cell}, {shape})")
    table = []
    for mode in MODES:
        timings = jaxrnn.analysis.interleaved(
            {name: each.calls[mode] for name, each in found.items()}, rounds=config.rounds
        )
        for name, each in found.items():
            timing = timings[name]
            table.append(
                {
                    "cell": cell,
                    "shape": shape,
                    "mode": mode,
                    "contender": name,
                    "seconds": timing.median,
                    "low": timing.low,
                    "high": timing.high,
                    "speed": timings[PLAIN].median / timing.median,
                    "temp_bytes": each.temp_bytes[mode],
                    "compile_seconds": each.compile_seconds[mode],
                    "difference": differences[name],
                }
            )
    return table, absent


def show(records: list[dict[str, Any]], console: Console) -> None:
    for cell in dict.fromkeys(r["cell"] for r in records):
        table = Table(title=f"{cell}: speed relative to {PLAIN} (higher is faster), median of interleaved runs")
        for column in ("T,B,D,H", "contender", "forward", "train", "train ms", "quartiles", "MiB", "compile s"):
            table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
        mine = [r for r in records if r["cell"] == cell]
        forward = {(r["shape"], r["contender"]): r for r in mine if r["mode"] == "forward"}
        train = [r for r in mine if r["mode"] == "train"]
        for n, r in enumerate(train):
            needed, taken = r["temp_bytes"], r["compile_seconds"]
            table.add_row(
                r["shape"],
                r["contender"],
                f"{forward[r['shape'], r['contender']]['speed']:.2f}x",
                f"{r['speed']:.2f}x",
                f"{1e3 * r['seconds']:.1f}",
                f"{1e3 * r['low']:.0f}-{1e3 * r['high']:.0f}",
                "-" if needed is None else f"{needed / 2**20:.1f}",
                "-" if taken is None else f"{taken:.1f}",
                end_section=n + 1 == len(train) or train[n + 1]["shape"] != r["shape"],
            )
        console.print(table)


def draw_bars(records: list[dict[str, Any]]) -> Any:
    def draw(panels: Any) -> None:
        for axes, mode in zip(panels, MODES, strict=True):
            mine = [r for r in records if r["mode"] == mode]
            groups = list(dict.fromkeys((r["cell"], r["shape"]) for r in mine))
            names = list(dict.fromkeys(r["contender"] for r in mine))
            width = 0.8 / len(names)
            for n, name in enumerate(names):
                at = {(r["cell"], r["shape"]): r["speed"] for r in mine if r["contender"] == name}
                places = [k + n * width for k, g in enumerate(groups) if g in at]
                axes.bar(places, [at[g] for g in groups if g in at], width, label=name, color=f"C{n}")
            axes.axhline(1, color="0.3", lw=1)
            axes.set_xticks(range(len(groups)), [f"{c}\n{s}" for c, s in groups], rotation=30, ha="left", fontsize=7)
            axes.set(title=mode, ylabel=f"speed, {PLAIN} = 1")
        panels[0].legend(fontsize=7)

    return draw


def main(config: Config) -> None:
    console = common.console()
    for text in config.scans:
        common.scan_named(text)
    unknown = [name for name in config.peers if name not in (*peers.PEERS, "torch")]
    if unknown or not config.cells or not config.shapes:
        known = ", ".join([*peers.PEERS, "torch"])
        raise common.UsageError(f"--peers {unknown} are not known; known are {known}; name a cell and a shape at least")
    if config.rounds < 1:
        raise common.UsageError(f"--rounds must be at least 1, got {config.rounds}")
    work = [(cell, shape) for cell in config.cells for shape in config.shapes if sizes_of(shape)]
    about = {"experiment": "speed", **dataclasses.asdict(config), "device": jax.devices()[0].device_kind}
    del about["run"]
    with jaxrnn.training.Run(config.run, about) as run:
        done = {(r["cell"], r["shape"]): r for r in jaxrnn.training.read_metrics(run.folder)}
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("", total=len(work))
            for cell, shape in work:
                bar.update(task, description=f"{cell} {shape}")
                if (cell, shape) not in done:
                    table, absent = rows(config, cell, shape)
                    done[cell, shape] = {"cell": cell, "shape": shape, "rows": table, "absent": absent}
                    run.log(done[cell, shape])
                bar.advance(task)
        records = [row for each in work for row in done[each]["rows"]]
        show(records, console)
        for cell in config.cells:
            for name, why in done[cell, config.shapes[0]]["absent"].items():
                console.print(f"{cell}, {name}: left out; {why}")
        run.write("table.csv", common.as_csv(records, list(records[0])))
        common.picture(run.folder / "speed.png", draw_bars(records), columns=2)
        console.print(f"written: {run.folder / 'table.csv'} and speed.png beside it")


if __name__ == "__main__":
    common.launch(main, Config, __doc__ or "")
