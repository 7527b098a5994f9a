"""The best parameters, and stopping for want of better ones: the same wherever a run was stopped."""

import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as rnn
from tests.training.problems import bits, interrupting, tiny, tiny_batches

Best, Run, RunError, fit = rnn.training.Best, rnn.training.Run, rnn.training.RunError, rnn.training.fit


def wavering(params):
    """A figure that goes up and down while the parameters go their way."""
    return {"other": 1.0, "figure": float(np.sin(25 * np.asarray(params["w"])[0]))}


def given(**changed):
    return tiny(evaluate=wavering, evaluate_every=2, **changed)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Step -> figure, of a run that nothing ended early."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(**given(), run=folder)
    return {r["step"]: r["figure"] for r in rnn.training.read_metrics(folder) if "figure" in r}


def expected(figures, mode, patience):
    """(the step with the best figure, the step at which the training ends), by a plain loop."""
    best, since = None, 0
    for step, value in figures.items():
        if best is None or (value < figures[best] if mode == "lowest" else value > figures[best]):
            best, since = step, 0
        else:
            since += 1
        if since == patience:
            break
    return best, step


CASES = [("lowest", None), ("highest", None), ("lowest", 2), ("highest", 2), ("lowest", 4)]


def test_the_cases_differ(figures):
    ends = {expected(figures, *case) for case in CASES}
    assert list(figures) == list(range(2, 31, 2)) and len(ends) >= 4 and any(2 < end < 30 for _, end in ends)


@pytest.mark.parametrize(("mode", "patience"), CASES)
def test_the_best_is_kept_and_the_training_ends(tmp_path, figures, mode, patience):
    best = Best("figure", mode=mode, patience=patience)
    state = fit(**given(best=best), run=tmp_path / "run")
    step, end = expected(figures, mode, patience)
    assert (best.step, best.value, int(state.step)) == (step, figures[step], end)
    alone = fit(**tiny(steps=step)).params
    assert bits(best.params) == bits(alone)
    with Run(tmp_path / "run", read_only=True) as run:
        assert run.steps()[-1] == end and bits(run.best(alone)) == bits(alone)
    again = Best("figure", mode=mode, patience=patience)
    assert bits(fit(**given(best=again), run=tmp_path / "run")) == bits(state)  # nothing is done again
    assert (again.step, again.value, bits(again.params)) == (step, figures[step], bits(alone))


STOPPED = [(mode, patience, at) for mode, patience in (("highest", None), ("lowest", 4)) for at in (1, 5, 9, 13)]
FAST = [("highest", None, 5), ("lowest", 4, 9)]


@pytest.mark.parametrize(
    ("mode", "patience", "at"), [pytest.param(*s, marks=() if s in FAST else pytest.mark.slow) for s in STOPPED]
)
def test_a_stopped_run_finds_the_same_best_and_ends_at_the_same_step(tmp_path, figures, mode, patience, at):
    step, end = expected(figures, mode, patience)
    best = Best("figure", mode=mode, patience=patience)
    if at < end:
        with pytest.raises(rnn.training.Interrupted):
            fit(**given(best=best, batches=interrupting(tiny_batches, at, signal.SIGINT)), run=tmp_path / "run")
    best = Best("figure", mode=mode, patience=patience)
    state = fit(**given(best=best), run=tmp_path / "run")
    assert (best.step, best.value, int(state.step)) == (step, figures[step], end)
    assert bits(best.params) == bits(fit(**tiny(steps=step)).params)


@pytest.mark.parametrize("crash", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 11, 14))])
def test_a_crash_after_a_better_one_was_saved_changes_nothing(tmp_path, figures, crash):
    """The last checkpoint is then older than the newest of the best parameters."""
    calls = []

    def evaluate(params):
        calls.append(params)
        if len(calls) == crash:
            raise OSError("no more")
        return wavering(params)

    with pytest.raises(OSError, match="no more"):
        fit(**given(best=Best("figure", mode="highest")) | {"evaluate": evaluate}, run=tmp_path / "run")
    best = Best("figure", mode="highest")
    fit(**given(best=best), run=tmp_path / "run")
    step, _ = expected(figures, "highest", None)
    assert (best.step, best.value) == (step, figures[step])
    with Run(tmp_path / "run") as run:
        assert bits(run.best(best.params)) == bits(best.params)


def test_each_checkpoint_that_is_kept_has_its_best(tmp_path, figures):
    """So that a run goes on from an earlier one if the newest is damaged."""
    best = Best("figure", mode="highest")
    fit(**given(best=best, save_every=6), run=tmp_path / "run")
    with Run(tmp_path / "run") as run:
        wanted = {max((n for n in figures if n <= step), key=figures.get) for step in run.steps()}
        assert {int(p.name) for p in (run.folder / "best").iterdir()} == wanted
        newest = run.steps()[-1]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(newest))
    again = Best("figure", mode="highest")
    fit(**given(best=again, save_every=6), run=tmp_path / "run")
    assert (again.step, bits(again.params)) == (best.step, bits(best.params))


def test_without_a_run_folder_the_same_best_goes_on(figures):
    best = Best("figure", patience=4)
    with pytest.raises(rnn.training.Interrupted) as stop:
        fit(**given(best=best, batches=interrupting(tiny_batches, 7, signal.SIGINT)))
    state = fit(**given(best=best, params=stop.value.state))
    assert (best.step, int(state.step)) == expected(figures, "lowest", 4)


def test_a_nan_is_no_better_and_an_average_is_what_is_kept():
    values = iter([math.nan, 3.0, math.nan, 3.0, 4.0])
    best = Best("figure", patience=3)
    optimizer = rnn.training.averaging(tiny()["optimizer"], 0.5)
    state = fit(**given(best=best, optimizer=optimizer) | {"evaluate": lambda p: {"figure": next(values)}})
    assert (best.step, best.value, best.since, int(state.step)) == (4, 3.0, 3, 10)
    average = rnn.training.averaged(fit(**tiny(optimizer=optimizer, steps=4)))
    assert bits(best.params) == bits(average)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (lambda: {"best": Best("figure"), "evaluate": None}, r"best compares 'figure', which evaluate must give; give"),
        (lambda: {"best": Best("loss")}, r"best compares 'loss', which evaluate must give; it gave 'other', 'figure'"),
        (lambda: {"best": Best("figure", mode="min")}, r"Best: mode must be one of 'lowest', 'highest', got 'min'"),
        (lambda: {"best": Best("figure", patience=0)}, r"Best: patience must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_comparisons_are_refused(changed, complaint):
    with pytest.raises(ValueError, match=complaint):
        fit(**given(steps=2) | changed())


def test_another_best_and_a_lost_one_are_refused(tmp_path):
    fit(**given(best=Best("figure"), steps=10), run=tmp_path / "run")
    with pytest.raises(RunError, match=r"keeps the parameters with the lowest 'figure', not the highest 'figure'; ask"):
        fit(**given(best=Best("figure", mode="highest")), run=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(RunError, match=r"the best parameters, those after \d+ steps, cannot be had from .*best; put"):
        fit(**given(best=Best("figure")), run=tmp_path / "run")
    assert int(fit(**given(), run=tmp_path / "run").step) == 30  # as the sentence says


def test_what_goes_beside_a_state_is_sealed_with_it(tmp_path):
    with Run(tmp_path / "run") as run:
        run.save(1, {"a": jnp.ones(2), "key": jax.random.key(0)}, {"where": [1, None, "two"]})
        run.save(2, {"a": jnp.ones(2), "key": jax.random.key(0)})
        assert run.beside(1) == {"where": [1, None, "two"]} and run.beside() == {}
        (run.folder / "checkpoints" / "1" / "beside.json").write_text("{}")
        with pytest.raises(RunError, match=r"checkpoint .*/1 is damaged \(its file beside.json is not as it was saved"):
            run.beside(1)
