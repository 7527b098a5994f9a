"""The frame that all strategies share: a loop to be run, checked and traced as `lax.scan` does it.

A strategy writes only what is its own, `run(problem)`: it works on flat lists of leaves, and ends with
`problem.result` of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks, meshes, trees
from jaxrnn.engine.copies import with_copies
from jaxrnn.engine.loop import Leaves, Step
from jaxrnn.engine.step import NotAPair, TracedStep, traced
from jaxrnn.types import Scan, Tree


class LoopProblem:
    """A loop to be run: a step, the first carry, all inputs, and so many steps.

    The user's step is traced when it is first asked for, and once: every strategy, and every scan inside
    it, runs the equations. Errors, promotions and types are those of `lax.scan`.
    """

    def __init__(
        self,
        where: str,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree,
        length: int | None,
        reverse: bool,
        options: dict[str, Any],
    ):
        self.where, self.f, self.given = where, f, (init, xs)
        self.steps = checks.steps(where, xs, length)
        self.reverse, self.options = reverse, options

    @functools.cached_property
    def _traced(self) -> tuple[TracedStep, Leaves, Leaves]:
        """The step, and the types of the last carry and of one step's outputs."""
        init, xs = self.given
        x, carry = trees.first_step(xs), trees.struct(init)
        try:
            found = traced(self.f, carry, x)
        except NotAPair:
            self._as_lax_scan_finds()
            raise
        going_in = [v.aval for v in found.flat.inputs[: len(jax.tree.leaves(carry))]]
        if found.out_tree != jax.tree.structure(carry) or found.carry_out != going_in:
            # A weak type that must become strong, or an error: `lax.scan` does the one and raises the other.
            carry = self._as_lax_scan_finds()
            found = traced(self.f, carry, x)
        types = jax.tree.leaves(carry), found.ys
        if meshes.on_mesh(init, xs):
            found = found._replace(flat=with_copies(found.flat, meshes.told()))
        return found, *types

    def _as_lax_scan_finds(self) -> Tree:
        """The type of the carry after `lax.scan`'s own checks, errors and promotions."""
        return jax.eval_shape(lambda c, x: lax.scan(self.f, c, x, length=self._length), *self.given)[0]

    @property
    def _length(self) -> Any:
        """T where xs does not tell; `lax.scan` is not given it twice, and does not take it as a symbol."""
        return None if jax.tree.leaves(self.given[1]) else self.steps

    @property
    def traced(self) -> TracedStep:
        return self._traced[0]

    @functools.cached_property
    def init(self) -> Leaves:
        """The leaves of the first carry, promoted as `lax.scan` promotes them."""
        leaves = jax.tree.leaves(self.given[0])
        return [trees.of_type(a, t) for a, t in zip(leaves, self.carry_types, strict=True)]

    @functools.cached_property
    def xs(self) -> Leaves:
        return [jnp.asarray(a) for a in jax.tree.leaves(self.given[1])]

    @property
    def carry_types(self) -> Leaves:
        return [v.aval for v in self.traced.flat.inputs[: self.traced.carries]]

    @property
    def x_types(self) -> Leaves:
        return [v.aval for v in self.traced.flat.inputs[self.traced.carries :]]

    @property
    def step(self) -> Step:
        """(carry leaves, x leaves) -> (carry leaves, y leaves): the traced equations."""
        return self.traced.at(self.traced.flat.consts)

    def under(self, scan: Scan) -> Callable[..., Any]:
        """A scan with the options that the caller gave for the loop itself, such as `unroll`."""
        return functools.partial(scan, **self.options) if self.options else scan

    def as_given(self, scan: Scan) -> tuple[Tree, Tree]:
        """The whole loop, of the step as the user wrote it, under another scan."""
        return self.under(scan)(self.f, *self.given, length=self._length, reverse=self.reverse)

    def whole(self, scan: Scan, step: Step | None = None) -> tuple[Tree, Tree]:
        """The whole loop, of the equations or of a step that does the same, under another scan."""
        how = {"length": self.steps, "reverse": self.reverse}
        return self.result(*self.under(scan)(step or self.step, self.init, self.xs, **how))

    def result(self, carry: Leaves, ys: Leaves) -> tuple[Tree, Tree]:
        """Leaves as the trees that the step has, of the types that `lax.scan` gives them."""
        found, carry_types, y_types = self._traced
        carry = [trees.of_type(a, t) for a, t in zip(carry, carry_types, strict=True)]
        ys = [trees.of_type(a, t) for a, t in zip(ys, y_types, strict=True)]
        return found.out_tree.unflatten(carry), found.y_tree.unflatten(ys)

    def known_steps(self) -> int:
        """T, for strategies that lay out the loop by it. Raises: ValueError where it is a symbol."""
        if not isinstance(self.steps, int):
            raise ValueError(
                f"{self.where}: the number of steps must be known, got the symbol {self.steps}; "
                "export with jaxrnn.scan or jax.lax.scan, or give xs a definite length"
            )
        return self.steps


class Strategy:
    """A way to run a loop, called as `jax.lax.scan` is called; a subclass says how, in `run`.

    Of `lax.scan`'s further options, `unroll` and `_split_transpose` go to the loops that remain.
    """

    name: ClassVar[str]  # what errors call it

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
        unroll: int | bool = 1,
        _split_transpose: bool = False,
    ) -> tuple[Tree, Tree]:
        options: dict[str, Any] = {} if unroll == 1 else {"unroll": unroll}
        options |= {"_split_transpose": True} if _split_transpose else {}
        return self.run(LoopProblem(self.name, f, init, xs, length, reverse, options))

    def run(self, problem: LoopProblem) -> tuple[Tree, Tree]:
        """The last carry and all outputs, [T, ...]."""
        raise NotImplementedError
