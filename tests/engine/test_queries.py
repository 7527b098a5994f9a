"""What the engine says of a recurrence, beside what its equations say."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.engine.parallel_program import way_of
from jaxrnn.engine.queries import recurrence
from jaxrnn.engine.step import traced

N = 3
W = jnp.ones((N, N))
H = jnp.ones(N)


def kinds(step, *carry):
    """(leaves, kind) of each component; step(carry..., x) -> carry."""
    found = traced(lambda c, x: (step(*c, x), ()), carry, jnp.ones(N))
    return [(each.leaves, each.kind) for each in recurrence(found.flat, found.carries)]


ONE = {
    "constant": (lambda s, x: s, "constant"),
    "total": (lambda s, x: s + x, "total"),
    "total, subtracting": (lambda s, x: s - jnp.sin(x), "total"),
    "replaced": (lambda s, x: x, "elementwise"),
    "decay": (lambda s, x: 0.9 * s + x, "elementwise"),
    "gate of the input": (lambda s, x: jax.nn.sigmoid(x) * s + (1 - jax.nn.sigmoid(x)) * x, "elementwise"),
    "one gate for all": (lambda s, x: jnp.sum(x) * s + x, "elementwise"),
    "divided": (lambda s, x: (s + x) / (1 + x * x), "elementwise"),
    "negated": (lambda s, x: x - s, "elementwise"),
    "twice itself": (lambda s, x: s + s, "elementwise"),
    "a choice by the input": (lambda s, x: jnp.where(x > 0, s, x), "elementwise"),
    "in a jit": (lambda s, x: jax.jit(lambda a, b: a * b)(s, x), "elementwise"),
    "in a checkpoint": (lambda s, x: jax.checkpoint(lambda a, b: a * b + b)(s, x), "elementwise"),
    "a product": (lambda s, x: s @ W + x, "affine"),
    "shifted": (lambda s, x: jnp.roll(s, 1) + x, "affine"),
    "averaged": (lambda s, x: jnp.mean(s) + x, "affine"),
    "a buffer": (lambda s, x: lax.dynamic_update_slice(s, x[:1], (1,)), "affine"),
    "a choice by itself": (lambda s, x: jnp.where(s > 0, s, x), "nonlinear"),
    "clipped": (lambda s, x: jax.nn.relu(s + x), "nonlinear"),
    "squared": (lambda s, x: s * s + x, "nonlinear"),
    "divides": (lambda s, x: x / s, "nonlinear"),
    "Elman's": (lambda s, x: jnp.tanh(s @ W + x), "nonlinear"),
    "in a loop": (lambda s, x: lax.fori_loop(0, 2, lambda i, a: a + 1.0, s), "nonlinear"),
}


@pytest.mark.parametrize("step, kind", ONE.values(), ids=list(ONE))
def test_the_form_of_one_leaf(step, kind):
    assert kinds(lambda s, x: (step(s, x),), H) == [((0,), kind)]


@pytest.mark.parametrize("step, kind", ONE.values(), ids=list(ONE))
def test_the_parallel_scan_agrees(step, kind):
    """What is called linear element by element has an affine form; what mixes elements, or divides by itself, none."""
    found = traced(lambda c, x: ((step(*c, x),), ()), (H,), jnp.ones(N))
    parts = found.parts(separate=True)
    forms = [stage_form(stage.loop) for stage in parts.stages]
    if kind == "constant":
        assert parts.constant == [0] and not forms
    elif kind in ("total", "elementwise"):
        assert parts.totals == (0,) or forms == ["affine"]
    else:
        assert forms == [{"max": "clipped"}.get(recurrence(found.flat, 1)[0].because, "none")]


def stage_form(loop):
    form = way_of(loop).form
    return form.kind if form else "none"


def test_components_are_told_apart_in_the_order_in_which_they_need_each_other():
    step = lambda a, b, c, x: (jnp.tanh(a @ W + x), a * b + x, c + b)
    assert kinds(step, H, H, H) == [((0,), "nonlinear"), ((1,), "elementwise"), ((2,), "total")]


def test_a_rotation_is_one_component_element_by_element():
    """Complex numbers as two leaves: a small block for each element."""
    step = lambda re, im, x: (0.6 * re - 0.8 * im + x, 0.8 * re + 0.6 * im)
    assert kinds(step, H, H) == [((0, 1), "elementwise")]
    swapped = lambda a, b, x: (b, a)
    assert kinds(swapped, H, H) == [((0, 1), "elementwise")]


def test_an_answer_holds_for_all_values():
    """A coefficient that happens to be zero, or one, is a coefficient."""
    assert kinds(lambda s, x: (s * jnp.zeros(N) @ W,), H) == [((0,), "affine")]
    assert kinds(lambda s, x: (s * jnp.ones(N) + x,), H) == [((0,), "elementwise")]


def test_explain_says_what_and_why():
    x = jax.ShapeDtypeStruct((2, N), jnp.float32)
    cells = {"elman": rnn.elman(4), "ind_rnn": rnn.ind_rnn(4), "lstm": rnn.lstm(4)}
    said = {n: rnn.analysis.explain(c, c.init(jax.random.key(0), x), x).recurrences for n, c in cells.items()}
    assert said["elman"] == ("state: nonlinear (tanh)",)
    assert said["lstm"][0].startswith("state.h, state.c: nonlinear")
    assert said["ind_rnn"][0].startswith("state: nonlinear")
