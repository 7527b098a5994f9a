"""`fit`: training that can be stopped at any time and goes on as if it had not been."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxrnn import checks, trees
from jaxrnn.training import processes
from jaxrnn.training.averages import to_evaluate
from jaxrnn.training.batches import BatchIterator, OnMesh, Source, source_of
from jaxrnn.training.best import Best
from jaxrnn.training.diagnosis import DIVERGING, NotFinite, why_not_finite
from jaxrnn.training.files import RunError
from jaxrnn.training.over_mesh import ASKED, Layout, OverMesh
from jaxrnn.training.progress import Show, reporter
from jaxrnn.training.runs import Run
from jaxrnn.training.sharding import name_of
from jaxrnn.training.step import (
    Copies,
    Gradient,
    LossFn,
    Metrics,
    TrainState,
    TrainStep,
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
    batches: Callable[[int], Tree] | BatchIterator,
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
    best: Best | None = None,
    log_every: int = 50,
    save_every: int = 500,
    progress: bool = True,
    mesh: Mesh | None = None,
    batch_axis: str | None = "data",
    batch_specs: Tree = None,
) -> TrainState:
    """Trains for `steps` steps, or for what is left of them if `run` holds a checkpoint.

        for step in range(done, steps):
            state, metrics = train_step(state, batches(step))

    `batches(step)` gives the step's batch; where it depends on nothing else (see `Streams`), a run
    that was stopped, by Ctrl-C or `kill -9`, and started again ends with bit-identical parameters
    to one that was not. So does one whose batches come from an iterator that knows its place, as those
    of `grain` do (`iter(dataset)` or `iter(loader)`): checkpoints hold what its `get_state` gives, a resumed
    run hands that to `set_state`. When `fit` returns or raises, it stands before the next step's batch.
    `carry` is the first state of stateful streams; None for independent batches.
    `run`, a folder or a `Run`, receives metrics.jsonl and a checkpoint every `save_every` steps and
    at the end. `evaluate(params)` gives further figures, every `evaluate_every` steps and at the end; it
    is given their average where the optimizer is `averaging`. `best` keeps the best parameters by one of
    these figures, and may end the training early: see `Best`.
    Ctrl-C (or SIGTERM) ends the step at hand, saves, and raises `Interrupted`; once more stops at once.
    `combine`, `copies` and `value_and_grad`: see `make_train_step`.
    A `TrainState` in place of `params` (what `fit` returned, or that of an `Interrupted`) is gone on
    from. A resumed run goes on with the key, carry and optimizer state that it had, not with those given.

    `mesh` spreads the training over devices, of all processes that `jax.distributed.initialize` has joined, with the
    same result but for rounding. Batches and carry are divided along `batch_axis`; weights lie as
    `shardings(...).put` has placed them, or are whole on every device, and the optimizer's state lies with them.
    Weights in parts along `batch_axis` are put together once per step, and their gradient is summed into parts.
    The compiler splits the work (inside, the mesh's axes are automatic): the loss is written as for one device.
    In several processes each reads its own part of every batch: `Streams` and `Bucketed` see to that; another
    function or iterator gives the part that `part_of(mesh)` says. `batch_specs` are PartitionSpecs for the batch's
    leaves, or for whole subtrees; by default [T, B, ...] is divided in its second axis, [B] in its only one.
    `evaluate` is called in every process, with parameters on the mesh, and what the first one finds counts; that one
    prints and writes. A checkpoint can be gone on from on other devices or processes; on the same mesh to the bit.

    Cost: the train step; one batch is fetched while the previous step runs. It is compiled once per shape of the
    batch, also over several calls with the same `loss_fn` and `optimizer`, as over seeds or folds. The same objects,
    that is, not equal ones; what they close over is looked at once, as under `jax.jit`, and kept alive for a while.
    Raises: NotFinite (a FloatingPointError) when the loss or gradient is not finite, before anything of
    that step is saved: it names the leaves, and carries the state and the batch; Interrupted, which
    carries the state; RunError for a run folder or checkpoint that cannot be used, and where another process has
    ended; ValueError for bad arguments, a mesh axis that is not there, a batch that the mesh does not divide, and
    processes that disagree.
    """
    plan = _Plan.checked(steps, log_every, save_every, evaluate_every)
    over = OverMesh.checked(mesh, batch_axis, batch_specs, batches)
    source = source_of(batches) if over is None else OnMesh(source_of(over.batches(batches)), over)
    if best is not None and evaluate is None:
        raise ValueError(f"fit: best compares {best.figure!r}, which evaluate must give; give evaluate")
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.all_there("start all of them again, to go on from the last checkpoint"))
        processes.agree("fit", _what_must_agree(plan, params, key, run, over))
        if over is not None:
            stack.enter_context(over.alone())
        state, layout = _given(params, optimizer, key, carry, over)
        same = map(_Same, (loss_fn, value_and_grad, optimizer))
        gradient, train_step = _compiled_once(*same, combine, _Same(copies), layout)
        heard = stack.enter_context(stop_signals())
        if run is not None and not isinstance(run, Run):
            run = stack.enter_context(Run(run))
        state = _begin(run, state, plan, source, best)
        show = stack.enter_context(reporter(int(state.step), plan.steps, progress and processes.is_first()))
        saved = max(run.steps(), default=None) if run else None
        agreed = heard if processes.count() == 1 else []  # several processes stop when all have heard
        diary = _Diary(run, show, evaluate, best, plan, source, gradient, agreed, saved)
        more = (lambda: ()) if over is None else (lambda: over.word(heard))
        return _trained(lambda state, batch: train_step(state, batch, *more()), state, diary)


class _Same:
    """Itself and nothing else, as a key: two bound methods, say, may be equal and yet see other data."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.what is self.what

    def __hash__(self) -> int:
        return id(self.what)


@functools.lru_cache(maxsize=4)  # few: each keeps alive what its loss_fn closes over
def _compiled_once(
    loss_fn: _Same, value_and_grad: _Same, optimizer: _Same, combine: str, copies: _Same, layout: Layout | None
) -> tuple[Gradient, Callable[..., Any]]:
    """The gradient, and the step that `jax.jit` has compiled already if a call before was given the same objects."""
    gradient = gradient_of(loss_fn.what, value_and_grad.what)
    if layout is not None:
        gradient = layout.gathered(gradient)
    train_step = step_by(gradient, optimizer.what, combine=combine, copies=copies.what, only_if_finite=True)
    return gradient, jax.jit(train_step, donate_argnums=0) if layout is None else layout.step(train_step)


def _trained(train_step: TrainStep, state: TrainState, diary: _Diary) -> TrainState:
    """The state when all steps are done, or no more are wanted."""
    done, plan, source = int(state.step), diary.plan, diary.source
    try:
        batch = source.at(done) if diary.goes_on(done) else None
        diary.stop_if_asked(done, state)
        while diary.goes_on(done):
            state, metrics = train_step(state, batch)
            following = source.at(done + 1) if done + 1 < plan.steps else None  # while the device works on this one
            diary.take(done + 1, metrics, state, batch)
            done += 1
            diary.write(done, state)
            diary.stop_if_asked(done, state)
            batch = following
    finally:
        source.back_to(done)
    return state


def _given(
    params: Params | TrainState,
    optimizer: optax.GradientTransformation,
    key: Key,
    carry: State | None,
    over: OverMesh | None,
) -> tuple[TrainState, Layout | None]:
    """The state that the caller's arguments make; a copy, because steps donate their input's buffers. Where it lies."""
    if isinstance(params, TrainState):
        if over is None:
            return TrainState(*jax.tree.map(jnp.array, params)), None
        layout = over.layout(params.params, optimizer, params.carry)
        return over.again(layout, params), layout
    if over is None:
        return create(params, optimizer, key, carry), None
    layout = over.layout(params, optimizer, carry)
    return over.first(layout, params, optimizer, key, carry), layout


def _what_must_agree(
    plan: _Plan, params: Params | TrainState, key: Key, run: Any, over: OverMesh | None
) -> dict[str, Any]:
    """What several processes must have been given alike: else they wait for each other for ever, or train a mixture."""
    if processes.count() == 1 or over is None:
        return {}
    given = params if isinstance(params, TrainState) else {"params": params, "key": key}
    leaves = {name_of(path): _in_short(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    folder = None if run is None else str(run.folder if isinstance(run, Run) else os.path.abspath(run))
    mesh = {"mesh": dict(over.mesh.shape), "batch_axis": over.axis, "run": folder}
    return {**plan._asdict(), **mesh, **leaves}


def _in_short(leaf: Any) -> str:
    """Type and, where this process has all of it, a check sum."""
    leaf = trees.without_key(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return checks.describe(leaf)
    return f"{checks.describe(leaf)} with check sum {zlib.crc32(np.ascontiguousarray(leaf).tobytes()):08x}"


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


def _begin(run: Run | None, state: TrainState, plan: _Plan, source: Source, best: Best | None) -> TrainState:
    """The state to go on from: that of the newest checkpoint, if there is one, or else the given one."""
    if run is not None and run.steps():
        state, beside = run.restore(state), run.beside()
        source.go_to(beside.get("batches"))
        if best is not None:
            best.go_to(beside.get("best"), state.params, run)
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
    best: Best | None
    plan: _Plan
    source: Source
    gradient: Gradient
    heard: list[int]  # signals that ask to stop
    saved: int | None = None
    recent: list[dict[str, float]] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def goes_on(self, done: int) -> bool:
        """Whether there is another step to do: not after the last, nor when the best parameters are long past."""
        return done < self.plan.steps and not (self.best is not None and self.best.exhausted)

    def take(self, step: int, metrics: Metrics, state: TrainState, batch: Tree) -> None:
        """Waits for the step to end, and for its figures. Raises: NotFinite."""
        values = {name: float(value) for name, value in metrics.items()}
        if signum := int(values.pop(ASKED, 0)):
            self.heard.append(signum)
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            as_before = int(state.step) < step  # else an optimizer changed its types, and there is nothing to look at
            why = why_not_finite(self.gradient, state, batch) if as_before else DIVERGING
            raise NotFinite(
                f"the loss of step {step} is {values['loss']} and its gradient's norm {values['grad_norm']}; "
                f"{why}; nothing of this step was saved",
                state,
                batch,
            )
        self.recent.append(values)

    def write(self, step: int, state: TrainState) -> None:
        figures = self.evaluated(step, state)
        ending = not self.goes_on(step) or bool(self.heard)
        record: dict[str, float] = {}
        if ending or step % self.plan.log == 0:
            record = {name: sum(r[name] for r in self.recent) / len(self.recent) for name in self.recent[0]}
            self.recent.clear()
        record |= figures
        self.show(step, record)
        if self.run is None:
            return
        if record:
            self.run.log({"step": step, "seconds": round(time.perf_counter() - self.started, 3), **record})
        if ending or step % self.plan.save == 0:
            self.save(step, state)

    def evaluated(self, step: int, state: TrainState) -> dict[str, float]:
        """The figures of `evaluate`, after the steps where there are any."""
        if self.evaluate is None or (step != self.plan.steps and step % self.plan.evaluate):
            return {}
        params = to_evaluate(state)
        figures = self.evaluate(params)
        if not isinstance(figures, Mapping):
            raise TypeError(f"fit: evaluate must return a dict of numbers, got {type(figures).__name__}")
        own = {name: float(value) for name, value in figures.items()}
        found: dict[str, float] = processes.by_the_first(lambda: own)  # all stop, or go on, by the same figures
        if self.best is not None:
            self.best.see(step, found, params, self.run)
        return found

    def save(self, step: int, state: TrainState) -> None:
        """Once per step: Ctrl-C may have come before `write`, during it, or before anything was done."""
        if self.run is not None and self.saved != step:
            beside = {"batches": self.source.place(step), "best": self.best and self.best.place()}
            self.run.save(step, state, {name: what for name, what in beside.items() if what is not None})
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
