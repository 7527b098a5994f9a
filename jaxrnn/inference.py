"""What a cell does to shapes, found by tracing it abstractly (no arithmetic is done)."""

from __future__ import annotations

import jax

from jaxrnn import checks, trees
from jaxrnn.types import Cell, Params, State, Tree


def one_step(cell: Cell, params: Params, x: Tree, batch: tuple[int, ...]) -> tuple[State, State, Tree]:
    """The structs of (state before, state after, y) for one step of a batch of this shape, run with a key."""

    def run(params: Params, x: Tree) -> tuple[State, State, Tree]:
        key = jax.random.key(0)
        begun = cell.begin(params, key)
        state = cell.initial_state(begun, batch)
        return state, *cell.step(begun, state, x, key=key)

    return jax.eval_shape(run, params, trees.struct(x))


def fits(cell: Cell, params: Params, x: Tree, batch: tuple[int, ...]) -> bool:
    """Whether a state of this batch shape keeps its shape through one step of input x."""
    try:
        # With too few batch dimensions a step broadcasts or fails; both mean no.
        with jax.numpy_rank_promotion("allow"):
            state, state_out, _ = one_step(cell, params, x, batch)
    except Exception:  # noqa: BLE001  whatever a user's step raises
        return False
    return trees.same_shapes(state, state_out)


def batch_shape(where: str, cell: Cell, params: Params, x: Tree) -> tuple[int, ...]:
    """The batch dimensions of one step's input x.

    Only the cell knows how many trailing dimensions of x are features ([B] tokens have none,
    [B, D] has one). They are found as the fewest leading dimensions of x for which a state of
    that batch shape keeps its shape through one step; a cell without state has none.
    """
    leaves = jax.tree.leaves(trees.struct(x))
    leading = leaves[0].shape if leaves else ()
    for k in range(len(leading) + 1):
        if fits(cell, params, x, leading[:k]):
            return leading[:k]
    # If the step itself fails, let it say why, with all dimensions but the last as batch, as is most usual.
    one_step(cell, params, x, leading[:-1])
    raise ValueError(
        f"{where}: no batch shape makes the step keep its state's shape for an input x of "
        f"{[checks.describe(leaf) for leaf in leaves]}; check that the step returns (state, y), "
        "that the state goes out as it came in, or pass the first state explicitly"
    )


def output(where: str, cell: Cell, params: Params, x: Tree) -> Tree:
    """The struct of y for one step's input x."""
    return one_step(cell, params, x, batch_shape(where, cell, params, x))[2]
