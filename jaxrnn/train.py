"""Training: the state, the jitted step, and `fit`, which can be stopped at any time and goes on as if it had not."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxrnn import checks
from jaxrnn.store import Run, RunError
from jaxrnn.types import Key, Params, State, Tree

# loss_fn(params, batch, key)        -> loss | (loss, metrics)
# loss_fn(params, batch, key, carry) -> (loss, carry) | (loss, carry, metrics)     where there is a carry
LossFn = Callable[..., Any]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run is made of between two steps. A pytree: it is saved and restored whole."""

    step: jax.Array  # int32: steps done
    params: Params
    opt_state: optax.OptState
    key: Key  # the same for the whole run; a step's key is fold_in(key, step)
    carry: State | None = None  # the state that one window hands to the next; None where windows are independent


class Interrupted(KeyboardInterrupt):
    """`fit` was asked to stop; what was done so far is saved in the run folder, if there is one."""


def adam(
    learning_rate: float, *, steps: int, warmup: int = 100, clip: float = 1.0, final: float = 0.05
) -> optax.GradientTransformation:
    """Adam after clipping the gradient's global norm to `clip`; linear warm-up, then a cosine down to `final` of it.

    The usual recipe for recurrent nets, from optax's parts; the warm-up is cut to fewer than `steps`.
    Raises: ValueError for steps below 1.
    Pascanu et al. 2013 (clipping); Kingma and Ba 2015.
    """
    steps = checks.positive_int("adam", "steps", steps)
    warmup = min(checks.positive_int("adam", "warmup", warmup, least=0), steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps, learning_rate * final)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule, b2=0.99))


def create(params: Params, optimizer: optax.GradientTransformation, key: Key, carry: State | None = None) -> TrainState:
    """The state before the first step. Copies what it is given, because steps donate their input's buffers."""
    copy = lambda tree: jax.tree.map(jnp.array, tree)
    # Some optimizers keep the parameters themselves: each holder gets its own copy, or one buffer is donated twice.
    return TrainState(jnp.zeros((), jnp.int32), copy(params), copy(optimizer.init(params)), jnp.array(key), copy(carry))


def _normal_form(result: Any, carries: bool) -> tuple[jax.Array, tuple[State, Metrics]]:
    """(loss, (carry, metrics)) of what a loss_fn returned."""
    parts = result if isinstance(result, tuple) else (result,)
    expected = "(loss, carry) or (loss, carry, metrics)" if carries else "loss or (loss, metrics)"
    if len(parts) not in ((2, 3) if carries else (1, 2)):
        raise ValueError(f"fit: loss_fn must return {expected}, got {len(parts)} value(s)")
    loss, carry = parts[0], parts[1] if carries else None
    metrics = parts[1 + carries] if len(parts) > 1 + carries else {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"fit: loss_fn must return {expected}; metrics must be a dict, got {type(metrics).__name__}")
    for name, value in {"loss": loss, **metrics}.items():
        if jnp.shape(value) != ():
            raise ValueError(f"fit: {name} must be a single number, got {checks.describe(value)}; reduce it in loss_fn")
    reserved = sorted({"loss", "grad_norm", "step", "seconds"} & metrics.keys())
    if reserved:
        raise ValueError(f"fit: metrics {reserved} have names that fit uses itself; rename them in loss_fn")
    return loss, (carry, dict(metrics))


def _averaged(grads: Tree, copies: Any, batch: Tree) -> Tree:
    """Each weight's gradient divided by the number of its copies."""
    counts = copies(batch) if callable(copies) else copies
    if counts is None:
        try:
            counts = checks.steps("make_train_step", batch, name="batch")
        except ValueError as error:
            remedy = "or say how many copies of the weights there are: copies=T, or copies=lambda batch: ..."
            raise ValueError(f'{error}; combine="mean" takes T from the batch. Give it so, {remedy}') from None
    try:
        counts = jax.tree.broadcast(counts, grads)
    except ValueError as error:
        raise ValueError(
            "make_train_step: copies should be a number of steps, or numbers in the structure of params "
            f"(or of its upper levels), e.g. {{'net': T, 'readout': 1}}; {error}"
        ) from None
    known = [n for n in jax.tree.leaves(counts) if checks.is_known(n)]
    if not all(checks.number(n) >= 1 for n in known):
        raise ValueError(f"make_train_step: copies must be numbers of at least 1, got {copies if known else counts}")
    return jax.tree.map(lambda g, n: g / jnp.asarray(n, g.dtype), grads, counts)


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, combine: str = "sum", copies: Any = None
) -> Callable[[TrainState, Tree], tuple[TrainState, Metrics]]:
    """One jitted step: gradient, update, and the carry for the next window.

        loss, carry = loss_fn(params, batch, fold_in(key, step), carry)
        params, opt_state = optimizer's update of them by d loss / d params

    The gradient does not flow into the carry it was given: that is truncated BPTT, the window being
    the reach. The state's buffers are donated (reused for the result), so keep only the new one.
    Metrics are those of loss_fn with "loss" and "grad_norm" added. Cost: one value and gradient.

    An unrolled net has a copy of its weights per step, and their gradients add up: `combine="sum"`.
    `combine="mean"` divides each weight's gradient by the number of its copies, which is T, the leading
    dimension that all arrays of the (time-major) batch share; or else `copies`: a number, numbers in
    the structure of params (`{"net": T, "readout": 1}` for a readout of the last state alone), or a
    function of the batch that gives either. With plain SGD the mean at rate T r is the sum at rate r;
    with T that varies, long sequences weigh no more than short ones. Adam scales each gradient to its
    own size, so the mean changes little for it but what a clipped norm is compared with.
    Raises: ValueError where the carry comes back with another structure, shape or dtype, for an unknown
    combine, and for combine="mean" where T cannot be told from the batch or `copies` fits no params.
    """
    mean = checks.one_of("make_train_step", "combine", combine, ("sum", "mean")) == "mean"
    if copies is not None and not mean:
        raise ValueError('make_train_step: copies only matter to combine="mean"; leave copies out, or ask for the mean')

    def train_step(state: TrainState, batch: Tree) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        carries = state.carry is not None

        def loss_and_more(params: Params) -> tuple[jax.Array, tuple[State, Metrics]]:
            args = (params, batch, key, state.carry) if carries else (params, batch, key)
            return _normal_form(loss_fn(*args), carries)

        (loss, (carry, metrics)), grads = jax.value_and_grad(loss_and_more, has_aux=True)(state.params)
        checks.same_type("train step", "carry", state.carry, carry, "return the carry in the type in which it came")
        grads = _averaged(grads, copies, batch) if mean else grads
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, state.key, carry), metrics

    return jax.jit(train_step, donate_argnums=0)


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
