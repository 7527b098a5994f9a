"""`jaxrnn.scan` on any step: a drop-in for `lax.scan`, and what it does to the compiled program."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxrnn as rnn
from jaxrnn.engine.partition import components
from jaxrnn.engine.program import steps_at_once
from jaxrnn.engine.step import traced
from tests.reference import assert_close

T, B, D, H, V = 24, 8, 5, 16, 11


def names(equations):
    return [e.primitive.name for e in equations]


def plan(cell, separate=None):
    params = jax.jit(cell.init)(jax.random.key(0), jnp.zeros((B, D)))
    state = cell.initial_state(params, (B,))
    return traced(lambda s, x: cell.step(params, s, x), state, jnp.zeros((B, D))).parts(separate)


# --- what moves ---------------------------------------------------------------------------------


def test_products_with_the_input_and_the_readout_leave_the_loop():
    found = plan(rnn.stack(rnn.layer(nn.Dense(7)), rnn.lstm(H), rnn.layer(nn.Dense(V))))
    (stage,) = found.stages
    assert names(stage.batched.equations).count("dot_general") == 2
    assert names(stage.loop.equations).count("dot_general") == 1
    assert names(found.last.equations).count("dot_general") == 1
    assert len(stage.loop.emitted) == 1  # h alone


def test_layers_of_a_stack_can_be_loops_of_their_own():
    net = rnn.stack(rnn.lstm(H), rnn.gru(H))
    assert len(plan(net).stages) == 1
    first, second = plan(net, separate=True).stages
    assert (first.places, second.places) == ([0, 1], [2])
    assert names(second.batched.equations).count("dot_general") == 1


def an_average():
    """A running average of what comes in: a recurrence without products."""
    step = lambda params, s, x, *, key=None: (0.9 * s + 0.1 * jnp.sum(jnp.exp(x), axis=-1), ())
    return rnn.Cell(lambda key, x: (), lambda params, batch: jnp.zeros(batch), step)


@pytest.mark.parametrize("upon", [lambda: rnn.losses.ctc([[1, 2]] * B), an_average], ids=["ctc", "average"])
def test_a_large_readout_leaves_the_loop_of_what_reads_it(upon):
    """A loop without products, as CTC's, is a stage of its own behind a product that is better redone than kept."""
    net = lambda classes: rnn.stack(rnn.lstm(H), rnn.layer(nn.Dense(classes)), upon())
    assert len(plan(net(2 * H)).stages) == 1  # not large: worth keeping
    assert len(plan(net(2 * H + 1), separate=False).stages) == 1
    first, second = plan(net(2 * H + 1)).stages
    assert names(first.loop.equations).count("dot_general") == 1
    assert names(second.batched.equations).count("dot_general") == 1
    assert "dot_general" not in names(second.loop.equations)


def test_what_merely_expands_stays_with_its_reader():
    weights = jnp.ones((V, H))

    def step(h, token):
        return jnp.tanh(h + jax.nn.one_hot(token, H)), jax.nn.one_hot(token, V) @ weights

    found = traced(step, jnp.zeros(H), jnp.int32(0)).parts()
    assert found.stages[0].batched.makes == [] and found.stages[0].loop.stacked == found.xs


def test_what_every_step_hands_on_is_as_good_as_closed_over():
    w = jax.random.normal(jax.random.key(0), (H, H))
    step = lambda c, x: ((c[0], jnp.tanh(c[1] @ c[0] + x)), c[1])
    found = traced(step, (w, jnp.zeros(H)), jnp.zeros(H)).parts()
    assert found.constant == [0] and found.stages[0].places == [1]


def test_components_come_in_the_order_in_which_they_need_each_other():
    assert components([{0, 2}, {1, 0}, {0}, {3}]) == [[3], [0, 2], [1]] or components([{0, 2}, {1, 0}, {0}, {3}]) == [
        [0, 2],
        [3],
        [1],
    ]
    assert components([{1}, {2}, {0}]) == [[0, 1, 2]]
    assert components([]) == []


def test_the_segment_balances_weights_against_batched_arrays():
    found = plan(rnn.lstm(H))
    weights, batched = 4 * (D * 4 * H + H * 4 * H + 4 * H), 2 * 4 * B * 4 * H
    assert weights // (2 * batched) < 4 and steps_at_once(found, 1000) == 4
    assert steps_at_once(found, 6) == 6
    assert 1000 % steps_at_once(found, 1000) == 0


def test_where_nothing_is_gained_it_is_lax_scan():
    step = lambda c, x: (c * 0.9 + x, jnp.tanh(c))
    as_text = lambda scan: str(jax.make_jaxpr(lambda c, xs: scan(step, c, xs))(jnp.float32(0), jnp.ones(5)))
    assert as_text(rnn.scan) == as_text(lax.scan)


# --- a drop-in ----------------------------------------------------------------------------------


def dense(w):
    return lambda c, x: (jnp.tanh(c @ w + x), jnp.sum(c @ w))


def test_effects_happen_at_every_step_in_order(capfd):
    def step(c, x):
        jax.debug.print("{}", x, ordered=True)
        return jnp.tanh(c @ jnp.eye(2)) + x, c

    rnn.scan(step, jnp.zeros(2), jnp.arange(4.0))
    jax.effects_barrier()
    assert capfd.readouterr().out.split() == ["0.0", "1.0", "2.0", "3.0"]


@pytest.mark.parametrize("unroll", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, True))])
def test_unroll(unroll):
    w, xs = jax.random.normal(jax.random.key(0), (3, 3)), jnp.ones((7, 3))
    got, want = (s(dense(w), jnp.zeros(3), xs, unroll=unroll) for s in (rnn.scan, lax.scan))
    assert_close(got, want, 1e-6)


def test_nested_in_itself_and_in_lax_scan(x64):
    w = jax.random.normal(jax.random.key(0), (3, 3))

    def loss(outer, inner, w):
        def body(c, x):
            return inner(dense(w), c, jnp.stack([x, 2 * x, x]))

        c, sums = outer(body, jnp.zeros(3), jnp.linspace(0.0, 1.0, 12).reshape(4, 3))
        return jnp.sum(jnp.sin(c)) + jnp.sum(sums)

    compute = lambda *scans: jax.jit(jax.value_and_grad(lambda w: loss(*scans, w)))(w)
    want = compute(lax.scan, lax.scan)
    for scans in [(rnn.scan, rnn.scan), (rnn.scan, lax.scan), (lax.scan, rnn.scan)]:
        assert_close(compute(*scans), want, 1e-10)


def test_every_order_of_differentiation(x64):
    w, xs = jax.random.normal(jax.random.key(0), (3, 3)), jax.random.normal(jax.random.key(1), (5, 3))
    loss = lambda scan, w: jnp.sum(jnp.sin(scan(dense(w), jnp.zeros(3), xs)[1]))
    v = jnp.cos(w)
    orders = (
        lambda f: jax.jvp(f, (w,), (v,)),
        lambda f: jax.linearize(f, w)[1](v),
        lambda f: jax.jvp(jax.grad(f), (w,), (v,))[1],
        lambda f: jax.grad(lambda w: jax.jvp(f, (w,), (v,))[1])(w),
        lambda f: jax.grad(lambda w: jnp.vdot(jax.grad(f)(w), v))(w),
        lambda f: jax.jvp(lambda w: jax.jvp(f, (w,), (v,))[1], (w,), (v,)),
        lambda f: jax.grad(jax.checkpoint(f))(w),
    )
    compute = lambda scan: jax.jit(lambda: [order(lambda w: loss(scan, w)) for order in orders])()
    assert_close(compute(rnn.scan), compute(lax.scan), 1e-9)


def test_custom_rules_are_kept():
    """A step's own custom_vjp and custom_jvp are used, not what they stand for."""

    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))
    w = jax.random.normal(jax.random.key(0), (3, 3))
    step = lambda w: lambda c, x: (clipped(jax.nn.relu(c @ w + x)), c)
    loss = lambda scan, w: jnp.sum(scan(step(w), jnp.ones(3), jnp.ones((6, 3)))[0])
    got, want = (jax.jit(jax.grad(lambda w, s=s: loss(s, w)))(w) for s in (rnn.scan, lax.scan))
    assert_close(got, want, 1e-6)
    free = jax.grad(
        lambda w: jnp.sum(lax.scan(lambda c, x: (jax.nn.relu(c @ w + x), c), jnp.ones(3), jnp.ones((6, 3)))[0])
    )
    assert float(jnp.max(jnp.abs(jax.jit(free)(w) - want))) > 1e-3


@pytest.mark.parametrize("steps", [2, 50, 500])
def test_the_step_is_traced_a_fixed_number_of_times(steps):
    traces = []

    def step(c, x):
        traces.append(1)
        return jnp.tanh(c @ jnp.eye(3) + x), c

    jax.jit(jax.grad(lambda c: jnp.sum(rnn.scan(step, c, jnp.ones((steps, 3)))[0])))(jnp.ones(3))
    assert len(traces) == 1


# --- the compiled gradient ----------------------------------------------------------------------

NETS = {
    "lstm": lambda: rnn.lstm(H),
    "gru": lambda: rnn.gru(H),
    "stack": lambda: rnn.stack(rnn.lstm(H), rnn.gru(13), rnn.layer(nn.Dense(V))),
    "flax": lambda: rnn.recurrent(nn.OptimizedLSTMCell(H)),
}


def gradient(cell, scan, steps=T):
    xs = jax.random.normal(jax.random.key(0), (steps, B, D))
    params = jax.jit(cell.init)(jax.random.key(1), xs[0])
    loss = lambda p: jnp.sum(jnp.sin(rnn.unroll(cell, p, xs, scan=scan)[1]))
    return jax.grad(loss), params


def equations_of(jaxpr, depth=0):
    """(depth in loops, equation) of a jaxpr and all within."""
    for e in jaxpr.eqns:
        yield depth, e
        for value in e.params.values():
            for each in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(each, "jaxpr", each)
                if hasattr(inner, "eqns"):
                    yield from equations_of(inner, depth + (e.primitive.name == "scan"))


def in_loops(cell, scan):
    """Shapes that products make inside a loop, and that loops carry, in the traced gradient."""
    grad, params = gradient(cell, scan)
    products, carried = [], []
    for depth, e in equations_of(jax.make_jaxpr(grad)(params).jaxpr):
        if depth and e.primitive.name == "dot_general":
            products.append(tuple(sorted(e.outvars[0].aval.shape)))
        if e.primitive.name == "scan":
            # What comes out in the shape that one step gives it is carried; outputs have time in front.
            ends = zip(e.outvars, e.params["jaxpr"].jaxpr.outvars, strict=True)
            carried += [tuple(sorted(v.aval.shape)) for v, inner in ends if v.aval.shape == inner.aval.shape]
    weights = {tuple(sorted(w.shape)) for w in jax.tree.leaves(params) if w.ndim == 2}
    weights |= {(D, 4 * H), (H, 4 * H)}  # Flax puts the gates' matrices side by side in the step
    return [s for s in products if s in weights], [s for s in carried if s in weights]


@pytest.mark.parametrize("name", NETS)
def test_no_weight_gradient_is_made_step_by_step(name):
    whole = rnn.fissioned(segment=T)
    assert in_loops(NETS[name](), whole) == ([], [])
    assert all(in_loops(NETS[name](), lax.scan))  # where it is: so the test can fail


@pytest.mark.parametrize("name", NETS)
def test_each_weight_gradient_is_one_product_per_segment(name):
    """Two segments in one loop: there, each weight has one product of its shape."""
    cell = NETS[name]()
    grad, params = gradient(cell, rnn.fissioned(segment=T // 2))
    made = [
        (depth, tuple(sorted(e.outvars[0].aval.shape)))
        for depth, e in equations_of(jax.make_jaxpr(grad)(params).jaxpr)
        if e.primitive.name == "dot_general"
    ]
    weights = [tuple(sorted(w.shape)) for w in jax.tree.leaves(params) if w.ndim == 2]
    for shape in set(weights):
        assert [depth for depth, s in made if s == shape].count(1) <= weights.count(shape) * (
            4 if name == "flax" else 1
        )
        assert (2, shape) not in made


@pytest.mark.parametrize("name", ["lstm", pytest.param("stack", marks=pytest.mark.slow)])
def test_vmap_makes_no_weight_gradient_per_example(name):
    cell = NETS[name]()
    xs = jax.random.normal(jax.random.key(0), (B, T, D))
    params = jax.jit(cell.init)(jax.random.key(1), xs[0, 0])
    loss = lambda p: jnp.sum(jax.vmap(lambda x: rnn.unroll(cell, p, x)[1])(xs))
    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    for weight in jax.tree.leaves(params):
        if weight.ndim == 2:
            assert f"f32[{B},{weight.shape[0]},{weight.shape[1]}]" not in text
    per_example = jax.jit(jax.vmap(jax.grad(lambda p, x: jnp.sum(rnn.unroll(cell, p, x)[1])), (None, 0)))
    assert re.search(rf"f32\[{B},{H},{4 * H}\]", per_example.lower(params, xs).compile().as_text())  # so it can fail


def test_less_is_kept_than_by_lax_scan():
    cell = rnn.lstm(64)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), jnp.zeros((16, 32))))
    found = rnn.analysis.explain(cell, params, jax.ShapeDtypeStruct((16, 32), jnp.float32))
    assert found.kept == 7 * 64 * 16 * 4 and found.kept_by_lax_scan == 12 * 64 * 16 * 4

    def bytes_at(scan, steps):
        xs = jax.ShapeDtypeStruct((steps, 16, 32), jnp.float32)
        return rnn.analysis.temp_bytes(
            jax.grad(lambda p, xs: jnp.sum(rnn.unroll(cell, p, xs, scan=scan)[0].h)), params, xs
        )

    slope = (bytes_at(rnn.scan, 400) - bytes_at(rnn.scan, 200)) / 200
    assert slope <= 1.1 * found.kept
    assert bytes_at(rnn.scan, 400) <= 0.75 * bytes_at(lax.scan, 400)


def test_a_whole_model_keeps_no_logits():
    """Embedding, two layers, readout and loss as one cell: the logits of all steps never exist at once."""
    classes, steps = 2000, 64
    net = rnn.stack(rnn.layer(nn.Embed(classes, 8)), rnn.lstm(H), rnn.lstm(H), rnn.layer(nn.Dense(classes)))
    cell = rnn.with_loss(net, optax.softmax_cross_entropy_with_integer_labels)
    tokens = jax.ShapeDtypeStruct((steps, B), jnp.int32)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), (jnp.zeros((B,), jnp.int32),) * 2))
    loss = lambda p, tokens: jnp.mean(rnn.unroll(cell, p, (tokens, tokens))[1])
    assert rnn.analysis.temp_bytes(jax.grad(loss), params, tokens) < steps * B * classes * 4


# --- other people's cells -----------------------------------------------------------------------


def gains(step, weights, carry):
    """Same values and gradients as under lax.scan, in fewer bytes, and the product with the input leaves the loop."""
    xs = jax.random.normal(jax.random.key(0), (64, B, D))
    loss = lambda w, scan: jnp.sum(jnp.sin(scan(lambda c, x: step(w, c, x), carry, xs)[1]))
    grads = {scan: jax.grad(lambda w, s=scan: loss(w, s)) for scan in (rnn.scan, lax.scan)}
    assert_close(jax.jit(grads[rnn.scan])(weights), jax.jit(grads[lax.scan])(weights), 1e-4)
    assert rnn.analysis.temp_bytes(grads[rnn.scan], weights) < rnn.analysis.temp_bytes(grads[lax.scan], weights)

    plan_found = traced(lambda c, x: step(weights, c, x), carry, xs[0]).parts()
    assert plan_found.pays and "dot_general" in names(plan_found.stages[0].batched.equations)


def test_a_flax_cell_gains():
    cell = nn.GRUCell(H)
    carry = cell.initialize_carry(jax.random.key(0), (B, D))
    params = cell.init(jax.random.key(1), carry, jnp.zeros((B, D)))
    gains(lambda p, c, x: cell.apply(p, c, x), params, carry)


def test_a_haiku_cell_gains():
    hk = pytest.importorskip("haiku")
    make = hk.without_apply_rng(hk.transform(lambda x, s: hk.LSTM(H)(x, s)))
    carry = hk.LSTMState(jnp.zeros((B, H)), jnp.zeros((B, H)))
    params = make.init(jax.random.key(0), jnp.zeros((B, D)), carry)
    gains(lambda p, c, x: make.apply(p, x, c)[::-1], params, carry)


def test_an_equinox_cell_gains():
    eqx = pytest.importorskip("equinox")
    cell = eqx.nn.LSTMCell(D, H, key=jax.random.key(0))

    def step(cell, carry, x):
        h, c = jax.vmap(lambda x, h, c: cell(x, (h, c)))(x, *carry)
        return (h, c), h

    arrays, static = eqx.partition(cell, eqx.is_array)
    gains(
        lambda w, c, x: step(eqx.combine(w, static), c, x),
        arrays,
        (jnp.zeros((B, H)), jnp.zeros((B, H))),
    )


# --- explain ------------------------------------------------------------------------------------


def test_explain_says_what_becomes_of_a_step():
    net = rnn.stack(rnn.lstm(H), rnn.layer(nn.Dense(V)))
    params = net.init(jax.random.key(0), jnp.zeros((B, D)))
    found = rnn.analysis.explain(net, params, jnp.zeros((B, D)))
    assert found.pays and len(found.before) == len(found.after) == 1
    (loop,) = found.loops
    assert loop.carry == ("state[0].h", "state[0].c") and loop.deferred == ("params[0]['W']",)
    assert loop.accumulated == () and "params[0]['U']" in found.batched and "params[1]['kernel']" in found.batched
    text = str(found)
    assert "params[0]['W']" in text and f"{found.kept:,} bytes" in text


def test_explain_says_so_where_nothing_is_gained():
    assert "nothing to gain" in str(rnn.analysis.explain(rnn.lift(jnp.tanh), (), jnp.zeros((B, D))))
    with pytest.raises(TypeError, match="must be a Cell"):
        rnn.analysis.explain(jnp.tanh, (), jnp.zeros(3))


@pytest.mark.parametrize("guard", [rnn.resettable, rnn.masked])
def test_guarded_cells_gain_as_well(guard):
    cell = guard(rnn.lstm(H))
    x = (jax.ShapeDtypeStruct((B, D), jnp.float32), jax.ShapeDtypeStruct((B,), bool))
    params = jax.eval_shape(
        lambda: cell.init(jax.random.key(0), jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), x))
    )
    found = rnn.analysis.explain(cell, params, x)
    assert found.loops[0].deferred and not found.loops[0].accumulated
    assert found.kept <= 8 * H * B * 4 + 3 * B


def test_explain_tells_what_is_added_up_step_by_step():
    """A weight that only a loop within the step reads."""

    def step(params, h, x, *, key=None):
        inner = lambda c, _: (jnp.tanh(c @ params["w"]), None)
        h = lax.scan(inner, h + x @ params["u"], None, length=2)[0]
        return h, h

    cell = rnn.Cell(
        init=lambda key, x: {"w": jnp.eye(H), "u": jnp.ones((D, H))},
        initial_state=lambda p, batch: jnp.zeros((*batch, H)),
        step=step,
    )
    found = rnn.analysis.explain(cell, cell.init(None, None), jnp.zeros((B, D)))
    assert found.loops[0].accumulated == ("params['w']",) and found.batched == ("params['u']",)


@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_a_bad_option_is_named(bad):
    with pytest.raises(ValueError, match="fissioned: segment must be a whole number"):
        rnn.fissioned(bad)
    with pytest.raises(ValueError, match="separate must be True or False"):
        rnn.fissioned(separate="no")


def test_a_wrong_carry_is_reported_as_by_lax_scan():
    for scan in (rnn.scan, lax.scan):
        with pytest.raises(TypeError, match="carry"):
            scan(lambda c, x: ((c @ jnp.ones((3, 4))), c), jnp.ones(3), jnp.ones((5, 3)))


def test_terms_that_broadcast_enter_before_a_split(x64):
    """Gates split first, with a bias of one row added to some of them after."""
    w, b = jax.random.normal(jax.random.key(0), (4, 8)), jax.random.normal(jax.random.key(1), (1, 4))
    xs = jax.random.normal(jax.random.key(2), (6, 3, 4))

    def loss(scan, w, b):
        def step(h, x):
            p, q = jnp.split(h @ w, 2, -1)
            return jnp.tanh(lax.add(p, b)) * jax.nn.sigmoid(q + x), h

        return jnp.sum(jnp.sin(scan(step, jnp.ones((3, 4)), xs)[1]))

    got, want = (jax.jit(jax.grad(lambda w, b, s=s: loss(s, w, b), (0, 1)))(w, b) for s in (rnn.scan, lax.scan))
    assert_close(got, want, 1e-10)


W4 = 0.4 * jax.random.normal(jax.random.key(9), (4, 4))
V4 = 0.4 * jax.random.normal(jax.random.key(8), (4, 8))
ONES = jnp.ones((2, 4))
ODD_STEPS = {
    "two parts of a split in one sum": (
        lambda w, c, x: (jnp.tanh(sum(jnp.split(c @ V4.astype(c.dtype), 2, -1)) + x @ w), c),
        ONES,
    ),
    "parts of two splits in one sum": (
        lambda w, c, x: (
            jnp.tanh(
                jnp.split(c @ V4.astype(c.dtype), 2, -1)[0] + jnp.split((c * c) @ V4.astype(c.dtype), 2, -1)[1] + x @ w
            ),
            jnp.split(c @ V4.astype(c.dtype), 2, -1)[1] + x @ w,
        ),
        ONES,
    ),
    "swapped carries": (lambda w, c, x: ((c[1], c[0], jnp.tanh(c[2] @ w * c[0] * c[1])), c[2]), (ONES, 2 * ONES, ONES)),
    "the input as carry": (lambda w, c, x: ((x, c[1] @ w * c[0] * x), c[1]), (ONES, ONES)),
    "a delay line": (
        lambda w, c, x: ((jnp.tanh(x @ w + c[0] @ w + c[1] * c[2]), c[0], c[1]), c[1]),
        (ONES, 2 * ONES, 3 * ONES),
    ),
    "a scalar weight among arrays": (lambda w, c, x: (jnp.tanh(c @ w + w[0, 0] + x @ w + w[1, 1]), c), ONES),
    "a row among arrays": (lambda w, c, x: (jnp.tanh(c @ w + w[:1] + x * c), c), ONES),
}


def odd(name, reverse, scan):
    """The gradients of a step, and its slope in one direction."""
    step, carry = ODD_STEPS[name]
    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64), tree)
    xs = jax.random.normal(jax.random.key(7), (5, 2, 4), jnp.float64)

    def loss(w, carry, xs):
        end, ys = scan(lambda c, x: step(w, c, x), carry, xs, reverse=reverse)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves((end, ys)))

    @jax.jit
    def compute(*args):
        return jax.value_and_grad(loss, (0, 1, 2))(*args), jax.jvp(loss, args, jax.tree.map(jnp.cos, args))

    return compute(*wide((W4, carry, xs)))


@functools.cache
def odd_under_lax_scan(name, reverse):
    return odd(name, reverse, lax.scan)


def odd_cases():
    """Each step forwards and in reverse, whole and in segments; fast is one of the four, by turns."""
    for n, name in enumerate(ODD_STEPS):
        for reverse in (False, True):
            for segments in (False, True):
                turn = (n % 2 == 1) == reverse == segments
                yield pytest.param(name, reverse, segments, marks=() if turn else pytest.mark.slow)


@pytest.mark.parametrize(("name", "reverse", "segments"), list(odd_cases()))
def test_odd_steps(name, reverse, segments, x64):
    scan = rnn.fissioned(2, separate=True) if segments else rnn.fissioned()
    assert_close(odd(name, reverse, scan), odd_under_lax_scan(name, reverse), 1e-10)


def test_callbacks_and_references_keep_the_loop_as_it_is():
    twice = lambda a: jax.pure_callback(lambda a: 2 * a, jax.ShapeDtypeStruct((), jnp.float32), a)
    for step in (lambda c, x: (c + twice(x), c), lambda c, x: (c + x, twice(c))):
        assert_close(rnn.scan(step, 0.0, jnp.ones(3)), lax.scan(step, 0.0, jnp.ones(3)), 1e-6)
    counter = jax.new_ref(jnp.zeros(()))

    def counting(c, x):
        counter[...] = counter[...] + 1.0
        return c @ W4, None

    rnn.scan(counting, ONES, None, length=3)
    assert float(counter[...]) == 3.0
    printing = rnn.lift(lambda x: jax.debug.print("{}", x) or x)
    assert "effects" in str(rnn.analysis.explain(printing, (), jnp.ones(3)))


def test_weakly_typed_inputs_stay_weak(x64):
    xs = lax.broadcast_in_dim(2.0, (3,), ())
    step = lambda c, x: (c @ W4 * x, c * x)
    got, want = (s(step, ONES, xs) for s in (rnn.scan, lax.scan))
    assert_close(got, want, 1e-6)


def test_nothing_at_all():
    """No features, no units, no examples."""
    for batch, features, units in ((2, 0, 4), (0, 3, 4), (2, 3, 0)):
        u, w = jnp.ones((features, units)), jnp.ones((units, units))
        step = lambda c, x, u=u, w=w: (jnp.tanh(x @ u + c @ w), c)
        args = (jnp.zeros((batch, units)), jnp.ones((3, batch, features)))
        assert_close(rnn.scan(step, *args), lax.scan(step, *args), 1e-6)


def test_numpy_inputs_and_scalars():
    step = lambda c, x: (c * x, c @ np.eye(2, dtype=np.float32))
    got, want = (s(step, np.ones(2, np.float32), np.arange(3, dtype=np.float32)) for s in (rnn.scan, lax.scan))
    assert_close(got, want, 1e-6)


def test_a_custom_vjp_in_the_step_under_every_order_of_vmap_and_grad(x64):
    """A differentiated custom_vjp cannot be vmapped, so its loop's gradients are left to lax.scan."""

    @jax.custom_vjp
    def bent(a):
        return jnp.tanh(a)

    bent.defvjp(lambda a: (jnp.tanh(a), a), lambda a, ct: (ct * jnp.cos(a),))
    xs = jax.random.normal(jax.random.key(0), (6, 3), jnp.float64)
    h = jax.random.normal(jax.random.key(1), (4, 3), jnp.float64)
    W = jax.random.normal(jax.random.key(2), (3, 3), jnp.float64)

    def loss(scan, W, h):
        end, ys = scan(lambda h, x: (bent(h @ W + x), bent(h)), h, xs)
        return jnp.sum(end**2) + jnp.sum(ys)

    one_by_one = jax.jit(jax.grad(lambda W, h: loss(lax.scan, W, h)))
    expected = sum(one_by_one(W, each) for each in h)

    @functools.partial(jax.jit, static_argnums=0)
    def both(scan, W):
        single = lambda W, h: loss(scan, W, h)
        around = jax.grad(lambda W: jnp.sum(jax.vmap(single, (None, 0))(W, h)))(W)
        inside = jnp.sum(jax.vmap(jax.grad(single), (None, 0))(W, h), axis=0)
        return around, inside

    for scan in (rnn.scan, rnn.fissioned(2), rnn.revolve(2, 2)):
        assert_close(both(scan, W), (expected, expected), 1e-10)
