"""What the engine knows about primitives: one table, one row each.

A primitive that is not in the table is judged by what it does: one result, of the shape of its operands,
and nothing inside it, is arithmetic on each element and cheap to redo; all else is work. So the table
names what a look at the shapes cannot tell, and a new primitive of JAX is at worst redone once too often.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxrnn import trees

Equation = Any  # jax's JaxprEqn, which has no public name


class Kind(enum.Enum):
    """What an operation costs, beside what it would cost to keep its result."""

    MOVES = "moves, names or types data"
    ARITHMETIC = "a cheap operation per element"
    COSTLY = "a dear operation per element"
    REDUCES = "as much as its operands have elements"
    ACCESS = "reads or writes at computed places"
    PRODUCT = "a product of arrays"
    CALL = "what it calls"
    REMAT = "what it calls, and once more in the backward pass"
    DRAWS = "draws random numbers, or derives keys"
    WORK = "more than all these"


class Linear(NamedTuple):
    """In which of its operands an operation is linear."""

    operands: tuple[int, ...] | None = None  # jointly, the others given; None: in all
    either: bool = False  # in each of the operands by itself, the others given: a product
    in_place: bool = False  # element by element: what comes out stands where it stood


class Role(enum.Enum):
    """What an operation does to values of a closed form such as a x + b: see `closed_forms`."""

    SAME = "hands each operand on, perhaps in another dtype"
    SHAPES = "gives it another shape"
    NEGATIVE = "- f"
    SUM = "f + g"
    DIFFERENCE = "f - g"
    PRODUCT = "f g"
    QUOTIENT = "f / g"
    CHOICE = "f or g"
    MAXIMUM = "max(f, g)"
    MINIMUM = "min(f, g)"
    CLAMP = "min(max(f, low), high)"


class Rule(NamedTuple):
    """A row of the table."""

    kind: Kind
    linear: Linear | None = None
    is_sum: bool = False  # adds its operands up: a tap may enter it
    has_derivative: bool = True  # False: its tangent is zero
    makes_complex: bool = False  # of real operands
    role: Role | None = None  # in the arithmetic of closed forms


def _rows(names: str, *row: Any, **columns: Any) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Rule(*row, **columns))


_EACH, _MOVED = Linear(in_place=True), Linear()
_FIRST = Linear((0,))

_TABLE: dict[str, Rule] = {
    **_rows("broadcast_in_dim reshape squeeze expand_dims", Kind.MOVES, _MOVED, role=Role.SHAPES),
    **_rows("transpose slice concatenate rev split", Kind.MOVES, _MOVED),
    **_rows("copy copy_p optimization_barrier device_put name sharding_constraint", Kind.MOVES, _EACH, role=Role.SAME),
    **_rows("reshard mesh_cast pvary pcast convert_element_type", Kind.MOVES, _EACH, role=Role.SAME),
    **_rows("iota empty2 bitcast_convert_type random_wrap random_unwrap random_clone", Kind.MOVES),
    **_rows("pad real imag", Kind.MOVES, _MOVED),
    "select_n": Rule(Kind.MOVES, role=Role.CHOICE),  # linear in its cases: see `queries`
    "stop_gradient": Rule(Kind.MOVES, _EACH, has_derivative=False, role=Role.SAME),
    "complex": Rule(Kind.MOVES, _MOVED, makes_complex=True),
    **_rows("add add_any", Kind.ARITHMETIC, _EACH, is_sum=True, role=Role.SUM),
    "sub": Rule(Kind.ARITHMETIC, _EACH, role=Role.DIFFERENCE),
    "neg": Rule(Kind.ARITHMETIC, _EACH, role=Role.NEGATIVE),
    "reduce_precision": Rule(Kind.ARITHMETIC, _EACH, role=Role.SAME),
    "mul": Rule(Kind.ARITHMETIC, Linear(either=True, in_place=True), role=Role.PRODUCT),
    "div": Rule(Kind.ARITHMETIC, Linear((0,), in_place=True), role=Role.QUOTIENT),
    "max": Rule(Kind.ARITHMETIC, role=Role.MAXIMUM),
    "min": Rule(Kind.ARITHMETIC, role=Role.MINIMUM),
    "clamp": Rule(Kind.ARITHMETIC, role=Role.CLAMP),
    **_rows("sign floor ceil round", Kind.ARITHMETIC, has_derivative=False),
    "threefry2x32": Rule(Kind.ARITHMETIC),
    **_rows(
        """rem exp exp2 log log1p log2 expm1 tanh logistic sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh
        sqrt rsqrt cbrt pow erf erfc erf_inv lgamma digamma polygamma igamma igammac igamma_grad_a random_gamma_grad
        bessel_i0e bessel_i1e regularized_incomplete_beta zeta nextafter""",
        Kind.COSTLY,
    ),
    "reduce_sum": Rule(Kind.REDUCES, _MOVED),
    **_rows("reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin", Kind.REDUCES),
    **_rows("gather dynamic_slice", Kind.ACCESS, _FIRST),
    "dynamic_update_slice": Rule(Kind.ACCESS, Linear((0, 1))),
    **_rows("scatter scatter-add scatter_add", Kind.ACCESS, Linear((0, 2))),
    **_rows("scatter-mul scatter-min scatter-max scatter_mul scatter_min scatter_max", Kind.ACCESS),
    **_rows("dot_general conv_general_dilated", Kind.PRODUCT, Linear(either=True)),
    **_rows("jit pjit closed_call core_call", Kind.CALL),
    **_rows("remat remat2 checkpoint", Kind.REMAT),
    **_rows("random_bits random_split random_fold_in random_seed random_gamma", Kind.DRAWS),
    **_rows("rng_bit_generator rng_uniform", Kind.DRAWS),
    # Their results have the shape of their operands, or could have, and yet they are no elementwise operations.
    **_rows("cumsum reduce_window_sum psum psum2 psum_invariant all_gather all_to_all ppermute", Kind.WORK, _MOVED),
    "triangular_solve": Rule(Kind.WORK, Linear((1,))),
    **_rows(
        """cumprod cummax cummin cumlogsumexp sort cholesky lu qr svd schur eigh hessenberg householder_product
        tridiagonal tridiagonal_solve pmax pmin reduce_window reduce_window_max reduce_window_min select_and_scatter
        select_and_scatter_add select_and_gather_add approx_top_k top_k ragged_all_to_all ragged_dot_general""",
        Kind.WORK,
    ),
    "fft": Rule(Kind.WORK, _MOVED, makes_complex=True),
    "eig": Rule(Kind.WORK, makes_complex=True),
}

CHEAP = (Kind.MOVES, Kind.ARITHMETIC)  # at most one pass over memory: redone rather than kept
LIGHT = (*CHEAP, Kind.COSTLY, Kind.REDUCES)  # not worth a trip through memory on its own


def is_named(name: str) -> bool:
    """Whether the table has a row for it."""
    return name in _TABLE


def rule(equation: Equation) -> Rule:
    """The row of an equation's primitive, or the judgement of one that has no row."""
    found = _TABLE.get(equation.primitive.name)
    if found is not None:
        return found
    inputs, outputs = ([v.aval for v in side] for side in (equation.invars, equation.outvars))
    return judged(inputs, outputs, bool(inner_jaxprs(equation)))


def judged(inputs: Iterable[Any], outputs: Iterable[Any], has_inside: bool) -> Rule:
    """What an unknown primitive is taken for: elementwise if shapes allow it, work otherwise."""
    shapes = {jnp.shape(a) for a in inputs} - {()}
    results = {jnp.shape(a) for a in outputs}
    return Rule(Kind.ARITHMETIC if not has_inside and len(results) == 1 and shapes <= results else Kind.WORK)


def inner_jaxprs(equation: Equation) -> list[Jaxpr]:
    """The bodies of a loop, the branches of a `cond`, what a call calls."""
    return jaxprs_in(equation.params.values())


def jaxprs_in(values: Iterable[Any]) -> list[Jaxpr]:
    """Those among the values of an equation's parameters, or in sequences among them."""
    each = (one for value in values for one in (value if isinstance(value, (tuple, list)) else (value,)))
    return [j.jaxpr if isinstance(j, ClosedJaxpr) else j for j in each if isinstance(j, (ClosedJaxpr, Jaxpr))]


def anywhere(holds: Callable[[Equation], bool], equation: Equation) -> bool:
    """Whether something holds of an equation, or of one inside it."""
    return holds(equation) or any(anywhere(holds, e) for jaxpr in inner_jaxprs(equation) for e in jaxpr.eqns)


def is_cheap(equation: Equation) -> bool:
    return rule(equation).kind in CHEAP


def is_light(equation: Equation) -> bool:
    """Whether an equation is elementwise work or less, all the way down."""
    if equation.primitive.name == "custom_jvp_call" or rule(equation).kind is Kind.CALL:
        return all(is_light(e) for jaxpr in inner_jaxprs(equation)[:1] for e in jaxpr.eqns)
    return rule(equation).kind in LIGHT


def is_product(equation: Equation) -> bool:
    return rule(equation).kind is Kind.PRODUCT


def is_remat(equation: Equation) -> bool:
    return rule(equation).kind is Kind.REMAT


def leaves_jax(equation: Equation) -> bool:
    """Whether it does something that must happen at its step: an effect, or a call back into Python."""
    return anywhere(lambda e: bool(e.effects) or "callback" in e.primitive.name, equation)


def has_no_gradient(equation: Equation) -> bool:
    """Whether it calls back into Python with numbers, outside of any rule that says what the derivative is."""
    if equation.primitive.name.startswith("custom_"):
        return False
    inside = (e for jaxpr in inner_jaxprs(equation) for e in jaxpr.eqns)
    calls = equation.primitive.name in ("pure_callback", "io_callback")
    return (calls and any(trees.is_float(v.aval) for v in equation.invars)) or any(map(has_no_gradient, inside))


def has_own_gradient(equation: Equation) -> bool:
    """Whether it is, or has inside, a `custom_vjp`: its gradient is whatever a rule says, once per step."""
    return anywhere(lambda e: e.primitive.name.startswith("custom_vjp"), equation)


def hides_its_derivative(equation: Equation) -> bool:
    """Whether JAX can differentiate it only after a `vmap`, and our rules before: `cond`, `custom_vjp`.

    Under `vmap` a `cond` becomes a choice between stop_gradients, and a `custom_vjp` that was
    differentiated has no derivative left to be transposed.
    """
    return anywhere(lambda e: e.primitive.name == "cond" or e.primitive.name.startswith("custom_vjp"), equation)


def draws_otherwise_when_batched(equation: Equation) -> bool:
    """Whether all steps at once would draw other numbers: `vmap` keeps each key's own for threefry alone."""

    def holds(e: Equation) -> bool:
        if rule(e).kind is not Kind.DRAWS:
            return False
        types = [v.aval.dtype for v in (*e.invars, *e.outvars)]
        keys = [t for t in types if jnp.issubdtype(t, jax.dtypes.prng_key)]
        return e.primitive.name.startswith("rng_") or any(t.name != "key<fry>" for t in keys)

    return anywhere(holds, equation)


def worth_keeping(primitive: Any, *avals: Any, **params: Any) -> bool:
    """A checkpoint policy for work batched over time: what to keep for the backward pass rather than redo.

    Products, unless the result is much larger than what it is computed from: a readout's logits are
    redone from the hidden units. Elementwise operations and reductions are redone; so is what is
    complex, which JAX's `checkpoint` cannot keep by a policy.
    """
    known = _TABLE.get(primitive.name) or _judged_by_running(primitive, avals, params)
    if known.makes_complex or any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in avals):
        return False
    if primitive.name == "dot_general":
        (contracted, _), (batched, _) = params["dimension_numbers"]
        depth = math.prod(avals[0].shape[d] for d in contracted)
        shared = math.prod(avals[0].shape[d] for d in batched)
        return bool(avals[1].size <= 2 * depth * depth * shared)
    return known.kind not in LIGHT and primitive.name != "gather"


def _judged_by_running(primitive: Any, avals: Iterable[Any], params: dict[str, Any]) -> Rule:
    """A policy is shown no results; those of a primitive without a row are found by tracing it."""
    if jaxprs_in(params.values()):
        return Rule(Kind.WORK)
    outputs = jax.eval_shape(lambda *args: primitive.bind(*args, **params), *avals)
    return judged(avals, jax.tree.leaves(outputs), False)


def flops(equation: Equation, inside: Callable[[Jaxpr], int]) -> int:
    """Floating-point operations of one equation; `inside` counts those of what it calls.

    A product counts 2 per multiply-add, an elementwise operation or reduction 1 per element, a scan's
    body once per step, the costliest branch of a `cond`.
    """
    name, params, found = equation.primitive.name, equation.params, rule(equation)
    inner = [inside(jaxpr) for jaxpr in inner_jaxprs(equation)]
    if name == "scan":
        return int(params["length"]) * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "custom_linear_solve":  # the system itself stands in it as well, and is not evaluated
        return inside(params["jaxprs"].solve.jaxpr)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
        return 2 * depth * equation.outvars[0].aval.size
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * (kernel.size // max(outputs, 1))
    if inner:
        return sum(inner)  # jit, checkpoint, custom rules, while
    if found.kind in (Kind.MOVES, Kind.DRAWS) or name in ("gather", "scatter", "dynamic_slice", "dynamic_update_slice"):
        return 0
    counted = equation.invars if found.kind is Kind.REDUCES or name.startswith("cum") else equation.outvars
    return sum(getattr(v.aval, "size", 0) for v in counted if not isinstance(v, Literal))
