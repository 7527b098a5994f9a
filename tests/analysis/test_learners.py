"""`compare`: what is exact is found to be, what is not is not, and costs stand beside it."""

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as rnn
from jaxrnn.analysis import Compared, Comparison, Nearness, compare
from jaxrnn.online import immediate, rtrl, snap, tbptt, uoro
from tests.online.problems import problem


def test_compare():
    net, params, xs = problem(rnn.gru(4), T=8, dtype=jnp.float32)
    methods = {"rtrl": rtrl(), "snap": snap(1), "bptt": tbptt(8, every=8), "none": immediate(), "uoro": uoro()}
    found = compare(net, params, xs, methods, key=jax.random.key(0), draws=3)
    assert isinstance(found, Comparison) and list(found) == list(methods)
    for exact in ("rtrl", "bptt"):
        row = found[exact]
        assert isinstance(row, Compared) and row.whole.cosine > 0.99999 and abs(row.whole.ratio - 1) < 1e-4
        assert all(isinstance(n, Nearness) and n.cosine > 0.9999 for n in row.leaves.values())
    assert found["none"].whole.cosine < found["snap"].whole.cosine < 0.99999 and found["uoro"].whole.cosine < 0.9
    assert set(found["snap"].leaves) == {f"['{name}']" for name in params}
    assert found["rtrl"].carried > 3 * found["snap"].carried and found["rtrl"].flops > found["snap"].flops > 1
    text = str(found)
    assert all(name in text for name in methods) and "cosine" in text and len(text.splitlines()) == 6
    assert list(compare(net, params, xs, [snap(1)])) == ["snap(order=1)"]


def test_what_cannot_be_compared():
    net, params, xs = problem(rnn.gru(4), T=8, dtype=jnp.float32)
    with pytest.raises(TypeError, match=r"methods must be values such as rtrl\(\)"):
        compare(net, params, xs, {"rtrl": rtrl})
    with pytest.raises(ValueError, match=r"xs has 8 steps, which every = 3 of short does not divide"):
        compare(net, params, xs, {"short": tbptt(3, every=3)})
    with pytest.raises(ValueError, match=r"must end in its loss"):
        compare(rnn.gru(4), params, xs[0], [rtrl()])
    with pytest.raises(ValueError, match=r"draws must be a whole number"):
        compare(net, params, xs, [rtrl()], draws=0)
