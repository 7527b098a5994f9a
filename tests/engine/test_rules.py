"""The table of primitives: every primitive that the installed JAX has is judged, and how."""

import jax
import jax.extend.core.primitives
import jax.numpy as jnp
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.engine import rules
from jaxrnn.engine.rules import Kind

# Judged by their shapes, and rightly: a cheap operation on each element.
ELEMENTWISE = set(
    """abs and not or xor eq ne lt le gt ge eq_to lt_to le_to square integer_pow is_finite conj clz
    population_count shift_left shift_right_arithmetic shift_right_logical one_minus_square polynomial""".split()
)
# Not operations on arrays, or with equations inside: `judged` calls them work, or JAX opens them before we see them.
NO_ARITHMETIC = set(
    """scan while cond custom_jvp_call custom_vjp_call custom_linear_solve custom_lin call eval_jaxpr after_all
    create_token get swap axis_index reduce tie pbroadcast""".split()
)


def installed():
    found = (getattr(jax.extend.core.primitives, name) for name in dir(jax.extend.core.primitives))
    return sorted({p.name for p in found if isinstance(p, jax.extend.core.Primitive)})


@pytest.mark.parametrize("name", installed())
def test_every_primitive_of_this_jax_is_judged(name):
    """A primitive that JAX adds fails here until somebody has looked at it: elementwise needs no row, all else may."""
    assert rules.is_named(name) or name in ELEMENTWISE | NO_ARITHMETIC, f"{name}: is it elementwise, or is a row due?"


def kinds(fn, *args):
    return [rules.rule(e).kind for e in jax.make_jaxpr(fn)(*args).jaxpr.eqns]


def test_what_a_primitive_without_a_row_does_decides():
    x = jnp.ones((2, 3))
    assert not rules.is_named("square") and kinds(lax.square, x) == [Kind.ARITHMETIC]
    assert not rules.is_named("ge") and kinds(lambda a: lax.ge(a, a), x) == [Kind.ARITHMETIC]
    assert kinds(lambda a: lax.fori_loop(0, 3, lambda i, b: b + 1, a), x) == [Kind.WORK]
    assert rules.judged([x, jnp.ones(())], [x], False).kind is Kind.ARITHMETIC
    assert rules.judged([x], [jnp.ones(3)], False).kind is Kind.WORK
    assert rules.judged([x], [x], True).kind is Kind.WORK


def test_a_policy_judges_a_primitive_without_a_row_by_its_result():
    double = jax.extend.core.Primitive("twice_for_this_test")
    double.def_abstract_eval(lambda a: a)
    fold = jax.extend.core.Primitive("folded_for_this_test")
    fold.def_abstract_eval(lambda a: a.update(shape=a.shape[1:]))
    aval = jax.typeof(jnp.ones((2, 3)))
    assert not rules.worth_keeping(double, aval)
    assert rules.worth_keeping(fold, aval)


def test_tanh_s_derivative_is_redone_however_jax_states_it():
    """JAX 0.12 has a primitive for 1 - y^2, which no table here names: what is kept must not depend on that."""
    x = jax.ShapeDtypeStruct((4, 32), jnp.float32)
    bytes_kept = {}
    for name, cell in {"elman": rnn.elman(32), "lstm": rnn.lstm(32), "gru": rnn.gru(32)}.items():
        params = cell.init(jax.random.key(0), x)
        bytes_kept[name] = rnn.analysis.kept_per_step(cell, params, x, scan=rnn.fissioned(2**30)).kept
    assert bytes_kept == {"elman": 4 * 32 * 4, "lstm": 7 * 4 * 32 * 4, "gru": 5 * 4 * 32 * 4}


def test_operations_are_counted_by_the_table():
    x, w = jnp.ones((2, 3)), jnp.ones((3, 5))
    assert rnn.analysis.flops(lambda: x @ w) == 2 * 2 * 3 * 5
    assert rnn.analysis.flops(lambda: jnp.tanh(x) + x) == 12
    assert rnn.analysis.flops(lambda: jnp.sum(x)) == 6
    assert rnn.analysis.flops(lambda: x.T.reshape(6)[2:4]) == 0
    assert rnn.analysis.flops(lambda: lax.scan(lambda c, _: (c @ w @ w.T, None), x, length=7)[0]) == 7 * 2 * 60
