"""One process of several that train together, as `test_processes` starts them: `count index port folder what`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax

COUNT, INDEX, PORT = map(int, sys.argv[1:4])
FOLDER, WHAT = Path(sys.argv[4]), sys.argv[5]
# Before anything asks JAX for an array. A process that is gone is missed soon.
jax.distributed.initialize(f"127.0.0.1:{PORT}", COUNT, INDEX, heartbeat_timeout_seconds=15)

import jaxrnn as rnn  # noqa: E402
from tests.training import on_devices  # noqa: E402
from tests.training.on_devices import MODEL, given, on  # noqa: E402
from tests.training.problems import bits  # noqa: E402


def says(check, **found):
    print(json.dumps({"check": check, "process": INDEX, **found}), flush=True)


def of_this_process(state):
    """The bits of what of a state lies here."""
    return bits([[s.data for s in leaf.addressable_shards] for leaf in jax.tree.leaves(state.params)])


def trains():
    """Each way to lay the weights out, cut short and gone on with to the bit, and one device's checkpoint."""
    for name in ("replicated", "fsdp", "tensor"):
        read = []
        args = given(**on(name))
        part = args["batches"].part

        def noted(part_of_it, part=part, read=read):
            read.append(part_of_it)
            return part(part_of_it)

        args["batches"].part = noted
        state = rnn.training.fit(**args, run=FOLDER / name)
        rnn.training.fit(**given(**on(name), steps=on_devices.HALF), run=FOLDER / f"{name} cut")
        again = rnn.training.fit(**given(**on(name)), run=FOLDER / f"{name} cut")
        losses = [record["loss"] for record in rnn.training.read_metrics(FOLDER / name)]
        same = of_this_process(state) == of_this_process(again)
        says(name, losses=losses, same_bits=same, read=list(read[0]), step=int(state.step))
    state = rnn.training.fit(**given(**on("fsdp")), run=FOLDER / "one device")
    says("from one device", losses=[r["loss"] for r in rnn.training.read_metrics(FOLDER / "one device")])
    with rnn.training.Run(FOLDER / "fsdp", read_only=True) as run:
        steps = run.steps()
    says("files", steps=steps, lines=len(rnn.training.read_metrics(FOLDER / "fsdp")))


class Counting:
    """An iterator that knows its place; each process has its own."""

    def __init__(self):
        self.n = 0

    def __next__(self):
        self.n += 1
        (inputs, targets), begins = given()["batches"](self.n + 10 * INDEX)
        return (inputs[:, :4], targets[:, :4]), begins[:, :4]

    def get_state(self):
        return {"n": self.n, "of": INDEX}

    def set_state(self, state):
        assert state["of"] == INDEX
        self.n = state["n"]


def iterates():
    whole = rnn.training.fit(**given(**on("fsdp"), batches=Counting()))
    rnn.training.fit(**given(**on("fsdp"), batches=Counting(), steps=on_devices.HALF), run=FOLDER / "iterators")
    again = rnn.training.fit(**given(**on("fsdp"), batches=Counting()), run=FOLDER / "iterators")
    says("iterators", same_bits=of_this_process(whole) == of_this_process(again))


def interrupts():
    """Only the second process hears the signal, while it reads a batch: all stop after the same step, saved."""
    batches = rnn.training.Streams((on_devices.SERIES[:-1], on_devices.SERIES[1:]), batch=8, window=10)

    class Interrupting:
        part = lambda self, part: Interrupting.Part(batches.part(part))
        specs = staticmethod(batches.specs)
        __call__ = batches.__call__

        class Part:
            def __init__(self, inner):
                self.inner = inner

            def __call__(self, step):
                if step == 4 and INDEX == 1:
                    signal.raise_signal(signal.SIGTERM)
                return self.inner(step)

    try:
        rnn.training.fit(**given(**on("fsdp"), batches=Interrupting()), run=FOLDER / "interrupted")
    except rnn.training.Interrupted as stopped:
        says("interrupted", text=str(stopped), signum=stopped.signum, step=int(stopped.state.step))


def of_another_size(step):
    xs = np.zeros((10, 4 + 4 * INDEX, 1), "f4")
    return (xs, xs), np.zeros(xs.shape[:2], bool)


def disagrees():
    cases = {
        "steps": lambda: given(**on("fsdp"), steps=12 + INDEX),
        "key": lambda: given(**on("fsdp"), key=jax.random.key(INDEX)),
        "weights": lambda: given(mesh=on("fsdp")["mesh"], params=MODEL.init(jax.random.key(INDEX), np.zeros(1, "f4"))),
        "no mesh": given,
        "batch": lambda: given(**on("fsdp"), batches=of_another_size, run=None),
    }
    for name, args in cases.items():
        try:
            rnn.training.fit(**{"run": FOLDER / "refused"} | args())
        except ValueError as error:
            says(f"refused: {name}", error=str(error), there=(FOLDER / "refused").exists())
    try:
        rnn.training.Run(FOLDER / "refused", {"size": INDEX})
    except ValueError as error:
        says("refused: config", error=str(error), there=(FOLDER / "refused").exists())
    (FOLDER / "strange").mkdir(exist_ok=True)
    (FOLDER / "strange" / "thesis.txt").touch()
    try:
        rnn.training.Run(FOLDER / "strange")
    except rnn.training.RunError as error:
        says("refused: folder", error=str(error), there=True)


class Slow:
    """Batches that take their time, so that a signal can come between them."""

    def __init__(self, batches):
        self.batches = batches
        self.specs = batches.specs

    def part(self, part):
        return Slow(self.batches.part(part))

    def __call__(self, step):
        time.sleep(0.05)
        return self.batches(step)


def for_ever():
    """Trains until it is killed, or to the end where one is given."""
    steps = int(os.environ.get("STEPS", "100000"))
    args = given(**on("fsdp"), steps=steps, save_every=5, log_every=5)
    state = rnn.training.fit(**args | {"batches": Slow(args["batches"])}, run=FOLDER / "killed")
    says("to the end", step=int(state.step), weights=float(optax.tree.norm(state.params)))


if __name__ == "__main__":
    checks = [trains, iterates, interrupts, disagrees, for_ever]
    {check.__name__: check for check in checks}[WHAT]()
