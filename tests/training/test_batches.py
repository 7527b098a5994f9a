"""Batches from an iterator that knows its place: a run that was stopped reads what it would have read."""

import base64
import signal

import numpy as np
import pytest

import jaxrnn as rnn
from tests.training.problems import SERIES, bits, recurrent, tiny

fit, Interrupted, RunError = rnn.training.fit, rnn.training.Interrupted, rnn.training.RunError


class Counting:
    """An iterator whose place is of every kind of thing: bytes, numbers of numpy, nested."""

    def __init__(self, stop_at=None, ends=1000):
        self.n, self.stop_at, self.ends, self.state = 0, stop_at, ends, {}

    def __next__(self):
        if self.n == self.ends:
            raise StopIteration
        if self.n == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        self.n += 1
        return np.array([1.0, (self.n - 1) % 5], "f4")

    def get_state(self):
        self.state["n"] = [np.int64(self.n), base64.b64encode(b"x" * self.n), None]  # the same dict, changed
        return self.state

    def set_state(self, state):
        assert base64.b64decode(state["n"][1]) == b"x" * state["n"][0]
        self.n = state["n"][0]


@pytest.fixture(scope="module")
def whole():
    return bits(fit(**tiny()))


@pytest.mark.parametrize("at", [0, 13, *(pytest.param(at, marks=pytest.mark.slow) for at in (4, 29))])
def test_a_stopped_run_goes_on_with_the_next_batch(tmp_path, whole, at):
    iterator = Counting(stop_at=at)
    assert isinstance(iterator, rnn.training.BatchIterator)
    with pytest.raises(Interrupted):
        fit(**tiny(batches=iterator), run=tmp_path / "run")
    assert iterator.n == at  # what was fetched ahead was given back
    assert bits(fit(**tiny(batches=Counting()), run=tmp_path / "run")) == whole


def test_without_a_run_folder_the_iterator_itself_goes_on(whole):
    iterator = Counting(stop_at=12)
    with pytest.raises(Interrupted) as stop:
        fit(**tiny(batches=iterator))
    iterator.stop_at = None
    assert bits(fit(**tiny(batches=iterator, params=stop.value.state))) == whole and iterator.n == 30


def test_a_step_that_fails_gives_its_batch_back():
    iterator = Counting()
    with pytest.raises(rnn.training.NotFinite):
        fit(**tiny(batches=iterator, loss_fn=lambda p, b, k, c: (b[1] / (3 - b[1]) * p["w"][0], c)))
    assert iterator.n == 3


def test_an_early_end_gives_the_next_batch_back():
    iterator, best = Counting(), rnn.training.Best("figure", patience=2)
    fit(**tiny(batches=iterator, best=best, evaluate=lambda p: {"figure": 0.0}, evaluate_every=3))
    assert iterator.n == 9


def test_what_is_no_source_is_refused(tmp_path):
    for wrong in (iter([1]), [1], (n for n in [1])):
        with pytest.raises(TypeError, match=r"batches must be a function of the step's number, got .*; for a list: "):
            fit(**tiny(batches=wrong))
    with pytest.raises(ValueError, match=r"batches ended before step 8; ask for 7 steps, or let the dataset go on"):
        fit(**tiny(batches=Counting(ends=7)))
    odd = Counting()
    odd.get_state = lambda: {1, 2}
    with pytest.raises(TypeError, match=r"the place of batches must be of what JSON can hold, got set in it"):
        fit(**tiny(batches=odd))
    fit(**tiny(steps=3), run=tmp_path / "numbered")
    with pytest.raises(RunError, match=r"took its batches from a function of the step's number, so it holds no place"):
        fit(**tiny(batches=Counting()), run=tmp_path / "numbered")
    fit(**tiny(steps=3, batches=Counting()), run=tmp_path / "in_order")
    with pytest.raises(RunError, match=r"took its batches from an iterator, whose place it holds; give such a one"):
        fit(**tiny(), run=tmp_path / "in_order")


# --- grain


def shuffled():
    """A dataset that shuffles anew each epoch and adds noise: nothing of it depends on the step's number alone."""
    grain = pytest.importorskip("grain")
    noisy = lambda x, rng: x + rng.normal(size=2).astype("f4")
    source = grain.MapDataset.source(np.arange(24, dtype="f4").reshape(12, 2) / 10).seed(3).shuffle()
    return iter(source.repeat().random_map(noisy).to_iter_dataset())


def loader():
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.IndexSampler(
        12, shuffle=True, seed=1, num_epochs=None, shard_options=grain.sharding.NoSharding()
    )
    source = np.arange(24, dtype="f4").reshape(12, 2) / 10
    return iter(grain.DataLoader(data_source=source, sampler=sampler, operations=[], worker_count=0))


class Stopping:
    """A grain iterator during whose n-th batch Ctrl-C comes."""

    def __init__(self, iterator, at):
        self.iterator, self.left = iterator, at

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            signal.raise_signal(signal.SIGINT)
            self.left = 1000
        return next(self.iterator)

    def get_state(self):
        return self.iterator.get_state()

    def set_state(self, state):
        self.iterator.set_state(state)


@pytest.mark.parametrize("make", [shuffled, pytest.param(loader, marks=pytest.mark.slow)])
def test_grain_goes_on_to_the_same_bits(tmp_path, make):
    expected = bits(fit(**tiny(batches=make())))
    assert expected != bits(fit(**tiny(batches=Stopping(iter_from(make, 1), 1000))))  # another order is another run
    for at in (7, 11):
        with pytest.raises(Interrupted):
            fit(**tiny(batches=Stopping(make(), at)), run=tmp_path / "run")
    assert bits(fit(**tiny(batches=make()), run=tmp_path / "run")) == expected


def iter_from(make, skipped):
    iterator = make()
    for _ in range(skipped):
        next(iterator)
    return iterator


def test_streams_are_a_source_of_grain(tmp_path):
    grain = pytest.importorskip("grain")
    streams = rnn.training.Streams((SERIES[:-1], SERIES[1:]), batch=4, window=10)
    of_grain = lambda: iter(grain.MapDataset.source(streams).repeat().to_iter_dataset())
    expected = bits(fit(**recurrent(steps=15)))
    assert streams.windows < 15
    assert bits(fit(**recurrent(steps=15, batches=of_grain()))) == expected
    with pytest.raises(Interrupted):
        fit(**recurrent(steps=15, batches=Stopping(of_grain(), 6)), run=tmp_path / "run")
    assert bits(fit(**recurrent(steps=15, batches=of_grain()), run=tmp_path / "run")) == expected
