"""One step of a loop that is left when everything else has been taken out of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Var

from jaxrnn.engine.evaluate import is_plain_product, run
from jaxrnn.engine.ir import Atom, Env, is_float, read, reads, variables
from jaxrnn.engine.rules import Equation, hides_its_derivative, is_product, rule

Leaves = list[Any]  # arrays, one per leaf
Step = Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]  # (carry, what is read at this step) -> (carry, emitted)


class Loop(NamedTuple):
    """A step: from `invariant`, `carry` and `stacked` values to `carry_out` and `emitted`."""

    equations: list[Equation]
    invariant: list[Var]  # read, the same at every step
    carry: list[Var]
    stacked: list[Var]  # read, one per step
    carry_out: list[Atom]
    emitted: list[Var]  # one per step, for the parts after the loop
    held: Env = {}  # constants of the trace; never written to

    @property
    def inputs(self) -> list[Var]:
        return [*self.invariant, *self.carry, *self.stacked]

    @property
    def outputs(self) -> list[Atom]:
        return [*self.carry_out, *self.emitted]

    @property
    def defers(self) -> bool:
        """Whether its derivative can be taken apart: not where a `cond` or a `custom_vjp` is differentiated."""
        tangents = {v for v in self.inputs if is_float(v)}
        for equation in self.equations:
            moved = reads(equation, tangents)
            if moved and hides_its_derivative(equation):
                return False
            if moved and rule(equation).has_derivative:
                tangents.update(filter(is_float, equation.outvars))
        return True

    @property
    def weights(self) -> list[Var]:
        """The invariant values that products in the loop read: their gradients can be deferred."""
        known = set(self.invariant)
        read_by = [v for e in self.equations if is_product(e) for v in variables(e.invars)]
        return list(dict.fromkeys(v for v in read_by if v in known))

    @property
    def matrices(self) -> list[int]:
        """Which of the invariant values are matrices that a product in the loop multiplies with from the right."""
        found = {e.invars[1] for e in self.equations if is_plain_product(e) and e.invars[1] in self.invariant}
        return [n for n, v in enumerate(self.invariant) if v in found]

    def at(self, invariant: Sequence[Any]) -> Step:
        """The step as a scan wants it, with these invariant values."""
        given = self.held | dict(zip(self.invariant, invariant, strict=True))

        def step(carry: Leaves, stacked: Leaves) -> tuple[Leaves, Leaves]:
            env = given | dict(zip(self.carry, carry, strict=True)) | dict(zip(self.stacked, stacked, strict=True))
            env = run(self.equations, env)
            return [read(env, a) for a in self.carry_out], [read(env, a) for a in self.emitted]

        return step
