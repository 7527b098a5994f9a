"""A character model of the Python standard library, by backpropagation through time.

Trains on the library of the Python that runs it (no download), holds out some modules, and compares
bits per character on those with gzip and xz: with the parameters as trained, and learning on as it
reads. One cell is the whole model: embedding, recurrent layers, readout, and in training the loss
too, written for one time step; a scan runs it.

    python -m experiments.char_lm                                     trains, reports, completes prompts
    python -m experiments.char_lm --complete "def __init__(self"      completes from the saved run

Stopped by Ctrl-C or kill -9, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxrnn
from experiments import common
from experiments.data import Text, shuffled, standard_library

SYMBOLS = 256  # UTF-8 bytes
READ = 2600 * 64 * 64  # bytes to read in training, whatever the window and the batch
PROMPTS = ("def __init__(self", "import ", "class Test", "    for i in range(", "    if not isinstance(")


@dataclasses.dataclass(frozen=True)
class Config:
    cell: common.CellName = "gru"
    """Recurrent cell."""
    size: int = 256
    """Hidden units per layer."""
    layers: int = 1
    """Recurrent layers, one upon another."""
    embedding: int = 64
    """Features per character."""
    dropout: float = 0.0
    """Share of each layer's outputs dropped in training, the same ones for a whole window."""
    scan: str = "fissioned"
    """How the loop runs: lax.scan, fissioned, checkpointed(8, inner=fissioned), truncated(16, inner=fissioned), ..."""
    memory: str | None = None
    """Scratch memory that a gradient may take, e.g. 64MiB: the planner picks the scan then, and prints its plan."""
    window: int = 64
    """Time steps per gradient; the state is carried from window to window."""
    batch: int = 64
    """Streams of text read in parallel."""
    steps: int | None = None
    """Training steps, one window each; if not given as many as read 10.6 million bytes (2600 by default)."""
    learning_rate: float = 5e-3
    """Adam's peak rate, after a warm-up and before a cosine decay."""
    piece: int = 2048
    """The training text is cut into pieces of so many bytes, read in random order; the state starts anew at each."""
    seed: int = 0
    """Seeds parameters, the order of the pieces, and dropout."""
    evaluations: int = 5
    """How many times to evaluate on the held-out modules, the end included."""
    save_every: int = 250
    """Steps between checkpoints."""
    run: str = "runs/char_lm"
    """Run folder: configuration, metrics.jsonl, checkpoints, curve.png."""
    complete: str | None = None
    """Complete this prompt from the saved run instead of training."""
    length: int = 200
    """How many bytes to complete."""
    temperature: float = 0.5
    """Below 1 the completion is bolder, above 1 wilder."""


# What does not change the training is not part of what a run is.
_NOT_TRAINING = ("run", "complete", "length", "temperature", "save_every")


def model(config: Config) -> tuple[jaxrnn.Cell, jaxrnn.Cell]:
    """One step of the net, byte [*B] -> logits [*B, 256]; and the same with its loss, (byte, next) -> nats [*B]."""
    recurrent = [common.CELLS[config.cell](config.size) for _ in range(config.layers)]
    if config.dropout:
        recurrent = [jaxrnn.dropout(cell, config.dropout, mask="sequence") for cell in recurrent]
    net = jaxrnn.stack(
        jaxrnn.layer(nn.Embed(SYMBOLS, config.embedding, embedding_init=nn.initializers.normal(1.0))),
        *recurrent,
        jaxrnn.layer(nn.Dense(SYMBOLS)),
    )
    return net, jaxrnn.with_loss(net, optax.softmax_cross_entropy_with_integer_labels)


def symbols(text: Text) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input, target, whether a module begins) for every byte; a module's first byte follows a newline."""
    targets = np.frombuffer(text.content, np.uint8).astype(np.int32)
    inputs = np.concatenate([[ord("\n")], targets[:-1]]).astype(np.int32)
    return np.where(text.starts, ord("\n"), inputs).astype(np.int32), targets, text.starts


def loss_fn(trained: jaxrnn.Cell, scan: jaxrnn.Scan, params: Any, batch: Any, key: Any, state: Any) -> Any:
    """Mean nats per byte of one window, and the state for the next."""
    (inputs, targets, starts), begins = batch
    state, nats = jaxrnn.unroll(trained, params, (inputs, targets), state, resets=starts | begins, key=key, scan=scan)
    loss = jaxrnn.losses.reduced(nats)
    return loss, state, {"bits": jaxrnn.losses.bits_per_character(loss)}


def streams_of(text: Text, streams: int, window: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """All of a text as parallel streams, padded at the end: (inputs, targets) [T, B], starts [T, B], lengths [B]."""
    inputs, targets, starts = symbols(text)
    streams = min(streams, len(targets))
    steps = -(-len(targets) // (streams * window)) * window
    pad = [(0, steps * streams - len(targets))]
    columns = [np.pad(a, pad).reshape(streams, steps).T for a in (inputs, targets, starts)]
    lengths = np.clip(len(targets) - steps * np.arange(streams), 0, steps)
    return (columns[0], columns[1]), columns[2], lengths


def evaluator(trained: jaxrnn.Cell, text: Text) -> Any:
    """params -> bits per character over all of the text, the parameters as they are."""
    xs, starts, lengths = streams_of(text, 128, 1)

    @jax.jit
    def total_nats(params: Any) -> jax.Array:
        _, nats = jaxrnn.unroll(trained, params, xs, resets=starts, lengths=lengths)
        return jaxrnn.losses.reduced(nats, lengths=lengths, reduction="sum")

    return lambda params: {
        "held_out_bits": jaxrnn.losses.bits_per_character(float(total_nats(params)), text.characters)
    }


def learning_on(trained: jaxrnn.Cell, params: Any, text: Text, scan: jaxrnn.Scan, console: Console) -> float:
    """Bits per character where the net goes on learning from the text as it reads, each window after predicting it.

    Every byte is predicted before it is learned from, so this is a code length that a decoder could
    follow, as it is for gzip and xz, which learn a text's words as they go and know none before.
    Krause et al. 2018, "Dynamic evaluation of neural sequence models".
    """
    window = 64
    (inputs, targets), starts, lengths = streams_of(text, 8, window)
    counted = np.arange(len(inputs))[:, None] < lengths

    def loss(params: Any, batch: Any, key: Any, state: Any) -> Any:
        del key
        xs, starts, counted = batch
        state, nats = jaxrnn.unroll(trained, params, xs, state, resets=starts, scan=scan)
        return (
            jaxrnn.losses.reduced(nats, mask=counted),
            state,
            {"nats": jaxrnn.losses.reduced(nats, mask=counted, reduction="sum")},
        )

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, b2=0.99))
    train_step = jaxrnn.training.make_train_step(loss, optimizer)
    first = trained.initial_state(params, (inputs.shape[1],))
    state = jaxrnn.training.create(params, optimizer, jax.random.key(0), first)
    nats = 0.0
    for start in track(range(0, len(inputs), window), "reading the held-out text", console=console, transient=True):
        part = slice(start, start + window)
        state, metrics = train_step(state, ((inputs[part], targets[part]), starts[part], counted[part]))
        nats += float(metrics["nats"])
    return jaxrnn.losses.bits_per_character(nats, text.characters)


def complete(net: jaxrnn.Cell, params: Any, prompt: str, length: int, temperature: float, seed: int = 0) -> str:
    """The prompt's continuation: the state after the prompt, then `generate`."""
    given = np.frombuffer(("\n" + prompt).encode(), np.uint8).astype(np.int32)
    state = net.initial_state(params, ())
    state, _ = jaxrnn.unroll(net, params, given[:-1], state)
    sample = jaxrnn.temperature(temperature)
    run = jax.jit(partial(jaxrnn.generate, net, steps=length, sample=sample))
    _, produced = run(params, state, given[-1], key=jax.random.key(seed))
    return bytes(np.asarray(produced).astype(np.uint8)).decode(errors="replace")


def start(config: Config) -> tuple[jaxrnn.Cell, jaxrnn.Cell, Any, Any, Any]:
    """(net, net with loss, first parameters, optimizer, first state): all that the settings determine."""
    with common.usage():
        net, trained = model(config)
        params = net.init(jax.random.key(config.seed), jax.ShapeDtypeStruct((), jnp.int32))
        optimizer = jaxrnn.training.adam(config.learning_rate, steps=config.steps)
        state = trained.initial_state(params, (config.batch,))
    return net, trained, params, optimizer, state


def recorded(config: Config, texts: tuple[Text, Text]) -> dict[str, Any]:
    """What run.json says: the settings that shape the training, and the data's fingerprints."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_TRAINING}
    fingerprints = {"train_text": texts[0].fingerprint, "held_out_text": texts[1].fingerprint}
    return {"experiment": "char_lm", **settings, **fingerprints}


def train(config: Config, console: Console) -> None:
    scan, chosen = common.scan_named(config.scan), config.scan
    if config.memory is not None:
        with common.usage():
            scan, chosen = jaxrnn.within(config.memory), f"within({config.memory})"
    net, trained, params, optimizer, state = start(config)
    texts = train_text, held_out = standard_library()
    with common.usage():
        pieces = shuffled(train_text, config.piece, config.seed)
        batches = jaxrnn.training.Streams(symbols(pieces), batch=config.batch, window=config.window)
    with jaxrnn.training.Run(config.run, recorded(config, texts)) as run:
        console.print(
            f"{train_text.characters:,} characters to train on, {held_out.characters:,} held out; "
            f"{sum(a.size for a in jax.tree.leaves(params)):,} parameters; {config.cell} under {chosen}"
        )
        x = (jax.ShapeDtypeStruct((config.batch,), jnp.int32),) * 2
        console.print(
            f"one step under jaxrnn.scan\n{jaxrnn.analysis.explain(trained, params, x)}", markup=False, highlight=False
        )
        if config.memory is not None:
            plans = jaxrnn.analysis.plan(trained, params, x, config.window, config.memory)
            console.print(f"plans for a gradient\n{plans}", markup=False, highlight=False)
        needs = {}
        for name, each in {chosen: scan, "plain lax.scan": lax.scan}.items():
            loss = lambda p, scan=each: loss_fn(trained, scan, p, batches(0), jax.random.key(0), state)[0]
            with common.usage():  # a budget that no plan meets
                needs[name] = common.mebibytes(jaxrnn.analysis.temp_bytes(jax.grad(loss), params))
        console.print("scratch memory of one gradient: " + "; ".join(f"{n} {b}" for n, b in needs.items()))
        evaluate = evaluator(trained, held_out)
        final = jaxrnn.training.fit(
            partial(loss_fn, trained, scan),
            params,
            batches,
            steps=config.steps,
            optimizer=optimizer,
            key=jax.random.key(config.seed + 1),
            carry=state,
            run=run,
            evaluate=evaluate,
            evaluate_every=max(1, config.steps // max(1, config.evaluations)),
            save_every=config.save_every,
        )
        learned = learning_on(trained, final.params, held_out, scan, console)
        report(config, run, held_out, learned, console)
    for prompt in PROMPTS:
        console.rule(repr(prompt), align="left")
        console.print(prompt + complete(net, final.params, prompt, config.length, config.temperature), markup=False)


def report(config: Config, run: jaxrnn.training.Run, held_out: Text, learned: float, console: Console) -> None:
    """The table of bits per character, in results.json too, and the curve."""
    records = jaxrnn.training.read_metrics(run.folder)
    per_step = config.batch * config.window
    trained = [(r["step"] * per_step, r["bits"]) for r in records if "bits" in r]
    checked = [(r["step"] * per_step, r["held_out_bits"]) for r in records if "held_out_bits" in r]
    bits = {
        "gzip -9": 8 * len(gzip.compress(held_out.content, 9)) / held_out.characters,
        "xz -9": 8 * len(lzma.compress(held_out.content, preset=9)) / held_out.characters,
        f"{config.cell} {config.size}, as trained": checked[-1][1],
        f"{config.cell} {config.size}, learning on as it reads": learned,
    }
    run.write("results.json", json.dumps(bits, indent=2) + "\n")
    table = Table(title="bits per character of the held-out modules")
    table.add_column("model", no_wrap=True)
    table.add_column("bits", justify="right")
    for name, value in sorted(bits.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.3f}")
    console.print(table)
    console.print(f"last training windows: {trained[-1][1]:.3f} bits per byte; curve in {run.folder / 'curve.png'}")

    def draw(axes: Any) -> None:
        axes.plot(*zip(*trained, strict=True), lw=1, label="training windows")
        axes.plot(*zip(*checked, strict=True), "o-", label="held out")
        axes.plot(checked[-1][0], learned, "*", ms=12, label="held out, learning on as it reads")
        for name, style in (("gzip -9", "--"), ("xz -9", ":")):
            axes.axhline(bits[name], color="0.4", ls=style, label=name)
        axes.set(xlabel="characters read", ylabel="bits per character", ylim=(1, 4))
        axes.set_title(f"{config.cell} {config.size}")
        axes.legend()

    common.picture(run.folder / "curve.png", draw)


def complete_from_run(config: Config, console: Console) -> None:
    """Restores a run's parameters by its recorded settings, whatever is on the command line beside the prompt."""
    settings = jaxrnn.training.read_config(config.run)
    if settings.get("experiment") != "char_lm":
        raise common.UsageError(f"{config.run} is the folder of another experiment; give the run folder of a char_lm")
    known = {f.name for f in dataclasses.fields(Config)} - set(_NOT_TRAINING)
    saved = dataclasses.replace(config, **{k: v for k, v in settings.items() if k in known})
    with common.usage():
        jaxrnn.temperature(config.temperature)
    if not config.complete or config.length < 1:
        raise common.UsageError("--complete needs some text to go on from, and --length at least 1")
    net, _, params, optimizer, state = start(saved)
    with jaxrnn.training.Run(config.run, settings) as run:
        restored = run.restore(jaxrnn.training.create(params, optimizer, jax.random.key(0), state))
    text = complete(net, restored.params, config.complete, config.length, config.temperature, config.seed)
    console.print(config.complete + text, markup=False, highlight=False)


def main(config: Config) -> None:
    console = common.console()
    if config.steps is None:
        each = max(config.window * config.batch, 1)
        config = dataclasses.replace(config, steps=max(1, round(READ / each)))
    if config.complete is not None:
        complete_from_run(config, console)
    else:
        train(config, console)


if __name__ == "__main__":
    common.launch(main, Config, __doc__ or "")
