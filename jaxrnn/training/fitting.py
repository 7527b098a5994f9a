"""`fit`: training that can be stopped at any time and goes on as if it had not been."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrnn import checks
from jaxrnn.training.averages import to_evaluate
from jaxrnn.training.diagnosis import DIVERGING, NotFinite, why_not_finite
from jaxrnn.training.files import RunError
from jaxrnn.training.progress import Show, reporter
from jaxrnn.training.runs import Run
from jaxrnn.training.step import (
    Copies,
    Gradient,
    LossFn,
    Metrics,
    TrainState,
    ValueAndGrad,
    create,
    gradient_of,
    step_by,
)
from jaxrnn.training.stopping import Interrupted, stop_signals
from jaxrnn.types import Key, Params, State, Tree

Evaluate = Callable[[Params], Mapping[str, float]]


def fit(
    loss_fn: LossFn,
    params: Params | TrainState,
    batches: Callable[[int], Tree],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    key: Key,
    carry: State | None = None,
    combine: str = "sum",
    copies: Copies = None,
    value_and_grad: ValueAndGrad = jax.value_and_grad,
    run: Run | str | os.PathLike[str] | None = None,
    evaluate: Evaluate | None = None,
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
    at the end. `evaluate(params)` gives further figures, every `evaluate_every` steps and at the end; it
    is given their average where the optimizer is `averaging`.
    Ctrl-C (or SIGTERM) ends the step at hand, saves, and raises `Interrupted`; once more stops at once.
    `combine`, `copies` and `value_and_grad`: see `make_train_step`.
    A `TrainState` in place of `params` (what `fit` returned, or that of an `Interrupted`) is gone on
    from. A resumed run goes on with the key, carry and optimizer state that it had, not with those given.

    Cost: the train step; one batch is fetched while the previous step runs.
    Raises: NotFinite (a FloatingPointError) when the loss or gradient is not finite, before anything of
    that step is saved: it names the leaves, and carries the state and the batch; Interrupted, which
    carries the state; RunError for a run folder or checkpoint that cannot be used; ValueError for bad
    arguments.
    """
    plan = _Plan.checked(steps, log_every, save_every, evaluate_every)
    _check_batches(batches)
    gradient = gradient_of(loss_fn, value_and_grad)
    train_step = step_by(gradient, optimizer, combine=combine, copies=copies, only_if_finite=True)
    train_step = jax.jit(train_step, donate_argnums=0)
    with contextlib.ExitStack() as stack:
        heard = stack.enter_context(stop_signals())
        if run is not None and not isinstance(run, Run):
            run = stack.enter_context(Run(run))
        state = _begin(run, _given(params, optimizer, key, carry), plan)
        done = int(state.step)
        show = stack.enter_context(reporter(done, plan.steps, progress))
        diary = _Diary(run, show, evaluate, plan, heard, saved=max(run.steps(), default=None) if run else None)

        batch = batches(done) if done < plan.steps else None
        diary.stop_if_asked(done, state)
        for step in range(done + 1, plan.steps + 1):
            state, metrics = train_step(state, batch)
            following = batches(step) if step < plan.steps else None  # while the device works on this one
            diary.take(step, metrics, state, batch, gradient)
            diary.write(step, state)
            diary.stop_if_asked(step, state)
            batch = following
        return state


def _check_batches(batches: object) -> None:
    if not callable(batches):
        raise TypeError(
            f"fit: batches must be a function of the step's number, got {type(batches).__name__}; "
            "for a list: lambda step: batches[step % len(batches)]"
        )


def _given(
    params: Params | TrainState, optimizer: optax.GradientTransformation, key: Key, carry: State | None
) -> TrainState:
    """The state that the caller's arguments make; a copy, because steps donate their input's buffers."""
    if isinstance(params, TrainState):
        return TrainState(*jax.tree.map(jnp.array, params))
    return create(params, optimizer, key, carry)


class _Plan(NamedTuple):
    """How many steps, and after how many of them what is done."""

    steps: int
    log: int
    save: int
    evaluate: int

    @classmethod
    def checked(cls, steps: int, log_every: int, save_every: int, evaluate_every: int | None) -> _Plan:
        evaluate_every = steps if evaluate_every is None else evaluate_every
        given = {"steps": steps, "log_every": log_every, "save_every": save_every, "evaluate_every": evaluate_every}
        return cls(*(checks.positive_int("fit", name, value) for name, value in given.items()))


def _begin(run: Run | None, state: TrainState, plan: _Plan) -> TrainState:
    """The state to go on from: that of the newest checkpoint, if there is one, or else the given one."""
    if run is not None and run.steps():
        state = run.restore(state)
    done = int(state.step)
    if done > plan.steps:
        raise RunError(f"the run has {done} steps already, more than the {plan.steps} asked for")
    if run is not None:
        run.forget_after(done)  # what was logged since is about to be done, and logged, again
    return state


@dataclasses.dataclass
class _Diary:
    """What `fit` shows, logs, evaluates and saves after which step, and whether it goes on."""

    run: Run | None
    show: Show
    evaluate: Evaluate | None
    plan: _Plan
    heard: list[int]  # signals that ask to stop
    recent: list[dict[str, float]] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.perf_counter)
    saved: int | None = None

    def take(self, step: int, metrics: Metrics, state: TrainState, batch: Tree, gradient: Gradient) -> None:
        """Waits for the step to end, and for its figures. Raises: NotFinite."""
        values = {name: float(value) for name, value in metrics.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            as_before = int(state.step) < step  # else an optimizer changed its types, and there is nothing to look at
            why = why_not_finite(gradient, state, batch) if as_before else DIVERGING
            raise NotFinite(
                f"the loss of step {step} is {values['loss']} and its gradient's norm {values['grad_norm']}; "
                f"{why}; nothing of this step was saved",
                state,
                batch,
            )
        self.recent.append(values)

    def write(self, step: int, state: TrainState) -> None:
        last = step == self.plan.steps
        ending = last or bool(self.heard)
        record: dict[str, float] = {}
        if ending or step % self.plan.log == 0:
            record = {name: sum(r[name] for r in self.recent) / len(self.recent) for name in self.recent[0]}
            self.recent.clear()
        if self.evaluate and (last or step % self.plan.evaluate == 0):
            figures = self.evaluate(to_evaluate(state))
            if not isinstance(figures, Mapping):
                raise TypeError(f"fit: evaluate must return a dict of numbers, got {type(figures).__name__}")
            record |= {name: float(value) for name, value in figures.items()}
        self.show(step, record)
        if self.run is None:
            return
        if record:
            self.run.log({"step": step, "seconds": round(time.perf_counter() - self.started, 3), **record})
        if ending or step % self.plan.save == 0:
            self.save(step, state)

    def save(self, step: int, state: TrainState) -> None:
        """Once per step: Ctrl-C may have come before `write`, during it, or before anything was done."""
        if self.run is not None and self.saved != step:
            self.run.save(step, state)
            self.saved = step

    def stop_if_asked(self, step: int, state: TrainState) -> None:
        """Raises: Interrupted, when what is done is saved."""
        if not self.heard:
            return
        if step:  # before the first there is nothing to save
            self.save(step, state)
        where = f"after step {step} of {self.plan.steps}" if step else f"before the first of {self.plan.steps} steps"
        saved = f"; saved in {self.run.folder}, start it again to go on" if self.run and self.saved == step else ""
        raise Interrupted(f"stopped {where}{saved}", state, self.heard[0])
