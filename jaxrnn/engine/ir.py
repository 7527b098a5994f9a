"""A step as equations: traced flat, and what can be read off the list of them.

Only public JAX: equations are evaluated through one-equation jaxprs (but for elementwise ones at thinner operands,
`thin.py`), and types are JAX's own (`aval`), so that weak types, shardings and what varies over a mesh stay in them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal, Var

from jaxrnn import trees
from jaxrnn.engine.rules import Equation

Atom = Any  # a Var or a Literal
Env = dict[Var, Any]  # what variables stand for while equations are evaluated


class Flat(NamedTuple):
    """A traced function without nested jit calls: outputs computed by equations from inputs and consts."""

    consts: list[Any]  # the values that it closed over
    const_vars: list[Var]
    inputs: list[Var]
    equations: list[Equation]
    outputs: list[Atom]


def is_var(atom: Atom) -> bool:
    return not isinstance(atom, Literal)


def variables(atoms: Iterable[Atom]) -> list[Var]:
    """The distinct variables among atoms, in order."""
    return list(dict.fromkeys(a for a in atoms if is_var(a)))


def is_float(v: Atom) -> bool:
    return trees.is_float(v.aval)


def size_bytes(v: Atom) -> int:
    return trees.leaf_bytes(v.aval)


def producers(equations: Iterable[Equation]) -> dict[Var, Equation]:
    return {v: e for e in equations for v in e.outvars}


def slice_back(equations: Sequence[Equation], wanted: Iterable[Atom], given: Iterable[Var]) -> list[Equation]:
    """The equations that compute the wanted variables from the given ones, in order."""
    given = set(given)
    needed = {v for v in variables(wanted) if v not in given}
    chosen = []
    for equation in reversed(equations):
        if needed.intersection(equation.outvars):
            chosen.append(equation)
            needed.update(v for v in variables(equation.invars) if v not in given)
    return chosen[::-1]


def reads(equation: Equation, found: set[Var]) -> bool:
    """Whether an equation reads any of these variables."""
    return not found.isdisjoint(variables(equation.invars))


def reached(equations: Iterable[Equation], sources: Iterable[Var]) -> set[Var]:
    """All variables that depend on the sources, the sources among them."""
    found = set(sources)
    for equation in equations:
        if reads(equation, found):
            found.update(equation.outvars)
    return found


def as_jaxpr(inputs: Sequence[Var], equations: Sequence[Equation], outputs: Sequence[Atom]) -> Jaxpr:
    """A piece of a step as a jaxpr of its own."""
    effects = frozenset().union(*(e.effects for e in equations)) if equations else frozenset()
    return Jaxpr((), list(inputs), list(outputs), list(equations), effects, _no_names())


@functools.cache
def _no_names() -> Any:
    """Debug information that claims no names for arguments: with `jax_enable_checks` their number must be right."""
    return jax.make_jaxpr(lambda: ())().jaxpr.debug_info._replace(arg_names=None, result_paths=None)


def as_text(flat: Flat) -> str:
    """The whole function with its types, the same for the same function."""
    return str(as_jaxpr([*flat.const_vars, *flat.inputs], flat.equations, flat.outputs))


def read(env: Mapping[Var, Any], atom: Atom) -> Any:
    return env[atom] if is_var(atom) else atom.val
