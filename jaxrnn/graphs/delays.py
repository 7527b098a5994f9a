"""What types the delayed values of a graph have: found by tracing it until nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks, inference, trees
from jaxrnn.checks import describe_tree
from jaxrnn.graphs.statement import START, Prev, Wiring, blaming, combined
from jaxrnn.types import Cell, Key, Tree

Types = dict[str, Any]  # by name of a vertex or input: a pytree of ShapeDtypeStructs, or None if not known yet

REMEDY = "state it: prev(name, start=...), an array of the shape and dtype of one example's value"


def widened(start: Tree, batch_shape: tuple[int, ...]) -> Tree:
    """A start, which has no batch dimensions, for a whole batch."""

    def wide(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf, jnp.result_type(leaf))
        return jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape))

    return jax.tree.map(wide, start)


def _plain(tree: Tree) -> Tree:
    """Shapes and dtypes, and nothing else that a ShapeDtypeStruct may say."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


class Traced(NamedTuple):
    """The types that go through a vertex."""

    x: Tree
    params: Tree
    y: Tree


class Tracing(NamedTuple):
    """An abstract run of a graph, to find the types of its delayed values (nothing is computed).

    A delayed value has the type of its vertex's output, which may depend on the types of what the
    vertex reads, delayed values among them. So a first look leaves out what is not known yet, or puts
    something plausible in its place; then it looks again until nothing changes.
    """

    net: Wiring
    cell: Cell  # the net's
    key: Key
    x: Tree
    seen: dict[Any, Traced]  # what went through which vertex already: graphs in graphs are traced often

    def types(self) -> tuple[Types, Types]:
        """The type of each vertex's input for this x, and of each delayed value without batch dimensions."""
        failure: ValueError | None = None
        for batch in self.batches():
            try:
                delayed, through = self.settled(batch)
                features = {name: self.without(batch, name, value) for name, value in delayed.items()}
                self.check_one(through, features, batch)
            except ValueError as error:
                failure = failure or error
                continue
            self.check_floats(features)
            return {name: traced.x for name, traced in through.items()}, features
        assert failure is not None, "there is always a batch to try"
        raise failure

    def batches(self) -> Iterator[tuple[int, ...]]:
        """What *B may be: at first all of x, but for its last dimension (the features) where x is floating."""
        leaves = jax.tree.leaves(self.x)
        most = min((leaf.ndim for leaf in leaves), default=0)
        while any(leaf.shape[:most] != leaves[0].shape[:most] for leaf in leaves):
            most -= 1
        usual = min([most, *(leaf.ndim - 1 for leaf in leaves if trees.is_float(leaf) and leaf.ndim)])
        for n in [usual, *(n for n in range(most, -1, -1) if n != usual)]:
            yield leaves[0].shape[:n] if leaves else ()

    def settled(self, batch: tuple[int, ...]) -> tuple[Types, dict[str, Traced]]:
        """The types of the delayed values and of what goes through each vertex, batch dimensions included."""
        stated = {name: self.stated(name, batch) for name in self.net.delays if not self.net.in_params(name)}
        given = self.net.given(self.x)
        delayed = {name: stated.get(name, given.get(name)) for name in self.net.delays}
        for _ in range(2 * len(delayed) + 2):
            values, through = self.look(delayed, batch)
            found = {name: stated.get(name, values[name]) for name in delayed}
            if found == delayed:
                break
            delayed = found
        else:
            raise ValueError(f"graph: {self.listed(delayed)} changes its type from step to step")
        unknown = {name: None for name, value in delayed.items() if value is None}
        if unknown:
            raise ValueError(f"graph: cannot find the type of {self.listed(unknown)} by tracing; {REMEDY}")
        for name in stated:
            remedy = "give one example's value, with the dtype that the vertex gives"
            checks.same_type("graph", f'start of prev("{name}")', values[name], stated[name], remedy)
        return delayed, through

    def stated(self, name: str, batch: tuple[int, ...]) -> Tree:
        return _plain(jax.eval_shape(lambda: widened(self.net.starts[name], batch)))

    def look(self, delayed: Types, batch: tuple[int, ...]) -> tuple[Types, dict[str, Traced]]:
        """The type of each value, None where not known, and what goes through vertices that read known ones only."""
        values: Types = self.net.given(self.x)
        through: dict[str, Traced] = {}
        for name in self.net.order:
            v = self.net.vertices[name]
            read = [delayed[s.name] if isinstance(s, Prev) else values[s] for s in v.sources]
            if any(value is None for value in read):
                values[name] = self.guess(name, read, batch)
                continue
            with blaming(name, v, read):
                through[name] = self.trace(name, read, batch)
            values[name] = through[name].y
        return values, through

    def trace(self, name: str, read: list[Tree], batch: tuple[int, ...]) -> Traced:
        leaves, structure = jax.tree.flatten(read)
        known_by = (name, tuple((leaf.shape, leaf.dtype) for leaf in leaves), structure, batch)
        if known_by not in self.seen:
            v = self.net.vertices[name]
            x = _plain(jax.eval_shape(lambda read: combined(v, read), read))
            params = jax.eval_shape(lambda key: v.cell.init(key, x), self.key)
            y = _plain(inference.one_step(v.cell, params, x, batch)[2])
            self.seen[known_by] = Traced(x, params, y)
        return self.seen[known_by]

    def guess(self, name: str, read: list[Tree], batch: tuple[int, ...]) -> Tree:
        """The type of a vertex's output where some of what it reads is not known yet; or None."""

        def attempt(read: list[Tree]) -> Tree:
            try:
                return self.trace(name, read, batch).y
            except Exception:  # noqa: BLE001  whatever a vertex raises for what it was not meant to get
                return None

        def filled(stand_in: Tree) -> list[Tree]:
            return [stand_in if value is None else value for value in read]

        # A cell reads what is concatenated, and gives much the same if a part is missing. A function may
        # want what is missing to be like something else that it reads, or at least to broadcast with it.
        known = [value for value in read if value is not None]
        likely = [known] if self.net.vertices[name].combine is None else [filled(value) for value in known]
        for found in map(attempt, likely if known else []):
            if found is not None:
                return found
        for thin in [self.thin(value, batch) for value in known]:
            found = attempt(filled(thin))
            if found is not None and found != thin:
                return found
        # What is left are vertices whose output has one type whatever the size of what they read, as Dense has.
        dtype = jnp.result_type(*[leaf for leaf in jax.tree.leaves(self.x) if trees.is_float(leaf)] or [jnp.float32])
        one, two = (attempt(filled(jax.ShapeDtypeStruct((*batch, n), dtype))) for n in (1, 2))
        return one if one == two else None

    def thin(self, value: Tree, batch: tuple[int, ...]) -> Tree:
        """The type of something that broadcasts to a value: all its dimensions are 1, but for the batch's."""
        ones = lambda a: (*batch, *[1] * (a.ndim - len(batch)))
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(ones(a), a.dtype), value)

    def check_one(self, through: dict[str, Traced], features: Types, batch: tuple[int, ...]) -> None:
        """The net keeps these types from step to step also for one example alone, without batch dimensions."""
        params: dict[str, Tree] = {name: traced.params for name, traced in through.items()}
        params[START] = {name: features[name] for name in features if self.net.in_params(name)}
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[len(batch) :], a.dtype), self.x)
        why = f"one example alone, x of type {describe_tree(one)} without the batch dimensions {batch}"
        try:
            state, state_out, _ = inference.one_step(self.cell, params, one, ())
        except Exception as error:
            raise ValueError(f"graph: the step does not take {why}: {error}") from error
        if not trees.same_shapes(state, state_out):
            raise ValueError(f"graph: a delayed value changes its shape for {why}; {REMEDY}")

    def without(self, batch: tuple[int, ...], name: str, value: Tree) -> Tree:
        """The type of one example's value."""
        for leaf in jax.tree.leaves(value):
            if leaf.shape[: len(batch)] != batch:
                which = f'prev("{name}") is {describe_tree(value)}'
                raise ValueError(
                    f"graph: {which}, which does not begin with the batch dimensions {batch} of x; {REMEDY}"
                )
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[len(batch) :], a.dtype), value)

    def check_floats(self, features: Types) -> None:
        for name, value in features.items():
            if self.net.in_params(name) and not all(map(trees.is_float, jax.tree.leaves(value))):
                shape, dtype = next((a.shape, a.dtype) for a in jax.tree.leaves(value) if not trees.is_float(a))
                raise ValueError(
                    f'graph: prev("{name}") is {describe_tree(value)}; what is not floating has no place among the '
                    f'parameters, so state its start: prev("{name}", start=jnp.zeros({shape}, jnp.{dtype}))'
                )

    def listed(self, delayed: Types) -> str:
        types = {name: "" if value is None else f" ({describe_tree(value)})" for name, value in delayed.items()}
        return ", ".join(f'prev("{name}"){types[name]}' for name in delayed)
