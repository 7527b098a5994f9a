"""Which work leaves a loop, decided by bytes: a cheapest cut through the step.

Work that leaves the loop reads a weight once per segment instead of once per step. In return it goes
through memory: what crosses between the loop and it exists for all steps of a segment, and so do its
own results. So each operation is worth, outside, so many bytes for each byte of the weights that it
reads; each value that crosses, and each result of real work outside, costs its bytes.

    work in the loop     pays what its leaving is worth
    work outside         pays the bytes of its results
    a value that crosses pays its bytes;  what exists for all steps anyway crosses for nothing

A product with a weight then leaves, and takes along what lies between it and the input or the output;
what reads a large carry (a ring buffer, a cache of keys) or has no weight stays where its operands are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from jax.extend.core import Var

from jaxrnn.engine.ir import is_float, producers, size_bytes, variables
from jaxrnn.engine.minimum_cut import Network
from jaxrnn.engine.rules import Equation, is_light

READ_ONCE = 16  # bytes through memory that it is worth to read a byte of a weight once per segment, not at every step
_ENDLESS = float(2**60)


def _network(equations: Sequence[Equation], as_wide: dict[Var, int]) -> Network:
    """What crosses from where it is made to where it is read; and nothing is read before it is made."""
    network, made_by = Network(), producers(equations)
    for e in equations:
        for v in e.outvars:
            network.link(id(e), v, as_wide.get(v, size_bytes(v)))
        for v in variables(e.invars):
            network.link(v, id(e), _ENDLESS)
            if v in made_by:
                network.link(id(e), id(made_by[v]), _ENDLESS)
    return network


def _worth(equation: Equation, same: Collection[Var]) -> int:
    """What it is worth that an operation leaves the loop; `same` are the values that no step changes."""
    if is_light(equation):
        return 0
    return READ_ONCE * sum(size_bytes(v) for v in variables(equation.invars) if v in same and is_float(v))


def _results(equation: Equation) -> int:
    return 0 if is_light(equation) else sum(map(size_bytes, equation.outvars))


def leaving_before(equations: Sequence[Equation], read: Iterable[Var], same: Collection[Var]) -> list[Equation]:
    """Of the equations that need no carry, those to be done before the loop, which reads the given values.

    Of choices that cost the same, the one that leaves most outside.
    """
    network = _network(equations, {})
    for e in equations:
        network.link(network.START, id(e), _worth(e, same))
        network.link(id(e), network.END, _results(e))
    for v in read:
        network.link(v, network.END, _ENDLESS)
    in_loop = network.end_side()
    return [e for e in equations if id(e) not in in_loop]


def staying_for_outputs(
    equations: Sequence[Equation],
    made: Iterable[Var],
    outputs: Collection[Var],
    same: Collection[Var],
    bound: Collection[Var],
) -> list[Equation]:
    """Of the equations that only outputs need, those to be done in the loop, which makes the given values anyway.

    Outputs exist for all steps in any case, so they cross for next to nothing. Of choices that cost the
    same, the one that leaves most in the loop; what makes a bound value never leaves.
    """
    network = _network(equations, dict.fromkeys(outputs, 1))
    for e in equations:
        network.link(id(e), network.END, _worth(e, same))
        network.link(network.START, id(e), _ENDLESS if any(v in bound for v in e.outvars) else _results(e))
    for v in made:
        network.link(network.START, v, 1 if v in outputs else size_bytes(v))
    for y in outputs:
        network.link(y, network.END, _ENDLESS)
    outside = network.end_side()
    return [e for e in equations if id(e) not in outside]
