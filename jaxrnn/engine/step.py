"""A user's step traced: once, flat, with the types that go in and come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrnn import trees
from jaxrnn.engine.evaluate import run, trace
from jaxrnn.engine.ir import Flat, read
from jaxrnn.engine.loop import Leaves, Step
from jaxrnn.engine.partition import Parts, partitioned
from jaxrnn.engine.rewrites import opened_remat, placed_nowhere, split_products
from jaxrnn.engine.rules import has_no_gradient, leaves_jax
from jaxrnn.types import Tree


class TracedStep(NamedTuple):
    """A step as equations on lists of leaves, and the structures that they came from."""

    flat: Flat
    carries: int
    out_tree: Any  # of the carry that comes out
    y_tree: Any

    @property
    def carry_out(self) -> Leaves:
        """The types of the carry that comes out."""
        return [a.aval for a in self.flat.outputs[: self.carries]]

    @property
    def ys(self) -> Leaves:
        return [a.aval for a in self.flat.outputs[self.carries :]]

    @property
    def leaves_jax(self) -> bool:
        """Whether it has effects or calls back into Python, and so must be left as it is."""
        return any(map(leaves_jax, self.flat.equations))

    @property
    def is_differentiable(self) -> bool:
        return not any(map(has_no_gradient, self.flat.equations))

    def at(self, consts: Leaves) -> Step:
        """The step with these values closed over: (carry leaves, x leaves) -> (carry leaves, y leaves)."""
        flat, n = self.flat, self.carries

        def step(carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
            inputs = dict(zip([*flat.const_vars, *flat.inputs], [*consts, *carry, *x], strict=True))
            env = run(flat.equations, inputs)
            out = [read(env, a) for a in flat.outputs]
            return out[:n], out[n:]

        return step

    def without_consts(self) -> TracedStep:
        """The same, holding no values of the program that it was traced in."""
        return self._replace(flat=self.flat._replace(consts=[]))

    def on_one_device(self) -> TracedStep:
        """The same without values, and without a mesh if each device runs it on its own: to be priced."""
        in_parts = jax.sharding.get_abstract_mesh().manual_axes
        return self._replace(flat=placed_nowhere(self.flat)) if in_parts else self.without_consts()

    def parts(self, separate: bool | None = None) -> Parts | None:
        """What leaves the loop and what stays; None for a step that must be left alone."""
        if self.leaves_jax:
            return None
        flat = opened_remat(self.flat, self.carries)
        return partitioned(split_products(flat, self.carries), self.carries, separate)


class NotAPair(TypeError):
    """A step that returns no (carry, y)."""


def traced(f: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, x: Tree) -> TracedStep:
    """Traces a step; carry and x may be types. Raises: what the step raises, and `NotAPair`."""
    carry_tree: Any
    x_tree: Any
    carry_leaves, carry_tree = jax.tree.flatten(trees.struct(carry))
    x_leaves, x_tree = jax.tree.flatten(trees.struct(x))
    n = len(carry_leaves)
    structure: list[Any] = []

    def step(*args: Any) -> Leaves:
        out = f(carry_tree.unflatten(args[:n]), x_tree.unflatten(args[n:]))
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise NotAPair(f"the step must return (carry, y), got {type(out).__name__}")
        (carry_out, out_tree), (ys, y_tree) = map(jax.tree.flatten, out)
        structure.append((len(carry_out), out_tree, y_tree))
        return [*carry_out, *ys]

    flat = trace(step, *carry_leaves, *x_leaves)
    return TracedStep(flat, *structure[0])
