"""What a cell does to shapes, found by tracing it abstractly (no arithmetic is done)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from jaxrnn import checks, trees
from jaxrnn.types import Cell, Key, Params, State, Tree


class Look(NamedTuple):
    """The types that go into and come out of one step."""

    state: State
    state_out: State
    y: Tree


Batch = tuple[int, ...]


def one_step(cell: Cell, params: Params, x: Tree, batch: Batch) -> Look:
    """One step of a batch of this shape, run with a key."""

    def run(params: Params, x: Tree) -> Look:
        key = jax.random.key(0)
        begun = cell.begin(params, key)
        return _stepped(cell, begun, cell.initial_state(begun, batch), x, key)

    return jax.eval_shape(run, params, trees.struct(x))


def first_step(cell: Cell, begun: Params, x: Tree, key: Key | None, batch: Batch) -> Look:
    """One step from the cell's own state, with parameters that are begun; x and key are types."""
    return jax.eval_shape(lambda x, key: _stepped(cell, begun, cell.initial_state(begun, batch), x, key), x, key)


def step_from(cell: Cell, begun: Params, state: State, x: Tree, key: Key | None) -> Look:
    """One step from a given state; x and key are types."""
    return jax.eval_shape(lambda state, x, key: _stepped(cell, begun, state, x, key), state, x, key)


def _stepped(cell: Cell, begun: Params, state: State, x: Tree, key: Key | None) -> Look:
    out = cell.step(begun, state, x, key=key)
    if not isinstance(out, tuple) or len(out) != 2:
        got = checks.describe(out) if hasattr(out, "shape") else type(out).__name__
        raise ValueError(f"the step must return (state, y), got {got}")
    return Look(state, *out)


def step_from_given(where: str, cell: Cell, begun: Params, state: State, x: Tree, key: Key | None) -> Look:
    """One step from a state that the user gave; if the step cannot take it, an error says what it wants."""
    look = keeps_shapes(lambda: step_from(cell, begun, state, x, key))
    if look is None:  # the step's own complaint would be about its insides
        batch, first = searched(where, x, lambda batch: first_step(cell, begun, x, key, batch))
        remedy = f"start from cell.initial_state(params, {batch})"
        checks.same_type(where, "state", first.state, state, remedy)
        look = step_from(cell, begun, state, x, key)
    return look


def keeps_shapes(look: Callable[[], Look]) -> Look | None:
    """A look at a step, if its state comes out in the shape in which it goes in; None if not, or if the step fails."""
    try:
        # With too few batch dimensions a step broadcasts or fails; both mean no.
        with jax.numpy_rank_promotion("allow"):
            found = look()
    except Exception:  # noqa: BLE001  whatever a user's step raises
        return None
    return found if trees.same_shapes(found.state, found.state_out) else None


def fits(cell: Cell, params: Params, x: Tree, batch: Batch) -> bool:
    """Whether a state of this batch shape keeps its shape through one step of input x."""
    return keeps_shapes(lambda: one_step(cell, params, x, batch)) is not None


def batch_shape(where: str, cell: Cell, params: Params, x: Tree) -> Batch:
    """The batch dimensions of one step's input x.

    Only the cell knows how many trailing dimensions of x are features ([B] tokens have none,
    [B, D] has one). They are found as the fewest leading dimensions of x for which a state of
    that batch shape keeps its shape through one step; a cell without state has none.
    """
    return searched(where, x, lambda batch: one_step(cell, params, x, batch))[0]


def searched(where: str, x: Tree, look: Callable[[Batch], Look]) -> tuple[Batch, Look]:
    """The batch dimensions of x, and the look at the step that shows them."""
    leaves = jax.tree.leaves(trees.struct(x))
    leading = leaves[0].shape if leaves else ()
    for k in range(len(leading) + 1):
        found = keeps_shapes(partial(look, leading[:k]))
        if found is not None:
            return leading[:k], found
    # If the step itself fails, let it say why, with all dimensions but the last as batch, as is most usual.
    look(leading[:-1])
    raise ValueError(
        f"{where}: no batch shape makes the step keep its state's shape for an input x of "
        f"{[checks.describe(leaf) for leaf in leaves]}; check that the step returns (state, y), "
        "that the state goes out as it came in, or pass the first state explicitly"
    )


def output(where: str, cell: Cell, params: Params, x: Tree) -> Tree:
    """The type of y for one step's input x."""
    return searched(where, x, lambda batch: one_step(cell, params, x, batch))[1].y
