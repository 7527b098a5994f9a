"""`fit`: training that can be stopped at any time and goes on as if it had not been."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxrnn import checks
from jaxrnn.training.runs import Run, RunError
from jaxrnn.training.step import LossFn, Metrics, TrainState, create, make_train_step
from jaxrnn.types import Key, Params, State, Tree


class Interrupted(KeyboardInterrupt):
    """`fit` was asked to stop; what was done so far is saved in the run folder, if there is one."""


def fit(
    loss_fn: LossFn,
    params: Params,
    batches: Callable[[int], Tree],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    key: Key,
    carry: State | None = None,
    combine: str = "sum",
    copies: Any = None,
    run: Run | str | os.PathLike[str] | None = None,
    evaluate: Callable[[Params], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    log_every: int = 50,
    save_every: int = 500,
    progress: bool = True,
) -> TrainState:
    """Trains for `steps` steps, or for what is left of them if `run` holds a checkpoint.

        for step in range(done, steps):
            state, metrics = train_step(state, batches(step))

    `batches(step)` gives the step's batch; where it depends on nothing else (see `Streams`), a run
    that was stopped, by Ctrl-C or `kill -9`, and started again ends with bit-identical parameters
    to one that was not. `carry` is the first state of stateful streams; None for independent batches.
    `run`, a folder or a `Run`, receives metrics.jsonl and a checkpoint every `save_every` steps and
    at the end. `evaluate(params)` gives further figures, every `evaluate_every` steps and at the end.
    Ctrl-C (or SIGTERM) ends the step at hand, saves, and raises `Interrupted`; once more stops at once.
    `combine` and `copies`: see `make_train_step`.
    A resumed run goes on with the key, carry and optimizer state that it had, not with those given.

    Cost: the train step; one batch is fetched while the previous step runs.
    Raises: FloatingPointError when the loss or gradient is not finite, before anything of that step is saved;
    RunError for a run folder or checkpoint that cannot be used; ValueError for bad arguments.
    """
    steps = checks.positive_int("fit", "steps", steps)
    log_every = checks.positive_int("fit", "log_every", log_every)
    save_every = checks.positive_int("fit", "save_every", save_every)
    if evaluate_every is not None:
        evaluate_every = checks.positive_int("fit", "evaluate_every", evaluate_every)
    if not callable(batches):
        raise TypeError(
            f"fit: batches must be a function of the step's number, got {type(batches).__name__}; "
            "for a list: lambda step: batches[step % len(batches)]"
        )
    train_step = make_train_step(loss_fn, optimizer, combine=combine, copies=copies)
    with contextlib.ExitStack() as stack:
        if run is not None and not isinstance(run, Run):
            run = stack.enter_context(Run(run))
        state = create(params, optimizer, key, carry)
        if run is not None and run.steps():
            state = run.restore(state)
        done = int(state.step)
        if run is not None:
            run.forget_after(done)  # what was logged since is about to be done, and logged, again
        if done > steps:
            raise RunError(f"the run has {done} steps already, more than the {steps} asked for")
        show = stack.enter_context(_reporter(done, steps, progress))
        diary = _Diary(run, show, evaluate, steps, log_every, save_every, evaluate_every or steps)
        stop_asked = stack.enter_context(_stop_signal())

        batch = batches(done) if done < steps else None
        for step in range(done + 1, steps + 1):
            state, metrics = train_step(state, batch)
            if step < steps:
                batch = batches(step)  # the next step's, while the device works on this one
            diary.take(step, metrics)
            diary.write(step, state, stop_asked())
            if stop_asked():
                diary.save(step, state)
                saved = f"; saved in {run.folder}, start it again to go on" if run is not None else ""
                raise Interrupted(f"stopped after step {step} of {steps}{saved}")
        return state


@dataclasses.dataclass
class _Diary:
    """What `fit` shows, logs, evaluates and saves after which step."""

    run: Run | None
    show: Callable[[int, Mapping[str, float]], None]
    evaluate: Callable[[Params], Mapping[str, float]] | None
    steps: int
    log_every: int
    save_every: int
    evaluate_every: int
    recent: list[dict[str, float]] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.perf_counter)
    saved: int | None = None

    def take(self, step: int, metrics: Metrics) -> None:
        """Waits for the step to end, and for its figures."""
        values = {name: float(value) for name, value in metrics.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise FloatingPointError(
                f"the loss of step {step} is {values['loss']} and its gradient's norm {values['grad_norm']}; "
                "lower the learning rate, clip more, or look at the batch; nothing of this step was saved"
            )
        self.recent.append(values)

    def write(self, step: int, state: TrainState, stopping: bool) -> None:
        last = stopping or step == self.steps
        record: dict[str, float] = {}
        if last or step % self.log_every == 0:
            record = {name: sum(r[name] for r in self.recent) / len(self.recent) for name in self.recent[0]}
            self.recent.clear()
        if self.evaluate and (step == self.steps or step % self.evaluate_every == 0):
            figures = self.evaluate(state.params)
            if not isinstance(figures, Mapping):
                raise TypeError(f"fit: evaluate must return a dict of numbers, got {type(figures).__name__}")
            record |= {name: float(value) for name, value in figures.items()}
        self.show(step, record)
        if self.run is None:
            return
        if record:
            self.run.log({"step": step, "seconds": round(time.perf_counter() - self.started, 3), **record})
        if last or step % self.save_every == 0:
            self.save(step, state)

    def save(self, step: int, state: TrainState) -> None:
        """Once per step: Ctrl-C may have come before `write`, or during it."""
        if self.run is not None and self.saved != step:
            self.run.save(step, state)
            self.saved = step


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM has come since. The second one acts as it always does."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        asked.append(number)
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    previous: dict[signal.Signals, Any] = {}
    try:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            previous[wanted] = signal.signal(wanted, note)
    except ValueError:
        pass  # only the main thread hears signals; elsewhere they stay as they are
    try:
        yield lambda: bool(asked)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _reporter(done: int, steps: int, progress: bool) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Shows progress: a bar on a terminal, a line per record elsewhere, or nothing."""
    console = Console()

    def text(record: Mapping[str, float]) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in record.items())

    if not progress:
        yield lambda step, record: None
        return
    if not console.is_terminal:

        def line(step: int, record: Mapping[str, float]) -> None:
            if record:
                print(f"step {step}/{steps}  {text(record)}", flush=True)

        yield line
        return
    now = TextColumn("{task.fields[now]}")
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), now, console=console) as bar:
        task = bar.add_task("training", total=steps, completed=done, now="")

        def advance(step: int, record: Mapping[str, float]) -> None:
            bar.update(task, completed=step)
            if record:
                bar.update(task, now=text(record))

        yield advance
