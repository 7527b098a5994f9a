"""The contracts that everything else is written against: what a cell, a sequence layer and a scan are.

Letters, used in every shape comment: `T` time steps, `B` batch (any number of leading dimensions,
also none), `D` input features, `H` hidden units, `K` steps per segment, `S` segments.
Arrays are time-major, `[T, *B, ...]`. A suffix `_tm1` is the previous step's value of a name.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple, Protocol

import jax

Key = jax.Array  # a PRNG key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)
Params = Any  # any pytree of arrays
State = Any  # any pytree of arrays with leading dimensions *B; () where there is none
Tree = Any


def nothing_to_draw(params: Params, key: Key) -> Params:
    """The `begin` of a cell that draws nothing once per sequence."""
    del key
    return params


# Two cells, or two layers, are the same if their functions are; a method is the same as that of an equal object. So
# they can be keys of caches and static arguments of `jax.jit`, and those that were pickled are found again.


def _parts(function: Callable[..., Any]) -> Any:
    """A method as its function and its object, which compares by value where the object does."""
    if isinstance(function, MethodType):
        return function.__func__, function.__self__
    return function


def _same_functions(a: Any, b: Any) -> bool:
    return type(a) is type(b) and tuple(map(_parts, a)) == tuple(map(_parts, b))


def _hash_of_functions(functions: Any) -> int:
    try:
        return hash(tuple(map(_parts, functions)))
    except TypeError:  # an option that has no hash, such as a list of Flax modules
        return hash(tuple(getattr(function, "__func__", None) for function in functions))


class Cell(NamedTuple):
    """One time step of a recurrent net, as pure functions.

        params = init(key, x)                            x: one step's input, or its ShapeDtypeStruct
        state  = initial_state(params, batch_shape)
        state, y = step(params, state, x, key=None)      the order of `lax.scan`

    so that the whole unrolled net is `lax.scan(partial(step, params), state, xs)`.

    `step` takes any leading batch dimensions, also none. Its state has the same structure, shapes
    and dtypes going in and coming out. A layer without memory is a cell whose state is `()`; so
    embedding, recurrent layers, readout and loss together are one cell, written for one step.

    `key` is this step's own key: `unroll(..., key=key)` splits one off per step. `None` means
    deterministic, as in evaluation. `begin(params, key)` draws what stays the same for a whole
    sequence (a dropout mask, say); `unroll` calls it once, before the loop, and hands what it
    returns to `step` and to `initial_state` in place of the parameters.
    """

    init: Callable[[Key, Tree], Params]
    initial_state: Callable[[Params, tuple[int, ...]], State]
    step: Callable[..., tuple[State, Tree]]
    begin: Callable[[Params, Key], Params] = nothing_to_draw

    def __eq__(self, other: object) -> bool:
        return _same_functions(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return _hash_of_functions(self)


def as_long(lengths: jax.Array) -> jax.Array:
    """The `shortened` of a layer that gives one output per input."""
    return lengths


class SequenceLayer(NamedTuple):
    """A layer that needs the whole sequence, as pure functions: one that reads it from both ends, or several steps
    at once.

        params    = init(key, x)                    x: ONE step's input, or its ShapeDtypeStruct, as a Cell's
        state, ys = apply(params, xs, lengths=None, resets=None, key=None, scan=jaxrnn.scan)

    Shapes: xs [T, *B, ...]; ys [T', *B, ...], where T' is T but for layers that say otherwise; lengths [*B] in 0..T;
    resets [T, *B] booleans. ys is 0 from a sequence's end on, and what is in the padding, NaN included, reaches no
    value and no gradient. `state` is what the layer's cells end in. `shortened(lengths)` are the lengths of ys.

    `unroll` takes a layer where it takes a cell. A cell becomes one by `over_time`; `chain` makes one of many.
    """

    init: Callable[[Key, Tree], Params]
    apply: Callable[..., tuple[State, Tree]]
    shortened: Callable[[jax.Array], jax.Array] = as_long

    def __eq__(self, other: object) -> bool:
        return _same_functions(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return _hash_of_functions(self)


class Learner(NamedTuple):
    """A gradient that comes while time runs, as a pair of pure functions; made by `online(cell, method)`.

        carry = init(params, x, state=None, key=None)         x: one step's input [*B, ...], or its ShapeDtypeStruct
        carry, loss, grads = update(params, carry, xs, key=None)      xs [K, *B, ...]: the next K steps of the stream

    The cell ends in its loss, [*B] a step. `loss` is the sum over the window's steps of the mean over the batch;
    `grads`, like params, is what the method makes of its gradient, with all that it remembers of earlier windows. The
    size of a carry does not depend on how long the stream is. Parameters may change between updates: what is
    remembered was then found at earlier ones.

    `key` is for cells and methods that draw: given to `init` it serves the whole stream, with the draws that
    `unroll(..., key=key)` makes; given to `update` it serves that window in its place.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, jax.Array, Params]]

    def __eq__(self, other: object) -> bool:
        return _same_functions(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return _hash_of_functions(self)


class Scan(Protocol):
    """A way to run a loop over time. Every scan means exactly what `jax.lax.scan` means:

        ys = []
        for x in xs:                    # from the last to the first if reverse
            carry, y = f(carry, x)
            ys.append(y)
        return carry, stack(ys)

    Scans differ only in how the loop is run and in what is kept for the backward pass; the values
    are the same, and so is the gradient (`truncated` and `randomly_truncated` alone cut it, on purpose).
    """

    def __call__(
        self,
        f: Callable[[Tree, Tree], tuple[Tree, Tree]],
        init: Tree,
        xs: Tree = None,
        length: int | None = None,
        reverse: bool = False,
    ) -> tuple[Tree, Tree]: ...
