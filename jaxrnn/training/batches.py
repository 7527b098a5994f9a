"""Where `fit` takes its batches from: a function of the step's number, or an iterator that knows its place."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jaxrnn import checks
from jaxrnn.training import processes
from jaxrnn.training.files import RunError
from jaxrnn.training.over_mesh import OverMesh
from jaxrnn.types import Tree


@runtime_checkable
class BatchIterator(Protocol):
    """An iterator that can say where it is and go back there, as those of `grain` can."""

    def __next__(self) -> Tree: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class Source(Protocol):
    """Batches in the order of the steps."""

    def at(self, step: int) -> Tree:
        """The batch of a step; called once for each, in their order."""

    def place(self, done: int) -> Any:
        """What to save, as JSON, when so many steps are done: where the next batch is found. None where that is known.

        Of these steps the last one's successor may have been fetched already, but nothing further.
        """

    def go_to(self, place: Any) -> None:
        """Goes to where a saved run was. Raises: RunError where that was the place of another kind of source."""

    def back_to(self, done: int) -> None:
        """Gives back what was fetched for steps that were not done."""


def source_of(batches: Any) -> Source:
    """Batches as the caller gave them. Raises: TypeError for what is neither a function nor such an iterator."""
    if isinstance(batches, BatchIterator):
        return _InOrder(batches)
    if not callable(batches):
        raise TypeError(
            f"fit: batches must be a function of the step's number, got {type(batches).__name__}; "
            "for a list: lambda step: batches[step % len(batches)]; for a dataset or loader of grain: iter(batches)"
        )
    return _ByNumber(batches)


class _ByNumber:
    def __init__(self, batches: Callable[[int], Tree]) -> None:
        self.at = batches

    def place(self, done: int) -> None:
        del done

    def go_to(self, place: Any) -> None:
        if place is not None:
            raise RunError(
                "the run took its batches from an iterator, whose place it holds; give such a one, as "
                "batches=iter(dataset), or choose another run folder"
            )

    def back_to(self, done: int) -> None:
        del done


class _InOrder:
    def __init__(self, iterator: BatchIterator) -> None:
        self.iterator = iterator
        self._before: dict[int, str] = {}  # the places before the last two batches, as text

    def at(self, step: int) -> Tree:
        self._before = {n: place for n, place in self._before.items() if n == step - 1} | {step: self._here()}
        try:
            return next(self.iterator)
        except StopIteration:
            raise ValueError(
                f"fit: batches ended before step {step + 1}; ask for {step} steps, or let the dataset go on (repeat())"
            ) from None

    def place(self, done: int) -> Any:
        return json.loads(self._before.get(done) or self._here())

    def go_to(self, place: Any) -> None:
        if place is None:
            raise RunError(
                "the run took its batches from a function of the step's number, so it holds no place for an iterator; "
                "give such a function, or choose another run folder"
            )
        self.iterator.set_state(json.loads(json.dumps(place), object_hook=_bytes_again))
        self._before = {}

    def back_to(self, done: int) -> None:
        if done in self._before:
            self.go_to(self.place(done))

    def _here(self) -> str:
        """As text at once: what an iterator gives may change with it."""
        return json.dumps(self.iterator.get_state(), default=_plain)


class OnMesh:
    """The batches of a source on a mesh. Every process has a source of its own, with a place of its own."""

    def __init__(self, source: Source, over: OverMesh) -> None:
        self.source = source
        self.over = over
        self._agreed = False

    def at(self, step: int) -> Tree:
        batch = self.source.at(step)
        if not self._agreed:  # of the first one: with parts of another shape there would be two programs
            leaves = jax.tree_util.tree_leaves_with_path(batch)
            processes.agree("fit", {checks.leaf_name("batch", path): checks.describe(leaf) for path, leaf in leaves})
            self._agreed = True
        return self.over.batch(batch)

    def place(self, done: int) -> Any:
        own = self.source.place(done)
        if own is None or processes.count() == 1:
            return own
        return {_PLACES: [json.loads(text) for text in processes.texts(json.dumps(own))]}

    def go_to(self, place: Any) -> None:
        places = place.get(_PLACES) if isinstance(place, dict) else None
        if place is not None and len(places or [place]) != processes.count():
            raise RunError(
                f"the run took its batches from iterators in {len(places or [place])} process(es), each with a place "
                f"of its own, and there are {processes.count()} now; start as many, or choose another run folder"
            )
        self.source.go_to(places[jax.process_index()] if places else place)

    def back_to(self, done: int) -> None:
        self.source.back_to(done)


_PLACES = "of each process"
_BYTES = "bytes, base64"


def _plain(value: Any) -> Any:
    """What JSON does not know of by itself."""
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"fit: the place of batches must be of what JSON can hold, got {type(value).__name__} in it")


def _bytes_again(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[_BYTES]) if value.keys() == {_BYTES} else value
