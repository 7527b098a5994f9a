"""A character model of the Python standard library, by backpropagation through time.

Trains on the library of the Python that runs it (no download), holds out some modules, and compares
bits per character on those with gzip and xz: with the parameters as trained, and learning on as it
reads. One cell is the whole model: embedding, recurrent layers, readout, and in training the loss
too, written for one time step; a scan runs it.

    python -m experiments.char_lm                                     trains, reports, completes prompts
    python -m experiments.char_lm --complete "def __init__(self"      completes from the saved run
    python -m experiments.char_lm --export runs/char_lm/model         writes it as programs that run without jaxrnn
    python -m experiments.char_lm --devices 4                         shares every batch among four devices

Stopped by Ctrl-C or kill -9, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.console import Console

import jaxrnn as rnn
from experiments import devices, harness, scoring
from experiments.data import shuffled, standard_library, symbols

SYMBOLS = 256  # UTF-8 bytes
READ = 2600 * 64 * 64  # bytes to read in training, whatever the window and the batch
PROMPTS = ("def __init__(self", "import ", "class Test", "    for i in range(", "    if not isinstance(")


@dataclasses.dataclass(frozen=True)
class Config(devices.Devices):
    cell: harness.CellName = "gru"  # Recurrent cell.
    size: int = 256  # Hidden units per layer.
    layers: int = 1  # Recurrent layers, one upon another.
    embedding: int = 64  # Features per character.
    dropout: float = 0.0  # Share of each layer's outputs dropped in training, the same ones for a whole window.
    scan: str = "fissioned"
    """How the loop runs: lax.scan, fissioned, checkpointed(8, inner=fissioned), truncated(16, inner=fissioned), ..."""
    memory: str | None = None  # Bytes a gradient may take, e.g. 64MiB: the planner picks the scan, and prints its plan.
    window: int = 64  # Time steps per gradient; the state is carried from window to window.
    batch: int = 64  # Streams of text read in parallel.
    steps: int | None = None  # Training steps, a window each; if not given, 10.6 million bytes are read (2600 steps).
    learning_rate: float = 5e-3  # Adam's peak rate, after a warm-up and before a cosine decay.
    piece: int = 2048  # The training text is read in pieces of so many bytes, in random order, each from a new state.
    seed: int = 0  # Seeds parameters, the order of the pieces, and dropout.
    evaluations: int = 5  # How many times to evaluate on the held-out modules, the end included.
    save_every: int = 250  # Steps between checkpoints.
    run: str = "runs/char_lm"  # Run folder: configuration, metrics.jsonl, checkpoints, curve.png.
    complete: str | None = None  # Complete this prompt from the saved run instead of training.
    export: str | None = None  # Write the net there as a saved model (in place of one), trained first if need be.
    length: int = 200  # How many bytes to complete.
    temperature: float = 0.5  # Below 1 the completion is bolder, above 1 wilder.


# No part of what a run is.
NOT_TRAINING = ("run", "complete", "export", "length", "temperature", "save_every", *devices.NOT_TRAINING)


def model(config: Config) -> tuple[rnn.Cell, rnn.Cell]:
    """One step of the net, byte [*B] -> logits [*B, 256]; and the same with its loss, (byte, next) -> nats [*B]."""
    recurrent = [harness.CELLS[config.cell](config.size) for _ in range(config.layers)]
    if config.dropout:
        recurrent = [rnn.dropout(cell, config.dropout, mask="sequence") for cell in recurrent]
    embed = nn.Embed(SYMBOLS, config.embedding, embedding_init=nn.initializers.normal(1.0))
    net = rnn.stack(rnn.layer(embed), *recurrent, rnn.layer(nn.Dense(SYMBOLS)))
    return net, rnn.with_loss(net, optax.softmax_cross_entropy_with_integer_labels)


def start(config: Config) -> tuple[rnn.Cell, rnn.Cell, Any, Any, Any]:
    """(net, net with loss, first parameters, optimizer, first state): all that the settings determine."""
    with harness.usage():
        net, cell = model(config)
        params = net.init(jax.random.key(config.seed), jax.ShapeDtypeStruct((), jnp.int32))
        optimizer = rnn.training.adam(config.learning_rate, steps=config.steps)
        return net, cell, params, optimizer, cell.initial_state(params, (config.batch,))


def loss_fn(cell: rnn.Cell, scan: rnn.Scan, params: Any, batch: Any, key: Any, state: Any) -> Any:
    """Mean nats per byte of one window, and the state for the next."""
    (inputs, targets, starts), begins = batch
    state, nats = rnn.unroll(cell, params, (inputs, targets), state, resets=starts | begins, key=key, scan=scan)
    return (loss := rnn.losses.reduced(nats)), state, {"bits": scoring.bits(loss)}


def announce(config: Config, cell: rnn.Cell, params: Any, scans: dict[str, rnn.Scan], first: Any, out: Console) -> None:
    """What the loop engine makes of a step, the planner of the budget, and what a gradient takes."""
    x = (jax.ShapeDtypeStruct((config.batch,), jnp.int32),) * 2
    out.print(f"one step under jaxrnn.scan\n{rnn.analysis.explain(cell, params, x)}", markup=False, highlight=False)
    if config.memory is not None:
        plans = rnn.analysis.plan(cell, params, x, config.window, config.memory)
        out.print(f"plans for a gradient\n{plans}", markup=False, highlight=False)
    needs = []
    for name, scan in (scans | {"plain lax.scan": lax.scan}).items():
        loss = lambda p, scan=scan: loss_fn(cell, scan, p, *first)[0]
        with harness.usage():  # a budget that no plan meets
            needs.append(f"{name} {harness.mebibytes(rnn.analysis.temp_bytes(jax.grad(loss), params))}")
    out.print(f"scratch memory of one gradient: {'; '.join(needs)}")


def train(config: Config, console: Console) -> None:
    with harness.usage():
        scan = rnn.within(config.memory) if config.memory is not None else harness.scan_named(config.scan)
    chosen = config.scan if config.memory is None else f"within({config.memory})"
    net, cell, params, optimizer, state = start(config)
    mesh = devices.mesh_of(config, config.batch)
    text, held_out = standard_library()
    with harness.usage():
        pieces = symbols(shuffled(text, config.piece, config.seed))
        batches = rnn.training.Streams(pieces, batch=config.batch, window=config.window)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_TRAINING}
    data = {"train_text": text.fingerprint, "held_out_text": held_out.fingerprint}
    with rnn.training.Run(config.run, {"experiment": "char_lm", **settings, **data}) as run:
        size = sum(a.size for a in jax.tree.leaves(params))
        about = f"{text.characters:,} characters to train on, {held_out.characters:,} held out; {size:,} parameters"
        console.print(f"{about}; {config.cell} under {chosen}")
        if devices.speaks():
            announce(config, cell, params, {chosen: scan}, (batches(0), jax.random.key(0), state), console)
        final = rnn.training.fit(
            partial(loss_fn, cell, scan),
            devices.placed(config, cell, params, mesh, console),
            batches,
            steps=config.steps,
            optimizer=optimizer,
            key=jax.random.key(config.seed + 1),
            carry=state,
            run=run,
            evaluate=scoring.as_trained(cell, held_out, mesh),
            evaluate_every=max(1, config.steps // max(1, config.evaluations)),
            save_every=config.save_every,
            mesh=mesh,
        )
        trained = rnn.training.gathered(final.params)
        learned = scoring.learning_on(cell, trained, held_out, scan, console)
        name, read = f"{config.cell} {config.size}", config.batch * config.window
        scoring.report(name, run, read, held_out, learned, console)
    for prompt in PROMPTS if devices.speaks() else ():
        console.rule(repr(prompt), align="left")
        console.print(prompt + completion(config, net, trained, prompt), markup=False)


def completion(config: Config, net: rnn.Cell, params: Any, prompt: str) -> str:
    """The prompt's continuation: the state after the prompt, then `generate`."""
    given = np.frombuffer(("\n" + prompt).encode(), np.uint8).astype(np.int32)
    state, _ = rnn.unroll(net, params, given[:-1], net.initial_state(params, ()))
    run = jax.jit(partial(rnn.generate, net, steps=config.length, sample=rnn.temperature(config.temperature)))
    _, produced = run(params, state, given[-1], key=jax.random.key(config.seed))
    return bytes(np.asarray(produced).astype(np.uint8)).decode(errors="replace")


def from_run(config: Config) -> tuple[Config, rnn.Cell, Any]:
    """A run's recorded settings, whatever is on the command line, with its net and its parameters."""
    recorded = rnn.training.read_config(config.run)
    if recorded.get("experiment") != "char_lm":
        raise harness.UsageError(f"{config.run} is the folder of another experiment; give the run folder of a char_lm")
    known = {f.name for f in dataclasses.fields(Config)} - set(NOT_TRAINING)
    saved = dataclasses.replace(config, **{k: v for k, v in recorded.items() if k in known})
    net, _, params, optimizer, state = start(saved)
    with rnn.training.Run(config.run, read_only=True) as run:
        restored = run.restore(rnn.training.create(params, optimizer, jax.random.key(0), state))
    return saved, net, restored.params


def complete_from_run(config: Config, console: Console) -> None:
    if not config.complete or config.length < 1:
        raise harness.UsageError("--complete needs some text to go on from, and --length at least 1")
    with harness.usage():
        rnn.temperature(config.temperature)
    _, net, params = from_run(config)
    console.print(config.complete + completion(config, net, params, config.complete), markup=False)


def export_from_run(config: Config, folder: str, console: Console) -> None:
    saved, net, params = from_run(config)
    settings = {k: v for k, v in dataclasses.asdict(saved).items() if k not in NOT_TRAINING}
    byte = jax.ShapeDtypeStruct((), jnp.int32)
    if not devices.speaks():  # of several processes the first one writes
        return
    path = rnn.serving.export(net, params, folder, byte, config=settings, overwrite=True)
    console.print(f"{path}: weights.npz and programs, for jax and numpy alone (experiments/README.md)", markup=False)


def main(config: Config) -> None:
    if config.steps is None:
        config = dataclasses.replace(config, steps=max(1, round(READ / max(config.window * config.batch, 1))))
    devices.join(config)
    console = devices.console()
    if config.complete is not None:
        return complete_from_run(config, console)
    if config.export is None or not harness.is_finished(config.run):
        train(config, console)
    if config.export is not None:
        export_from_run(config, config.export, console)


if __name__ == "__main__":
    harness.launch(main, Config, __doc__)
