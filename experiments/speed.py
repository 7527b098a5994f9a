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
torch==2.13.0 bring them. Writes table.csv and speed.png; every shape is a checkpoint to go on from.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from rich.console import Console

import jaxrnn as rnn
from experiments import harness, peers
from experiments.word_model import word_model

PLAIN = "lax.scan"
MODES = ("forward", "train")
SMALL = ("1000,1,64,64", "1000,1,64,128", "200,4,128,256", "200,16,128,256")
LARGE = ("100,32,128,256", "100,64,256,512", "50,128,128,512")
sizes_of = partial(harness.whole_numbers, "--shapes", "T,B,D,H", "200,4,128,256")
PEERS = (*peers.PEERS, "torch")


@dataclasses.dataclass(frozen=True)
class Config:
    cells: tuple[Literal["lstm", "gru", "elman", "model"], ...] = ("lstm",)  # model: a whole net as one cell.
    shapes: tuple[str, ...] = (*SMALL, *LARGE)  # T,B,D,H: steps, batch, inputs, units.
    scans: tuple[str, ...] = ("fissioned", "checkpointed(50, inner=fissioned)")
    """Our cell under these strategies, and always under lax.scan: times are relative to it."""
    peers: tuple[str, ...] = PEERS  # Other people's layers; "textbook": as tutorials write it, under lax.scan.
    rounds: int = 9  # Timed runs of each contender, interleaved, after one that does not count.
    run: str = "runs/speed"  # Run folder: table.csv, speed.png, metrics.jsonl.


@dataclasses.dataclass
class Contender:
    """Something to time, forward and train, and what it says about itself."""

    calls: dict[str, Any]
    gradient: Any  # to compare: by the inputs, or by the parameters where those are the same for all
    temp_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    compile_seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def ours(cell: rnn.Cell, texts: tuple[str, ...]) -> dict[str, peers.Run]:
    """The cell under lax.scan and each strategy."""
    run = lambda scan, params, xs: rnn.unroll(cell, params, xs, scan=scan)[1]
    return {text: partial(run, harness.scan_named(text)) for text in dict.fromkeys((PLAIN, *texts))}


def compiled(run: peers.Run, params: Any, xs: Any, weights: Any, compare: int = 1) -> Contender:
    """Compiles the forward pass and the train step; the inputs are data, so their gradient is not part of it."""
    loss = lambda params, xs: jnp.sum(run(params, xs) * weights)
    made = Contender({}, jax.jit(jax.grad(loss, argnums=compare))(params, xs))
    for mode, fn in zip(MODES, (loss, jax.value_and_grad(loss)), strict=True):
        start = time.perf_counter()
        program = jax.jit(fn).lower(params, xs).compile()
        made.compile_seconds[mode] = time.perf_counter() - start
        made.temp_bytes[mode] = program.memory_analysis().temp_size_in_bytes
        made.calls[mode] = partial(program, params, xs)
    return made


def contenders(config: Config, cell: str, shape: str) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that can be had, by name; and why the others cannot."""
    steps, batch, inputs, units = sizes_of(shape)
    if cell == "model":
        model = word_model(steps, batch, inputs, units)
        runs = ours(model.cell, config.scans) | {"by hand": model.by_hand}
        mean = 1 / (steps * batch)
        return {name: compiled(run, model.params, model.xs, mean, compare=0) for name, run in runs.items()}, {}
    xs = jax.random.normal(jax.random.key(0), (steps, batch, inputs))
    weights = jax.random.normal(jax.random.key(1), (steps, batch, units))
    layer = harness.CELLS[cell](units)
    params = layer.init(jax.random.key(2), xs[0])
    found = {name: compiled(run, params, xs, weights) for name, run in ours(layer, config.scans).items()}
    absent = {}
    for name in config.peers:
        try:
            if name == "torch":
                found[name] = Contender(*peers.torch(cell, params, xs, weights))
            else:
                theirs, run = peers.PEERS[name](cell, params)
                found[name] = compiled(run, theirs, xs, weights)
        except peers.Absent as why:
            absent[name] = str(why)
        except RuntimeError as error:  # what compilers and devices raise
            absent[name] = f"fails here: {str(error).splitlines()[0]}"
    return found, absent


def rows(config: Config, cell: str, shape: str) -> dict[str, Any]:
    """Every contender whose gradient is that of `lax.scan`, timed."""
    found, absent = contenders(config, cell, shape)
    apart = {name: harness.difference(each.gradient, found[PLAIN].gradient) for name, each in found.items()}
    for name in [name for name, by in apart.items() if not by < 1e-3]:
        absent[name] = f"its gradient differs from {PLAIN}'s by {apart[name]:.0e}"
        if name not in config.peers:
            raise harness.UsageError(f"not timed: {name} at {shape}; {absent[name]}")
        del found[name]
    table = []
    for mode in MODES:
        timings = rnn.analysis.interleaved({n: each.calls[mode] for n, each in found.items()}, rounds=config.rounds)
        for name, each in found.items():
            row = {"cell": cell, "shape": shape, "mode": mode, "contender": name}
            row |= {"seconds": timings[name].median, "low": timings[name].low, "high": timings[name].high}
            row |= {"speed": timings[PLAIN].median / timings[name].median, "temp_bytes": each.temp_bytes.get(mode)}
            table.append(row | {"compile_seconds": each.compile_seconds.get(mode), "difference": apart[name]})
    return {"rows": table, "absent": absent}


def show(records: list[dict[str, Any]], console: Console) -> None:
    forward = {(r["cell"], r["shape"], r["contender"]): r for r in records if r["mode"] == "forward"}
    for cell in dict.fromkeys(r["cell"] for r in records):
        lines = [
            {
                "T,B,D,H": r["shape"],
                "contender": r["contender"],
                "forward": f"{forward[cell, r['shape'], r['contender']]['speed']:.2f}x",
                "train": f"{r['speed']:.2f}x",
                "train ms": f"{1e3 * r['seconds']:.1f}",
                "quartiles": f"{1e3 * r['low']:.0f}-{1e3 * r['high']:.0f}",
                "MiB": harness.text(r["temp_bytes"] and r["temp_bytes"] / 2**20, ".1f"),
                "compile s": harness.text(r["compile_seconds"], ".1f"),
            }
            for r in records
            if r["cell"] == cell and r["mode"] == "train"
        ]
        title = f"{cell}: speed relative to {PLAIN} (higher is faster), median of interleaved runs"
        harness.print_table(console, title, lines, left=["contender"], section="T,B,D,H")


def draw_bars(records: list[dict[str, Any]], panels: Any) -> None:
    names = list(dict.fromkeys(r["contender"] for r in records))
    groups = list(dict.fromkeys((r["cell"], r["shape"]) for r in records))
    width = 0.8 / len(names)
    for axes, mode in zip(panels, MODES, strict=True):
        for n, name in enumerate(names):
            mine = [r for r in records if r["mode"] == mode and r["contender"] == name]
            places = [groups.index((r["cell"], r["shape"])) + (n - (len(names) - 1) / 2) * width for r in mine]
            axes.bar(places, [r["speed"] for r in mine], width, label=name, color=f"C{n % 10}", hatch="//" * (n // 10))
        axes.axhline(1, color="0.3", lw=1)
        axes.set_xticks(range(len(groups)), [f"{c}\n{s}" for c, s in groups], fontsize=7)
        axes.set(title=mode, ylabel=f"speed, {PLAIN} = 1")
    # Below both panels, where it covers no bar.
    panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)


def main(config: Config) -> None:
    console = harness.console()
    for text in config.scans:
        harness.scan_named(text)
    if (unknown := [name for name in config.peers if name not in PEERS]) or not config.cells or not config.shapes:
        known = ", ".join(PEERS)
        raise harness.UsageError(f"--peers {unknown} are not known; known are {known}; name a cell, a shape at least")
    if config.rounds < 1:
        raise harness.UsageError(f"--rounds must be at least 1, got {config.rounds}")
    work = [{"cell": cell, "shape": shape} for cell in config.cells for shape in config.shapes if sizes_of(shape)]
    about = {k: v for k, v in dataclasses.asdict(config).items() if k != "run"}
    with rnn.training.Run(config.run, {"experiment": "speed", **about, "device": jax.devices()[0].device_kind}) as run:
        flat = lambda done: [row for record in done for row in record["rows"]]
        write = lambda done: run.write("table.csv", harness.as_csv(flat(done)))
        found = harness.records(run, work, partial(rows, config), console, then=write)
        show(flat(found), console)
        absent = {(r["cell"], name): why for r in reversed(found) for name, why in r["absent"].items()}
        for (cell, name), why in absent.items():
            console.print(f"{cell}, {name}: left out; {why}")
        harness.picture(run.folder / "speed.png", partial(draw_bars, flat(found)), columns=2)
        console.print(f"written: {run.folder / 'table.csv'} and speed.png beside it")


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
